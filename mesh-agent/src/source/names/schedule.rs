//! Which names are asked for when, and what is known of each. No clock and no network: times and answers come in.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::model::{Hits, Limit};

/// An answer is used at least this long.
const REFRESH_MIN: Duration = Duration::from_secs(1);
/// And at most this long: a slip in a zone file must not last for days.
const REFRESH_MAX: Duration = Duration::from_secs(3600);
/// For an answer that says that it must not be kept (Istio's `dnsRefreshRate`, which Envoy uses then).
const REFRESH_UNSAID: Duration = Duration::from_secs(60);
/// A name that does not exist is asked for again this soon, or after the time that the zone names.
const NOTHING: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));
/// Pauses after failures: doubled from the first to the last, each shortened at random by up to a half.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// What the name servers said of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Addresses(Vec<IpAddr>, Duration),
    /// The name, or this family of it, does not exist.
    Nothing(Duration),
    Failed(String),
}

/// And of both: IPv4, IPv6.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) families: [Outcome; 2],
}

impl Answer {
    pub(super) fn failed(problem: &str) -> Self {
        Self { families: [Outcome::Failed(problem.to_owned()), Outcome::Failed(problem.to_owned())] }
    }
}

struct Known {
    families: [Vec<IpAddr>; 2],
    /// None while it is being asked for.
    due: Option<Instant>,
    failures: u32,
    answered: bool,
}

/// See the module's header.
pub(super) struct Schedule {
    names: BTreeMap<Arc<str>, Known>,
    names_max: usize,
    addresses_max: usize,
    hits: Hits,
}

impl Schedule {
    pub(super) fn new(names_max: usize, addresses_max: usize, hits: Hits) -> Self {
        Self { names: BTreeMap::new(), names_max, addresses_max, hits }
    }

    /// Takes in which names are wanted; returns how many of them there is no room for.
    pub(super) fn follow<'a>(&mut self, wanted: impl Iterator<Item = &'a Arc<str>>, now: Instant) -> usize {
        let mut old = std::mem::take(&mut self.names);
        let mut refused = 0;
        for name in wanted {
            let fresh =
                || Known { families: Default::default(), due: Some(now), failures: 0, answered: false };
            if self.names.len() < self.names_max {
                self.names.insert(Arc::clone(name), old.remove(name).unwrap_or_else(fresh));
            } else {
                self.hits.hit(Limit::DnsNames);
                refused += 1;
            }
        }
        refused
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        self.names.values().filter_map(|known| known.due).min()
    }

    /// The names whose time has come, at most `room`; they count as being asked for.
    pub(super) fn take_due(&mut self, now: Instant, room: usize) -> Vec<Arc<str>> {
        let due = self.names.iter_mut().filter(|(_, known)| known.due.is_some_and(|due| due <= now));
        let taken = due.take(room).map(|(name, known)| {
            known.due = None;
            Arc::clone(name)
        });
        taken.collect()
    }

    /// Whether every name has been asked for once, with whatever result.
    pub(super) fn all_tried(&self) -> bool {
        self.names.values().all(|known| known.answered || known.failures > 0)
    }

    /// What is known of a name; none before its first answer.
    pub(super) fn addresses(&self, name: &str) -> Option<Arc<[IpAddr]>> {
        let known = self.names.get(name).filter(|known| known.answered)?;
        Some(known.families.iter().flatten().copied().take(self.addresses_max).collect())
    }

    /// Takes an answer in; returns the name's addresses, if anybody said anything and the name is still wanted.
    pub(super) fn answered(
        &mut self,
        name: &str,
        answer: Answer,
        now: Instant,
        random: u64,
    ) -> Option<Arc<[IpAddr]>> {
        let known = self.names.get_mut(name)?;
        let (mut kept, mut missing) = (None::<Duration>, REFRESH_MAX);
        let mut failure = None;
        let mut said = false;
        for (family, outcome) in known.families.iter_mut().zip(answer.families) {
            match outcome {
                Outcome::Addresses(addresses, ttl) => {
                    *family = addresses;
                    said = true;
                    let time =
                        if ttl.is_zero() { REFRESH_UNSAID } else { ttl.clamp(REFRESH_MIN, REFRESH_MAX) };
                    kept = Some(kept.map_or(time, |other| other.min(time)));
                }
                Outcome::Nothing(ttl) => {
                    family.clear();
                    said = true;
                    missing = missing.min(ttl.clamp(NOTHING.0, NOTHING.1));
                }
                Outcome::Failed(problem) => failure = Some(problem),
            }
        }
        // Where one family exists, that the other does not is no reason to hurry.
        let mut wait = kept.unwrap_or(missing);
        match failure {
            None => {
                if known.failures > 0 {
                    tracing::info!(name, "is resolved again");
                }
                known.failures = 0;
            }
            Some(problem) => {
                if known.failures == 0 {
                    tracing::warn!(name, problem, "cannot be resolved; its last addresses stay");
                }
                wait = wait.min(pause(known.failures, random));
                known.failures = known.failures.saturating_add(1);
            }
        }
        known.answered |= said;
        known.due = Some(now + wait);
        if said && known.families.iter().map(Vec::len).sum::<usize>() > self.addresses_max {
            self.hits.hit(Limit::DnsAddresses);
        }
        if said { self.addresses(name) } else { None }
    }
}

fn pause(failures: u32, random: u64) -> Duration {
    let whole = RETRY.0.saturating_mul(1_u32 << failures.min(10)).min(RETRY.1);
    // From a half to the whole.
    whole.mul_f64(0.5 + (random % 1024) as f64 / 2048.0)
}

#[cfg(test)]
mod tests;
