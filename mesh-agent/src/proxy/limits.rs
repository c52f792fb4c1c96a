//! Budgets of connections and of accepted tunnels: of the node and of each workload. Owns: the counters and the permits. Never waits:
//! a connection over budget is refused at once with [`Reason::LimitReached`]. Called by `proxy::{outbound, inbound}`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::model::{Limit, Reason};

/// Connections the agent relays at once, all pods together. Below the kernel's table of legs
/// (`mesh_common::LEGS_MAX`), so that a leg to an application always finds a place in it.
pub const MAX_CONNECTIONS_PER_NODE: usize = 65_536;
/// Connections the agent relays at once for one pod, both directions together: one pod's flood leaves
/// room for the others.
pub const MAX_CONNECTIONS_PER_WORKLOAD: usize = 16_384;

/// Tunnels that all pods of the node have accepted at once. A tunnel is a connection of its own, however many it
/// carries, and anybody may open one.
pub const TUNNELS_PER_NODE_MAX: usize = 16_384;
/// The same for one pod.
pub const TUNNELS_PER_WORKLOAD_MAX: usize = 8_192;
/// Tunnels of the node whose peers have not proved yet who they are.
pub const HANDSHAKES_PER_NODE_MAX: usize = 2_048;
/// The same for one pod: a flood of half-open tunnels to it leaves room for those to others.
pub const HANDSHAKES_PER_WORKLOAD_MAX: usize = 512;

/// The budgets of accepted tunnels, of the node or of one workload.
#[derive(Clone, Debug)]
pub struct TunnelBudgets {
    open: Arc<Budget>,
    handshakes: Arc<Budget>,
}

impl TunnelBudgets {
    pub fn new(open: usize, handshakes: usize) -> Self {
        Self { open: Budget::new(open), handshakes: Budget::new(handshakes) }
    }

    pub fn of_node() -> Self {
        Self::new(TUNNELS_PER_NODE_MAX, HANDSHAKES_PER_NODE_MAX)
    }

    pub fn of_workload() -> Self {
        Self::new(TUNNELS_PER_WORKLOAD_MAX, HANDSHAKES_PER_WORKLOAD_MAX)
    }

    /// Places for a tunnel to `workload` and for its handshake, or the limit that has none.
    pub fn enter(&self, workload: &Self) -> Result<(Permit, Permit), Limit> {
        let open = Permit::take(&self.open, &workload.open).map_err(|_full| Limit::Tunnels)?;
        let handshake =
            Permit::take(&self.handshakes, &workload.handshakes).map_err(|_full| Limit::Handshakes)?;
        Ok((open, handshake))
    }
}

/// A counter with a ceiling.
#[derive(Debug)]
pub struct Budget {
    used: AtomicUsize,
    max: usize,
}

impl Budget {
    /// A budget of `max` connections.
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), max })
    }

    /// Connections in use now.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// The ceiling.
    pub fn max(&self) -> usize {
        self.max
    }

    fn take(&self) -> bool {
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| (used < self.max).then_some(used + 1))
            .is_ok()
    }

    fn give_back(&self) {
        self.used.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A place in the node's and the workload's budget, given back on drop.
#[derive(Debug)]
pub struct Permit {
    node: Arc<Budget>,
    workload: Arc<Budget>,
}

impl Permit {
    /// Takes one place in both budgets or none.
    pub fn take(node: &Arc<Budget>, workload: &Arc<Budget>) -> Result<Self, Reason> {
        if !node.take() {
            return Err(Reason::LimitReached);
        }
        if !workload.take() {
            node.give_back();
            return Err(Reason::LimitReached);
        }
        Ok(Self { node: Arc::clone(node), workload: Arc::clone(workload) })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.node.give_back();
        self.workload.give_back();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_open_tunnels_to_one_pod_leave_room_for_others_and_are_told_from_too_many_tunnels() {
        let (node, flooded, quiet) =
            (TunnelBudgets::new(4, 3), TunnelBudgets::new(3, 2), TunnelBudgets::new(3, 2));
        let half_open: Vec<_> = (0..2).map(|_| node.enter(&flooded).unwrap()).collect();
        assert_eq!(node.enter(&flooded).unwrap_err(), Limit::Handshakes);
        let (tunnel, handshake) = node.enter(&quiet).unwrap();
        drop(handshake);
        let tunnels: Vec<Permit> = half_open.into_iter().map(|(tunnel, _handshake)| tunnel).collect();
        let (last, _) = node.enter(&flooded).unwrap();
        assert_eq!(node.enter(&flooded).unwrap_err(), Limit::Tunnels, "the pod has its three");
        assert_eq!(node.enter(&quiet).unwrap_err(), Limit::Tunnels, "the node has its four");
        drop((tunnel, tunnels, last));
        assert_eq!((node.open.used(), node.handshakes.used(), flooded.open.used()), (0, 0, 0));
    }

    #[test]
    fn a_full_workload_leaves_the_node_room_for_others() {
        let node = Budget::new(3);
        let (greedy, modest) = (Budget::new(2), Budget::new(2));
        let held: Vec<_> = (0..2).map(|_| Permit::take(&node, &greedy).unwrap()).collect();
        assert_eq!(Permit::take(&node, &greedy).unwrap_err(), Reason::LimitReached);
        assert_eq!(node.used(), 2, "a refused connection must not keep a place");
        let last = Permit::take(&node, &modest).unwrap();
        assert_eq!(Permit::take(&node, &modest).unwrap_err(), Reason::LimitReached);
        drop((held, last));
        assert_eq!((node.used(), greedy.used(), modest.used()), (0, 0, 0));
    }
}
