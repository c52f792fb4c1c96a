//! Outlier detection: when an endpoint answers with errors, it is left alone for a while (`outlierDetection`; reference
//! section 4.4, Envoy's current rules to the letter). Owns: counters, ejection, its end, and the bound on how many may
//! be out. Every worker writes here at once: all of it is atomics, nobody waits. Never: a clock; the time comes in as
//! milliseconds of any clock that does not go back. Called by `proxy` (results, and a sweep at each interval) and asked
//! by `balance`.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::model::traffic::Outlier;

/// Longest ejection (Envoy's `max_ejection_time`), unless the base time is longer.
pub const EJECTION_MAX_MS: u64 = 300_000;

/// How one request or connection to an endpoint went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// An answer with this status.
    Status(u16),
    /// An answer without a body, whose gRPC status is in its header fields.
    Grpc(u8),
    /// A TCP connection was made, and that is all there is to know. Not for the connections of requests, whose answers
    /// tell more.
    Connected,
    ConnectFailed,
    /// No connection, or no answer, in time.
    TimedOut,
    /// The connection broke before the answer was complete.
    Reset,
}

/// Which rule found an endpoint to be failing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    #[serde(rename = "consecutive_5xx")]
    Consecutive5xx,
    ConsecutiveGateway,
    ConsecutiveLocal,
}

/// What a result led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detected {
    /// The endpoint is ejected from now on.
    Ejected(Rule),
    /// It would be, if not too many were already (`maxEjectionPercent`).
    Overflow(Rule),
}

/// One endpoint of one destination.
#[derive(Debug, Default)]
pub struct HostState {
    errors: AtomicU32,
    gateway: AtomicU32,
    local: AtomicU32,
    /// When it was ejected, plus one; zero = it is not.
    ejected_at: AtomicU64,
    /// How many times the base time the next end is away. Grows with each ejection, shrinks with each good interval.
    backoff: AtomicU32,
}

impl HostState {
    pub fn is_ejected(&self) -> bool {
        self.ejected_at.load(Ordering::Relaxed) != 0
    }

    /// When its ejection ends, at the next sweep after that; none while it is not ejected.
    pub fn ejected_until(&self, rules: &Outlier) -> Option<u64> {
        let at = self.ejected_at.load(Ordering::Acquire).checked_sub(1)?;
        Some(at.saturating_add(self.ejection_ms(rules)))
    }

    fn ejection_ms(&self, rules: &Outlier) -> u64 {
        let base = millis(rules.base_ejection);
        let times = u64::from(self.backoff.load(Ordering::Acquire));
        base.saturating_mul(times).min(EJECTION_MAX_MS.max(base))
    }

    fn counter(&self, rule: Rule) -> &AtomicU32 {
        match rule {
            Rule::Consecutive5xx => &self.errors,
            Rule::ConsecutiveGateway => &self.gateway,
            Rule::ConsecutiveLocal => &self.local,
        }
    }

    /// Counts one more failure; true at the threshold (0 = off).
    fn fails(&self, rule: Rule, threshold: u32) -> bool {
        let counter = self.counter(rule);
        let before = counter.fetch_add(1, Ordering::Relaxed);
        threshold > 0 && before.saturating_add(1) >= threshold
    }

    fn forgive(&self) {
        for counter in [&self.errors, &self.gateway, &self.local] {
            counter.store(0, Ordering::Relaxed);
        }
    }
}

/// A destination: the host and subset that one policy speaks of.
#[derive(Debug, Default)]
pub struct DestinationState {
    ejected: AtomicU32,
    overflow: AtomicU64,
    /// When the next sweep is due.
    next_sweep: AtomicU64,
}

/// What a result is judged by.
#[derive(Clone, Copy, Debug)]
pub struct Circumstances<'a> {
    pub rules: &'a Outlier,
    /// How many endpoints the destination has, over all localities.
    pub hosts: u32,
    /// Milliseconds.
    pub now: u64,
}

/// What a failure counts as.
struct Counted {
    error: bool,
    gateway: bool,
    local: bool,
}

impl DestinationState {
    /// Endpoints that are out now.
    pub fn ejected(&self) -> u32 {
        self.ejected.load(Ordering::Relaxed)
    }

    /// How often an endpoint failed that could not be ejected.
    pub fn overflow(&self) -> u64 {
        self.overflow.load(Ordering::Relaxed)
    }

