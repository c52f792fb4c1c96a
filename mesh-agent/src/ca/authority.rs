//! What is in force now, for the server's tasks: the signer, the bundle, the service's own certificate, the deny
//! list. Replaced as a whole, read without a lock. Called by `store` (writes), `issue`, `server`, `metrics` (read).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::{ArcSwap, ArcSwapOption};
use rustls::pki_types::CertificateDer;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::signer::{SERVING_LIFETIME, Signer, SignerError};
use crate::identity::pem;
use crate::model::Identity;

/// One state of the CA.
pub struct Active {
    pub signer: Arc<Signer>,
    /// The published bundle.
    pub roots: Vec<CertificateDer<'static>>,
    /// The same as PEM, as answers carry it.
    pub roots_pem: String,
    serving: Arc<CertifiedKey>,
    serving_made: SystemTime,
}

/// See the module's header.
pub struct Authority {
    active: ArcSwapOption<Active>,
    denied: ArcSwap<BTreeSet<Identity>>,
    /// DNS names and addresses of the service.
    server_names: Vec<String>,
}

impl Authority {
    pub fn new(server_names: Vec<String>) -> Arc<Self> {
        Arc::new(Self { active: ArcSwapOption::empty(), denied: ArcSwap::default(), server_names })
    }

    pub fn active(&self) -> Option<Arc<Active>> {
        self.active.load_full()
    }

    pub fn denied(&self) -> Arc<BTreeSet<Identity>> {
        self.denied.load_full()
    }

    pub fn set_denied(&self, denied: BTreeSet<Identity>) {
        self.denied.store(Arc::new(denied));
    }

    /// Puts a signer and a bundle in force. The serving certificate is kept while it is of the same signer and has
    /// half of its life left.
    pub fn set(
        &self,
        signer: &Arc<Signer>,
        roots: Vec<CertificateDer<'static>>,
        now: SystemTime,
    ) -> Result<(), SignerError> {
        let old = self.active();
        let same = old.as_ref().filter(|old| {
            let age = now.duration_since(old.serving_made).unwrap_or_default();
            Arc::ptr_eq(&old.signer, signer) && age < SERVING_LIFETIME / 2
        });
        if same.is_some_and(|old| old.roots == roots) {
            return Ok(());
        }
        let (serving, serving_made) = match same {
            Some(old) => (Arc::clone(&old.serving), old.serving_made),
            None => (signer.serving(&self.server_names, now)?, now),
        };
        let roots_pem = pem::text("CERTIFICATE", &roots);
        let signer = Arc::clone(signer);
        self.active.store(Some(Arc::new(Active { signer, roots, roots_pem, serving, serving_made })));
        Ok(())
    }
}

/// Hands the service's certificate of the moment to rustls.
impl ResolvesServerCert for Authority {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.active().map(|active| Arc::clone(&active.serving))
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("server_names", &self.server_names).finish_non_exhaustive()
    }
}
