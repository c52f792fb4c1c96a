//! The certificate authorities that an agent can ask. An enum, not a trait: the list is closed and short.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;

use super::dir_ca::DirCa;
use super::error::CertError;
use crate::model::Identity;

/// A certificate authority.
#[derive(Clone, Debug)]
pub enum Ca {
    /// The development CA of `--ca-dir`.
    Dir(Arc<DirCa>),
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
pub(super) struct SignRequest {
    pub(super) identity: Identity,
    /// PKCS #10, DER.
    pub(super) csr: Vec<u8>,
    pub(super) lifetime: Duration,
    pub(super) now: SystemTime,
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
        }
    }
}
