//! The certificates of every identity on this node: made on demand, renewed at half life, forgotten with the pod.
//! Owns: the cache, the single flight per identity, the order of requests, the retry schedule. Never: writes a key anywhere.
//! Called by the proxies (`fetch`, `current`), `agent` (`run`, `retain`) and `admin` (`list`).

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::{Notify, watch};

use super::Clock;
use super::ca::{Ca, SignRequest};
use super::cert::WorkloadCert;
use super::error::CertError;
use super::issue::key_and_csr;
use super::tls::random_bytes;
use crate::model::{Hits, Identity, Limit};

mod queue;

pub use queue::REQUESTS_MAX;
use queue::{Queue, Urgency, Waiting};

/// Identities held at once. A node runs some hundred pods; more than this is a fault, not a use.
pub const IDENTITIES_MAX: usize = 10_000;
/// Longest sleep between two looks at the wall clock: timers stand still while a machine sleeps, certificates
/// do not, and a clock may be set.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// First wait after a failed request; doubles from here.
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// Longest wait between requests (Istio's agents use the same cap).
const RETRY_MAX: Duration = Duration::from_secs(150);
/// Shortest lifetime asked for: certificates count whole seconds, and a renewal needs some of them.
const LIFETIME_MIN: Duration = Duration::from_secs(2);

/// How certificates are asked for.
#[derive(Clone, Debug)]
pub struct CertSettings {
    /// Lifetime to request.
    pub lifetime: Duration,
    /// Share of the half life by which a renewal may come early, 0 to 1, so that a node's renewals spread out.
    pub jitter: f64,
    /// Where refusals for want of room are counted.
    pub hits: Hits,
}

impl Default for CertSettings {
    fn default() -> Self {
        Self { lifetime: Duration::from_secs(24 * 3600), jitter: 0.1, hits: Hits::default() }
    }
}

/// Where an identity's certificate stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CertState {
    Valid,
    /// Asked for, not there yet.
    Pending,
    /// Never had, and the last request failed.
    Failed,
    Expired,
}

/// A row of `mesh-agent certs`.
#[derive(Clone, Debug, Serialize)]
pub struct CertStatus {
    pub identity: Identity,
    pub state: CertState,
    pub not_before: Option<SystemTime>,
    pub not_after: Option<SystemTime>,
    pub serial: Option<String>,
    /// When the next request is due: a renewal or a retry.
    pub next_request: Option<SystemTime>,
    pub failures: u32,
    pub last_error: Option<String>,
}

type Answer = Result<Arc<WorkloadCert>, CertError>;
type Flight = watch::Receiver<Option<Answer>>;

struct Entry {
    /// Tells a late answer that its entry was forgotten and made anew meanwhile.
    generation: u64,
    cert: Option<Arc<WorkloadCert>>,
    next_request: Option<SystemTime>,
    failures: u32,
    last_error: Option<CertError>,
    flight: Option<Flight>,
}

impl Entry {
    fn flight(&self) -> Option<Flight> {
        // A closed channel without an answer is the trace of a runtime that ended with the request in it.
        self.flight.clone().filter(|flight| flight.borrow().is_some() || flight.has_changed().is_ok())
    }
}

#[derive(Default)]
struct State {
    entries: HashMap<Identity, Entry>,
    generations: u64,
    queue: Queue,
}

struct Shared {
    ca: Ca,
    clock: Arc<dyn Clock>,
    settings: CertSettings,
    state: Mutex<State>,
    /// Wakes `run` when something new has a due time.
    changed: Notify,
}

/// See the module's header.
pub struct CertManager {
    shared: Arc<Shared>,
}

impl CertManager {
    pub fn new(ca: Ca, clock: Arc<dyn Clock>, settings: CertSettings) -> Arc<Self> {
        let settings = CertSettings {
            lifetime: settings.lifetime.max(LIFETIME_MIN),
            jitter: if settings.jitter.is_finite() { settings.jitter.clamp(0.0, 1.0) } else { 0.0 },
            hits: settings.hits,
        };
        let state = Mutex::new(State::default());
        Arc::new(Self { shared: Arc::new(Shared { ca, clock, settings, state, changed: Notify::new() }) })
    }

    /// The certificate of an identity, from the cache or the CA. Concurrent callers share one request, and a
    /// caller that goes away does not stop it for the others.
    pub async fn fetch(&self, identity: &Identity) -> Answer {
        let mut flight = {
            let mut state = self.shared.state.lock();
            let now = self.shared.clock.now();
            if !state.entries.contains_key(identity) && state.entries.len() >= IDENTITIES_MAX {
                self.shared.settings.hits.hit(Limit::Identities);
                return Err(CertError::TooMany { identity: identity.clone(), limit: IDENTITIES_MAX });
            }
            let (entry, queue) = state.entry(identity);
            if let Some(cert) = entry.cert.as_ref().filter(|cert| !cert.expired(now)) {
                return Ok(Arc::clone(cert));
            }
            match entry.flight() {
                Some(flight) => {
                    queue.promote(identity);
                    flight
                }
                None => {
                    entry.may_ask(identity, now)?;
                    entry.enqueue(identity, Urgency::Pod, queue)
                }
            }
        };
        self.shared.pump();
        match flight.wait_for(Option::is_some).await {
            Ok(answer) => {
                answer.clone().unwrap_or_else(|| Err(CertError::Dropped { identity: identity.clone() }))
            }
            Err(_) => Err(CertError::Dropped { identity: identity.clone() }),
        }
    }

