//! What other modules' tests need of identities: a clock that stands still, and certificates.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;

use super::{Ca, CertManager, CertSettings, Clock, DirCa, WorkloadCert};
use crate::model::Identity;

/// A clock that moves only when told to.
pub(crate) struct ManualClock(Mutex<SystemTime>);

impl ManualClock {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(SystemTime::now())))
    }

    pub(crate) fn advance(&self, by: Duration) {
        *self.0.lock() += by;
    }

    pub(crate) fn time(&self) -> SystemTime {
        *self.0.lock()
    }
}

impl Clock for ManualClock {
    fn now(&self) -> SystemTime {
        *self.0.lock()
    }
}

/// A CA folder of its own with a manager on it.
pub(crate) struct Authority {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) manager: Arc<CertManager>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        Self::with(ManualClock::new())
    }

    pub(crate) fn with(clock: Arc<ManualClock>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let manager = manager(dir.path(), &clock);
        Self { dir, clock, manager }
    }

    pub(crate) async fn cert(&self, account: &str) -> Arc<WorkloadCert> {
        self.manager.fetch(&identity(account)).await.unwrap()
    }

    pub(crate) async fn cert_of(&self, identity: &Identity) -> Arc<WorkloadCert> {
        self.manager.fetch(identity).await.unwrap()
    }
}

/// A manager without jitter, so that its times are exact.
pub(crate) fn manager(dir: &Path, clock: &Arc<ManualClock>) -> Arc<CertManager> {
    let ca = Ca::Dir(Arc::new(DirCa::open(dir).unwrap()));
    let settings = CertSettings { jitter: 0.0, ..CertSettings::default() };
    let clock: Arc<dyn Clock> = Arc::clone(clock) as _;
    CertManager::new(ca, clock, settings)
}

pub(crate) fn identity(account: &str) -> Identity {
    Identity::new("cluster.local", "test", account).unwrap()
}
