//! The certificate authorities that an agent can ask. An enum, not a trait: the list is closed and short.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;

use super::dir_ca::DirCa;
use super::error::CertError;
use super::service::CaService;
use crate::model::Identity;

/// A certificate authority.
#[derive(Clone, Debug)]
pub enum Ca {
    /// The development CA of `--ca-dir`.
    Dir(Arc<DirCa>),
    /// A CA behind gRPC: the controller's or istiod's.
    Service(Arc<CaService>),
}

/// What a CA hands back.
#[derive(Clone, Debug)]
pub struct SignedCert {
    /// Leaf first, then intermediates; no root.
    pub chain: Vec<CertificateDer<'static>>,
    /// Every root to trust now.
    pub roots: Vec<CertificateDer<'static>>,
}

/// One request to a CA.
#[derive(Clone, Debug)]
pub struct SignRequest {
    pub identity: Identity,
    /// PKCS #10, DER.
    pub csr: Vec<u8>,
    pub lifetime: Duration,
    pub now: SystemTime,
}

impl Ca {
    /// Has a CSR signed. File and CPU work leaves the caller's thread, which may be a data-plane worker.
    pub(super) async fn sign(&self, request: SignRequest) -> Result<SignedCert, CertError> {
        match self {
            Ca::Dir(ca) => {
                let ca = Arc::clone(ca);
                let identity = request.identity.clone();
                tokio::task::spawn_blocking(move || ca.sign(&request))
                    .await
                    .unwrap_or(Err(CertError::Dropped { identity }))
            }
            Ca::Service(ca) => ca.sign(request).await,
        }
    }

    /// The roots to trust now; they change while a root rotates.
    pub(super) async fn roots(&self) -> Result<Vec<CertificateDer<'static>>, CertError> {
        match self {
            Ca::Dir(ca) => {
                let path = ca.bundle_path();
                let ca = Arc::clone(ca);
                tokio::task::spawn_blocking(move || ca.roots()).await.unwrap_or_else(|error| {
                    Err(CertError::Io { action: "read", path, cause: error.to_string() })
                })
            }
            Ca::Service(ca) => {
                let path = ca.bundle_path();
                let ca = Arc::clone(ca);
                tokio::task::spawn_blocking(move || ca.roots()).await.unwrap_or_else(|error| {
                    Err(CertError::Io { action: "read", path, cause: error.to_string() })
                })
            }
        }
    }
}
