//! The order in which requests go to the CA: pods that wait for their first certificate before renewals, which have
//! half a life of time, and only so many at once. Owns: that order. Never: asks anybody. Called by `manager`.

use std::collections::VecDeque;

use tokio::sync::watch;

use super::Answer;
use crate::model::Identity;

/// Requests under way at once. A node that starts hundreds of pods must not fall upon the CA with all of them.
pub const REQUESTS_MAX: usize = 16;

/// How soon a request is to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Urgency {
    /// Somebody waits, or nothing usable is held.
    Pod,
    /// What is held is still good.
    Renewal,
}

/// A request that has not been made yet.
pub(super) struct Waiting {
    pub(super) identity: Identity,
    pub(super) generation: u64,
    pub(super) answer: watch::Sender<Option<Answer>>,
}

/// What waits, and how much is under way.
#[derive(Default)]
pub(super) struct Queue {
    pods: VecDeque<Waiting>,
    renewals: VecDeque<Waiting>,
    running: usize,
}

impl Queue {
    pub(super) fn push(&mut self, urgency: Urgency, waiting: Waiting) {
        match urgency {
            Urgency::Pod => self.pods.push_back(waiting),
            Urgency::Renewal => self.renewals.push_back(waiting),
        }
    }

    /// A renewal that somebody waits for now is no mere renewal any more.
    pub(super) fn promote(&mut self, identity: &Identity) {
        let at = self.renewals.iter().position(|waiting| waiting.identity == *identity);
        if let Some(waiting) = at.and_then(|at| self.renewals.remove(at)) {
            self.pods.push_back(waiting);
        }
    }

    /// The next request, if one may go; it counts as under way until [`Self::done`].
    pub(super) fn next(&mut self) -> Option<Waiting> {
        if self.running >= REQUESTS_MAX {
            return None;
        }
        let next = self.pods.pop_front().or_else(|| self.renewals.pop_front())?;
        self.running += 1;
        Some(next)
    }

    pub(super) fn done(&mut self) {
        self.running = self.running.saturating_sub(1);
    }

    /// Drops what waits for identities that are not wanted any more; who waits for them learns that.
    pub(super) fn retain(&mut self, keep: impl Fn(&Identity) -> bool) {
        self.pods.retain(|waiting| keep(&waiting.identity));
        self.renewals.retain(|waiting| keep(&waiting.identity));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::testing::identity;

    fn waiting(account: &str) -> Waiting {
        Waiting { identity: identity(account), generation: 0, answer: watch::channel(None).0 }
    }

    fn order(queue: &mut Queue) -> Vec<String> {
        std::iter::from_fn(|| queue.next()).map(|next| next.identity.service_account().to_owned()).collect()
    }

    #[test]
    fn a_new_pod_comes_before_every_renewal_and_a_renewal_that_is_waited_for_too() {
        let mut queue = Queue::default();
        for account in ["old-1", "old-2", "old-3"] {
            queue.push(Urgency::Renewal, waiting(account));
        }
        queue.push(Urgency::Pod, waiting("new-1"));
        queue.promote(&identity("old-3"));
        queue.push(Urgency::Pod, waiting("new-2"));
        assert_eq!(order(&mut queue), ["new-1", "old-3", "new-2", "old-1", "old-2"]);
    }

    #[test]
    fn no_more_than_the_limit_is_under_way_and_an_end_lets_the_next_go() {
        let mut queue = Queue::default();
        for at in 0..REQUESTS_MAX + 2 {
            queue.push(Urgency::Pod, waiting(&format!("sa-{at}")));
        }
        assert_eq!(order(&mut queue).len(), REQUESTS_MAX);
        queue.done();
        assert_eq!(order(&mut queue), [format!("sa-{REQUESTS_MAX}")]);
    }

    #[test]
    fn what_is_forgotten_while_it_waits_is_never_asked_for() {
        let mut queue = Queue::default();
        let (answer, mut flight) = watch::channel(None);
        queue.push(Urgency::Pod, Waiting { identity: identity("gone"), generation: 0, answer });
        queue.push(Urgency::Renewal, waiting("kept"));
        queue.retain(|identity| identity.service_account() == "kept");
        assert_eq!(order(&mut queue), ["kept"]);
        assert!(flight.has_changed().is_err() && flight.borrow_and_update().is_none());
    }
}
