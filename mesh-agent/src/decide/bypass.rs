//! The verdict the kernel keeps for one source and destination: let through untouched, refuse, or capture.
//! Owns: when the agent need not be in the path. Judges with `inbound::admit`, so that a bypassed connection
//! and a relayed one never differ. Called by whoever fills the kernel's verdict cache.

use std::net::SocketAddr;

use super::inbound::{ConnFacts, admit, needs_http};
use super::outbound::{Transport, canonical, transport};
use super::{MESH_PORTS, Snapshot};
use crate::model::{Reason, Workload};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelVerdict {
    /// Both ends are here, nothing needs HTTP, and policy allows it.
    Bypass,
    /// Policy refuses it: ECONNREFUSED at connect.
    Refuse(Reason),
    /// The agent has to see it.
    Capture,
}

/// Decides for pod addresses only: a Service address needs balancing, so it is captured. Routes belong to Services, so a
/// pod's own address has none; what keeps it from the bypass is a policy that asks about requests.
pub fn kernel_verdict<S: Snapshot + ?Sized>(
    world: &S,
    node: &str,
    src: &Workload,
    dst: SocketAddr,
) -> KernelVerdict {
    let dst = canonical(dst);
    if world.service_at(dst.ip()).is_some() || !src.enrolled || &*src.node != node {
        return KernelVerdict::Capture;
    }
    let Transport::Local(workload) = transport(world, node, dst) else {
        return KernelVerdict::Capture;
    };
    if MESH_PORTS.contains(&dst.port()) {
        return KernelVerdict::Refuse(Reason::ConnectMeshPort);
    }
    // Also where no request could pass: a client of HTTP is told by a status.
    if needs_http(world, &workload, dst.port()) {
        return KernelVerdict::Capture;
    }
    // The kernel will use the pod's own address of that family; without one the agent decides.
    let Some(source_ip) = src.address_like(dst.ip()) else {
        return KernelVerdict::Capture;
    };
    let facts = ConnFacts { peer: Some(&src.identity), source_ip, destination: dst };
    admit(world, &workload, &facts).map_or_else(KernelVerdict::Refuse, |()| KernelVerdict::Bypass)
}
