//! What a new snapshot means for what is already open: live connections are judged again by the code that
//! admitted them, and the kernel's verdicts for same-node flows are computed anew. Owns: those two questions.
//! Pure but for the handles passed in. Called by `agent`.

use std::collections::HashMap;
use std::net::SocketAddr;

use crate::capture::{KernelAction, LiveFlow};
use crate::decide::Snapshot as _;
use crate::decide::bypass::{KernelVerdict, kernel_verdict};
use crate::decide::inbound::{ConnFacts, admit, admit_any_request};
use crate::model::{Reason, Workload};
use crate::observe::{ConnMeta, Direction};
use crate::proxy::worker::Shared;
use crate::world::World;

/// A pod of this node as the kernel's verdicts see it.
pub(super) struct LocalView<'a> {
    pub(super) cookie: u64,
    pub(super) workload: &'a Workload,
    /// Ports somebody listens on.
    pub(super) ports: Vec<u16>,
}

/// Cuts the relayed connections that the current snapshot does not allow.
pub(super) fn cut_forbidden(shared: &Shared) {
    let world = shared.store.load();
    let cut = shared.connections.cut_if(&|meta, http| still_allowed(&world, meta, http));
    if cut > 0 {
        tracing::info!(connections = cut, "cut: the new state does not allow them");
    }
}

/// Whether a relayed connection must end under `world`, and why. One that carries HTTP ends if no request on it would be
/// admitted any more; else each is judged when it comes.
pub(super) fn still_allowed(world: &World, meta: &ConnMeta, http: bool) -> Option<Reason> {
    for party in [&meta.source, &meta.destination] {
        if let Some(workload) = &party.workload
            && world.workload(&workload.id).is_none()
        {
            return Some(Reason::WorkloadGone);
        }
    }
    let identities =
        [&meta.source, &meta.destination].into_iter().filter_map(|party| party.identity.as_ref());
    if identities.into_iter().any(|identity| world.denied(identity)) {
        return Some(Reason::IdentityDenied);
    }
    if meta.direction == Direction::Outbound {
        // The destination's own agent judges it.
        return None;
    }
    let destination = world.workload(&meta.destination.workload.as_ref()?.id)?;
    let facts = ConnFacts {
        peer: meta.source.identity.as_ref(),
        source_ip: meta.source.address.ip(),
        destination: meta.destination.address,
    };
    let judged = match http {
        true => admit_any_request(world, destination, &facts),
        false => admit(world, destination, &facts),
    };
    judged.err().map(|_reason| Reason::PolicyChanged)
}

/// Whether a bypassed flow must end under `world`, and why. `source` is none where its opener's pod is gone.
pub(super) fn flow_forbidden(world: &World, source: Option<&Workload>, flow: &LiveFlow) -> Option<Reason> {
    let (Some(source), Some(destination)) = (source, world.workload_at(flow.remote.ip())) else {
        return Some(Reason::WorkloadGone);
    };
    let facts =
        ConnFacts { peer: Some(&source.identity), source_ip: flow.local.ip(), destination: flow.remote };
    admit(world, destination, &facts).err().map(|_reason| Reason::PolicyChanged)
}

/// The whole table of verdicts for the pods of this node: every pair, every listening port, up to `max`;
/// flows beyond it are captured, relayed and still judged. Returns how many did not fit beside the table.
pub(super) fn verdicts(
    world: &World,
    node: &str,
    pods: &[LocalView<'_>],
    max: usize,
) -> (HashMap<(u64, SocketAddr), KernelAction>, usize) {
    let mut table = HashMap::new();
    let mut left_out = 0;
    for source in pods {
        for target in pods.iter().filter(|target| target.cookie != source.cookie) {
            for address in &target.workload.addresses {
                for port in &target.ports {
                    let to = SocketAddr::new(*address, *port);
                    let action = match kernel_verdict(world, node, source.workload, to) {
                        KernelVerdict::Bypass => KernelAction::Bypass,
                        KernelVerdict::Refuse(_) => KernelAction::Refuse,
                        KernelVerdict::Capture => continue,
                    };
                    if table.len() == max {
                        left_out += 1;
                        continue;
                    }
                    table.insert((source.cookie, to), action);
                }
            }
        }
    }
    (table, left_out)
}

#[cfg(test)]
mod tests;