    /// Counts one result.
    pub fn result(&self, host: &HostState, outcome: Outcome, around: &Circumstances<'_>) -> Option<Detected> {
        let rules = around.rules;
        let counted = counted(outcome, rules.split_local);
        let mut found = None;
        let mut judge = |rule, threshold| {
            if host.fails(rule, threshold) {
                found = found.or(self.detected(host, rule, around));
            }
        };
        if counted.local {
            judge(Rule::ConsecutiveLocal, rules.consecutive_local);
            return found;
        }
        // Whatever answers was reached.
        host.local.store(0, Ordering::Relaxed);
        if rules.split_local && outcome == Outcome::Connected {
            return None;
        }
        if counted.gateway {
            judge(Rule::ConsecutiveGateway, rules.consecutive_gateway);
        } else {
            host.gateway.store(0, Ordering::Relaxed);
        }
        if counted.error {
            judge(Rule::Consecutive5xx, rules.consecutive_5xx);
        } else {
            host.errors.store(0, Ordering::Relaxed);
        }
        found
    }

    fn detected(&self, host: &HostState, rule: Rule, around: &Circumstances<'_>) -> Option<Detected> {
        let Circumstances { rules, hosts, now } = *around;
        if host.is_ejected() {
            return None;
        }
        // Begins anew also where nothing comes of it, so that a later row of errors is found again.
        host.counter(rule).store(0, Ordering::Relaxed);
        if !self.reserve(hosts, rules.max_ejection_percent) {
            self.overflow.fetch_add(1, Ordering::Relaxed);
            return Some(Detected::Overflow(rule));
        }
        let stamp = now.saturating_add(1);
        if host.ejected_at.compare_exchange(0, stamp, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            // Another worker was faster with the same endpoint.
            self.release();
            return None;
        }
        let base = millis(rules.base_ejection);
        let longest = EJECTION_MAX_MS.max(base);
        let times = u64::from(host.backoff.load(Ordering::Acquire));
        if times.saturating_mul(base) < longest.saturating_add(base) {
            host.backoff.fetch_add(1, Ordering::AcqRel);
        }
        Some(Detected::Ejected(rule))
    }

    /// Room for one more ejection: only if the share that is out stays within the percentage.
    fn reserve(&self, hosts: u32, percent: u32) -> bool {
        let most = u64::from(percent.min(100));
        let fits = |ejected: u32| (u64::from(ejected) + 1) * 100 <= most * u64::from(hosts);
        let more = |ejected| fits(ejected).then(|| ejected + 1);
        self.ejected.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_ok()
    }

    fn release(&self) {
        let less = |ejected: u32| ejected.checked_sub(1);
        let _before = self.ejected.fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
    }

    /// Whether an interval is over. True for one caller only, who then sweeps.
    pub fn is_due(&self, rules: &Outlier, now: u64) -> bool {
        let due = self.next_sweep.load(Ordering::Acquire);
        let next = now.saturating_add(millis(rules.interval).max(1));
        let claim =
            |from| self.next_sweep.compare_exchange(from, next, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if due == 0 {
            // The first call starts the clock.
            let _first = claim(0);
            return false;
        }
        now >= due && claim(due)
    }

    /// What happens at each interval: endpoints whose time is over come back, those that were well are forgiven a little.
    /// Returns how many came back.
    pub fn sweep<'h>(
        &self,
        rules: &Outlier,
        hosts: impl IntoIterator<Item = &'h HostState>,
        now: u64,
    ) -> usize {
        let mut back = 0;
        for host in hosts {
            match host.ejected_until(rules) {
                None => {
                    let less = |times: u32| times.checked_sub(1);
                    let _before = host.backoff.fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
                }
                Some(until) if until <= now => back += usize::from(self.return_host(host)),
                Some(_) => {}
            }
        }
        back
    }

    /// The endpoint is no longer one of the destination, or the policy has no outlier detection any more.
    pub fn forget(&self, host: &HostState) {
        self.return_host(host);
    }

    fn return_host(&self, host: &HostState) -> bool {
        host.forgive();
        let was = host.ejected_at.swap(0, Ordering::AcqRel) != 0;
        if was {
            self.release();
        }
        was
    }
}

fn millis(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// What an outcome counts as. Unless local failures are counted apart they count as the status that a client would see:
/// 503 for a connection that failed or broke, 504 for what took too long.
fn counted(outcome: Outcome, split: bool) -> Counted {
    let status = match outcome {
        Outcome::Status(status) => status,
        Outcome::Grpc(code) => http_status(code),
        Outcome::Connected => 200,
        Outcome::ConnectFailed | Outcome::Reset => 503,
        Outcome::TimedOut => 504,
    };
    let local = matches!(outcome, Outcome::ConnectFailed | Outcome::TimedOut | Outcome::Reset);
    Counted { error: status >= 500, gateway: matches!(status, 502..=504), local: split && local }
}

/// The HTTP status that stands for a gRPC status (google.rpc.Code).
pub fn http_status(code: u8) -> u16 {
    match code {
        0 => 200,
        1 => 499,
        3 | 9 | 11 => 400,
        4 => 504,
        5 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        _ => 500,
    }
}

#[cfg(test)]
mod tests;
