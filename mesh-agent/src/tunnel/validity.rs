//! How long a tunnel is good for: until the first of the two certificates that it was authenticated with ends.
//! Owns: that moment. Never: closes anything. Called by `client`, `server` and, through their tunnels, the pool.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::identity::{Clock, PeerError, WorkloadCert, peer_not_after};

/// The end of a tunnel's certificates, by the clock that they are judged with. A handshake is looked at once, a
/// tunnel may live for days: what TLS has checked is to hold for every stream that is opened.
pub(super) struct Validity {
    until: SystemTime,
    clock: Arc<dyn Clock>,
}

impl Validity {
    /// Of a finished handshake: ours and the peer's leaf.
    pub(super) fn of(own: &WorkloadCert, connection: &rustls::CommonState) -> Result<Self, PeerError> {
        let until = own.not_after.min(peer_not_after(connection)?);
        Ok(Self { until, clock: own.clock() })
    }

    /// Whether a certificate has ended: no stream may be opened.
    pub(super) fn is_over(&self) -> bool {
        self.until <= self.clock.now()
    }

    /// Completes when a certificate has ended. Looks at the clock every so often: timers stand still while a
    /// machine sleeps, and a clock may be set.
    pub(super) async fn ended(&self, look_every: Duration) {
        while let Ok(left) = self.until.duration_since(self.clock.now()) {
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left.min(look_every)).await;
        }
    }
}

impl fmt::Debug for Validity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Validity(until {:?})", self.until)
    }
}