    /// The certificate of an identity if one is there and has not expired. Never waits.
    pub fn current(&self, identity: &Identity) -> Option<Arc<WorkloadCert>> {
        let now = self.shared.clock.now();
        let state = self.shared.state.lock();
        let cert = state.entries.get(identity)?.cert.as_ref()?;
        (!cert.expired(now)).then(|| Arc::clone(cert))
    }

    /// Forgets every identity that is not in `keep`, with its key.
    pub fn retain(&self, keep: &HashSet<Identity>) {
        let mut state = self.shared.state.lock();
        state.entries.retain(|identity, _| keep.contains(identity));
        state.queue.retain(|identity| keep.contains(identity));
    }

    /// Where each identity stands, in the identities' order.
    pub fn list(&self) -> Vec<CertStatus> {
        let now = self.shared.clock.now();
        let state = self.shared.state.lock();
        let mut rows: Vec<_> =
            state.entries.iter().map(|(identity, entry)| entry.status(identity, now)).collect();
        drop(state);
        rows.sort_by(|a, b| a.identity.cmp(&b.identity));
        rows
    }

    /// Renews what is due until `cancel` completes. Errors stay in `list()` and are tried again.
    pub async fn run(self: Arc<Self>, cancel: impl Future<Output = ()>) {
        let mut cancel = std::pin::pin!(cancel);
        loop {
            self.refresh_roots().await;
            self.renew_due();
            let sleep = self.until_next_request().min(LOOK_EVERY);
            tokio::select! {
                () = &mut cancel => return,
                () = self.shared.changed.notified() => {}
                () = tokio::time::sleep(sleep) => {}
            }
        }
    }

    /// Starts a request for every identity whose renewal or retry is due. Returns how many.
    pub(crate) fn renew_due(&self) -> usize {
        let now = self.shared.clock.now();
        let mut state = self.shared.state.lock();
        let mut started = 0;
        let State { entries, queue, .. } = &mut *state;
        for (identity, entry) in entries {
            if entry.flight().is_none() && entry.next_request.is_some_and(|due| due <= now) {
                let usable = entry.cert.as_ref().is_some_and(|cert| !cert.expired(now));
                let urgency = if usable { Urgency::Renewal } else { Urgency::Pod };
                drop(entry.enqueue(identity, urgency, queue));
                started += 1;
            }
        }
        drop(state);
        self.shared.pump();
        started
    }

    /// Gives every held certificate the bundle as it is now, so that a new root is trusted before the first
    /// peer shows a certificate signed by it, not only after the own renewal.
    pub(crate) async fn refresh_roots(&self) {
        let roots = match self.shared.ca.roots().await {
            Ok(roots) => roots,
            Err(error) => {
                if matches!(error, CertError::BundleTooLarge { .. }) {
                    self.shared.settings.hits.hit(Limit::Roots);
                }
                tracing::warn!(%error, "the trust bundle cannot be read; the last one stays in use");
                return;
            }
        };
        let mut state = self.shared.state.lock();
        for (identity, entry) in &mut state.entries {
            let Some(cert) = entry.cert.as_ref().filter(|cert| cert.roots() != roots.as_slice()) else {
                continue;
            };
            match cert.with_roots(roots.clone()) {
                Ok(renewed) => entry.cert = Some(Arc::new(renewed)),
                Err(error) => tracing::warn!(%identity, %error, "the new trust bundle is refused"),
            }
        }
    }

    fn until_next_request(&self) -> Duration {
        let now = self.shared.clock.now();
        let state = self.shared.state.lock();
        let open = state.entries.values().filter(|entry| entry.flight().is_none());
        let next = open.filter_map(|entry| entry.next_request).min();
        next.map_or(LOOK_EVERY, |due| due.duration_since(now).unwrap_or(Duration::ZERO))
    }
}

impl State {
    /// The CA answers again: what failed only because it did not is asked for at once, in the queue's order.
    fn retry_unavailable(&mut self, now: SystemTime) {
        for entry in self.entries.values_mut() {
            if matches!(entry.last_error, Some(CertError::Unavailable { .. })) && entry.flight.is_none() {
                entry.next_request = Some(now);
            }
        }
    }

    fn entry(&mut self, identity: &Identity) -> (&mut Entry, &mut Queue) {
        self.generations += 1;
        let generation = self.generations;
        let entry = self.entries.entry(identity.clone()).or_insert(Entry {
            generation,
            cert: None,
            next_request: None,
            failures: 0,
            last_error: None,
            flight: None,
        });
        (entry, &mut self.queue)
    }
}

