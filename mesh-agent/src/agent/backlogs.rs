//! Connections that the backlogs of the pods' listeners dropped. Owns: what was counted of them so far; the kernel
//! has one number per listener and tells nobody. Never: accepts. Called by `agent::view`.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::capture::handover::ListenerSet;
use crate::model::{Hits, Limit};
use crate::net::backlog;

/// The listeners looked at, with the drops that are counted already. Weak: a listener that is withdrawn must close
/// when those who serve it let go of it.
#[derive(Default)]
pub(super) struct Backlogs {
    seen: Mutex<Seen>,
}

/// By pod and namespace cookie.
type Seen = HashMap<(String, u64), (Weak<ListenerSet>, u64)>;

impl Backlogs {
    /// Takes over which listeners there are. What a predecessor's have dropped before is not counted again.
    pub(super) fn update(&self, sets: &[Arc<ListenerSet>]) {
        let mut seen = self.seen.lock();
        let mut before = std::mem::take(&mut *seen);
        for set in sets {
            let key = (set.pod.clone(), set.cookie);
            let set = Arc::downgrade(set);
            let known = before.remove(&key).filter(|(known, _)| known.ptr_eq(&set));
            let counted = known.map_or_else(|| drops(&set), |(_, counted)| counted);
            seen.insert(key, (set, counted));
        }
    }

    /// Counts what was dropped since the last look.
    pub(super) fn count(&self, hits: &Hits) {
        for (set, counted) in self.seen.lock().values_mut() {
            let now = drops(set);
            hits.add(Limit::Backlog, now.saturating_sub(*counted));
            *counted = now;
        }
    }
}

fn drops(set: &Weak<ListenerSet>) -> u64 {
    // A listener that is gone or cannot be asked has nothing to tell.
    let Some(set) = set.upgrade() else { return 0 };
    set.listeners().map(|listener| u64::from(backlog::drops(listener).unwrap_or(0))).sum()
}
