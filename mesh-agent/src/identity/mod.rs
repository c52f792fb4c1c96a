//! Workload identity: keys, CSRs, certificates, and the TLS configurations made from them.
//! Owns: private keys (in memory only, never written), the certificate cache and its renewal, the rule for
//! what a peer's certificate must say. Never: decides who may talk to whom, opens connections.
//! Called by `tunnel` (TLS), the proxies (`CertManager::fetch`), `admin` (`CertManager::list`).

mod ca;
mod cert;
mod dir_ca;
mod error;
pub mod external;
mod issue;
pub mod leaf;
mod manager;
pub mod pem;
pub mod root;
mod san;
mod service;
mod tls;
pub mod wire;

use std::time::SystemTime;

pub use ca::{Ca, SignRequest, SignedCert};
pub use cert::WorkloadCert;
pub use dir_ca::DirCa;
pub use error::{CertError, PeerError};
pub use manager::{CertManager, CertSettings, CertState, CertStatus, IDENTITIES_MAX, REQUESTS_MAX};
pub use pem::BUNDLE_MAX_CERTS;
pub use san::{certificate_identity, peer_identity, peer_not_after};
pub use service::{CaService, ServiceSettings};
pub use tls::{provider, reason_of_tls_error, time_provider};

/// Where the wall clock comes from, so that expiry and rotation can be tested without waiting.
pub trait Clock: Send + Sync {
    fn now(&self) -> SystemTime;
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