impl Entry {
    /// Puts a request into the queue.
    fn enqueue(&mut self, identity: &Identity, urgency: Urgency, queue: &mut Queue) -> Flight {
        let (answer, flight) = watch::channel(None);
        self.flight = Some(flight.clone());
        queue.push(urgency, Waiting { identity: identity.clone(), generation: self.generation, answer });
        flight
    }

    /// After a failure callers get the error at once until the retry is due: a CA that is down must not be
    /// asked once per connection.
    fn may_ask(&self, identity: &Identity, now: SystemTime) -> Result<(), CertError> {
        let (Some(due), Some(last)) = (self.next_request, &self.last_error) else { return Ok(()) };
        match due.duration_since(now) {
            Ok(wait) if !wait.is_zero() => Err(CertError::Backoff {
                identity: identity.clone(),
                wait_seconds: wait.as_secs().max(1),
                last: last.to_string(),
            }),
            _ => Ok(()),
        }
    }

    fn status(&self, identity: &Identity, now: SystemTime) -> CertStatus {
        let state = match &self.cert {
            Some(cert) if cert.expired(now) => CertState::Expired,
            Some(_) => CertState::Valid,
            None if self.last_error.is_some() => CertState::Failed,
            None => CertState::Pending,
        };
        CertStatus {
            identity: identity.clone(),
            state,
            not_before: self.cert.as_ref().map(|cert| cert.not_before),
            not_after: self.cert.as_ref().map(|cert| cert.not_after),
            serial: self.cert.as_ref().map(|cert| cert.serial.clone()),
            next_request: self.next_request,
            failures: self.failures,
            last_error: self.last_error.as_ref().map(ToString::to_string),
        }
    }
}

impl Shared {
    /// Starts the requests that may go, each in a task of its own. The lock is not held meanwhile: a runtime that
    /// ends drops a task at once, and with it its turn.
    fn pump(self: &Arc<Self>) {
        loop {
            let Some(waiting) = self.state.lock().queue.next() else { return };
            let turn = Turn(Arc::clone(self));
            tokio::spawn(async move {
                let shared = Arc::clone(&turn.0);
                let Waiting { identity, generation, answer } = waiting;
                let result = shared.issue(&identity).await;
                shared.settle(&identity, generation, &result);
                drop(turn);
                answer.send_replace(Some(result));
                shared.pump();
            });
        }
    }

    async fn issue(&self, identity: &Identity) -> Answer {
        let made = key_and_csr(identity)?;
        let request = SignRequest {
            identity: identity.clone(),
            csr: made.csr,
            lifetime: self.settings.lifetime,
            now: self.clock.now(),
        };
        let signed = self.ca.sign(request).await?;
        Ok(Arc::new(WorkloadCert::new(identity, &made.key, signed, Arc::clone(&self.clock))?))
    }

    fn settle(&self, identity: &Identity, generation: u64, result: &Answer) {
        let now = self.clock.now();
        {
            let mut state = self.state.lock();
            let Some(entry) = state.entries.get_mut(identity).filter(|e| e.generation == generation) else {
                return;
            };
            entry.flight = None;
            match result {
                Ok(cert) => {
                    entry.cert = Some(Arc::clone(cert));
                    entry.next_request =
                        Some(renewal_time(cert, now, self.settings.jitter, random_fraction()));
                    entry.failures = 0;
                    entry.last_error = None;
                    state.retry_unavailable(now);
                }
                Err(error) => {
                    entry.failures = entry.failures.saturating_add(1);
                    entry.next_request = Some(now + retry_wait(entry.failures, random_fraction()));
                    entry.last_error = Some(error.clone());
                    tracing::warn!(%identity, failures = entry.failures, %error, "no certificate");
                }
            }
        }
        self.changed.notify_one();
    }
}

/// A request under way; its end, also by a runtime that ends with it, makes room for the next.
struct Turn(Arc<Shared>);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.state.lock().queue.done();
        self.0.changed.notify_one();
    }
}

/// Half of what the certificate has left when it is issued, less a random share of it. Not half of its whole
/// life: it is backdated, and one that lives no longer than that would be due at once, for ever.
pub(super) fn renewal_time(cert: &WorkloadCert, issued: SystemTime, jitter: f64, random: f64) -> SystemTime {
    let life = cert.not_after.duration_since(issued).unwrap_or(Duration::ZERO);
    let half = life / 2;
    issued + half.saturating_sub(half.mul_f64(jitter * random))
}

/// Doubling from [`RETRY_FIRST`] to [`RETRY_MAX`], less up to a quarter.
pub(super) fn retry_wait(failures: u32, random: f64) -> Duration {
    let doubled = RETRY_FIRST.saturating_mul(1 << failures.saturating_sub(1).min(16));
    doubled.min(RETRY_MAX).mul_f64(1.0 - 0.25 * random)
}

/// 0 up to 1. Without randomness jitter is lost, nothing else.
fn random_fraction() -> f64 {
    let bytes: [u8; 4] = random_bytes().unwrap_or_default();
    f64::from(u32::from_le_bytes(bytes)) / (f64::from(u32::MAX) + 1.0)
}

#[cfg(test)]
mod tests;
