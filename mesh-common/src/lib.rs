//! The ABI between kernel and user space. Owns: map keys and values, flags, events, and the pure
//! helpers both sides share. Never: any I/O. Called by `mesh-ebpf` and by `mesh-agent::capture`.
//!
//! Two conventions hold everywhere: an address is 16 bytes in network order with IPv4 mapped into
//! IPv6, and a port is a `u16` in the byte order of the host.
#![no_std]

mod address;
mod event;
mod flow;
mod listen;
mod pod;

pub use address::Address;
pub use event::{Event, EventKind, payload_bytes};
pub use flow::{Flow, FlowKey, FlowPlace, SocketRole, SocketState, Verdict, VerdictAction, VerdictKey};
pub use listen::{Families, listen_families, listen_key, split_listen_key};
pub use pod::{LocalPod, PodEntry, PodFlags, SavedSettings};

/// Version of every shared layout; part of each pin's file name, so that an agent never adopts
/// maps of another layout.
pub const ABI_VERSION: u32 = 4;

/// Port of the outbound listener inside each pod's network namespace.
pub const PORT_OUTBOUND: u16 = 15001;
/// Port of the inbound plaintext listener inside each pod's network namespace.
pub const PORT_INBOUND: u16 = 15006;
/// Port of the HBONE listener inside each pod's network namespace.
pub const PORT_HBONE: u16 = 15008;

/// Mark that loops a packet back into its own namespace; it never leaves the namespace, because the
/// kernel clears marks where a packet crosses from one to another. The bytes spell "mesh".
pub const MESH_MARK: u32 = 0x6d65_7368;
/// Routing table of the return route, and priority of the rule that leads to it.
pub const ROUTE_TABLE: u32 = 28005;
pub const RULE_PRIORITY: u32 = 101;

/// Pods on one node. A slot names a pod inside the kernel programs.
pub const PODS_MAX: u32 = 1024;
/// Addresses of local pods: two families and a spare for each.
pub const POD_ADDRESSES_MAX: u32 = PODS_MAX * 4;
/// Ports that the pods of one node may listen on together.
pub const LISTEN_MAX: u32 = 65_536;
/// Cached verdicts of one node.
pub const VERDICTS_MAX: u32 = 262_144;
/// Places for live flows that bypass the agent on one node, a power of two: half a megabyte. A flow has two that it may
/// have; where others are in both, it is filed among the spilled.
pub const FLOW_PLACES: u32 = 8_192;
/// Live flows that found their places taken.
pub const SPILLED_MAX: u32 = 65_536;
/// Live legs from the agent to applications, and live probes. Apart from the flows, so that a pod which opens very
/// many bypass flows cannot take the room that other pods' connections need.
pub const LEGS_MAX: u32 = 262_144;
/// Processes whose connections into pods are probes: the kubelet, and for a moment the one it replaces.
pub const PROBERS_MAX: u32 = 16;
/// Listening sockets registered for steering: kinds per slot times slots.
pub const SOCKETS_MAX: u32 = PODS_MAX * SocketKind::PER_SLOT;
/// Bytes of the event ring (a power of two, in whole pages).
pub const EVENTS_BYTES: u32 = 1 << 19;

/// A pod is served only while the agent's heartbeat is younger than this. Generous, because a
/// holder process keeps the listeners while a killed agent is replaced.
pub const HEARTBEAT_MAX_NS: u64 = 10_000_000_000;

/// Index into the map of listening sockets: which of a pod's listeners.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum SocketKind {
    Outbound = 0,
    Inbound = 1,
    Hbone = 2,
}

impl SocketKind {
    /// Indices reserved for each slot; a power of two, so that the kernel shifts.
    pub const PER_SLOT: u32 = 4;
    pub const ALL: [Self; 3] = [Self::Outbound, Self::Inbound, Self::Hbone];

    pub const fn index(self, slot: u32) -> u32 {
        slot * Self::PER_SLOT + self as u32
    }
}

/// Index into the map of settings that change while the programs run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Setting {
    /// Verdicts of another generation than this are void.
    Generation = 0,
    /// `CLOCK_MONOTONIC` nanoseconds of the agent's last sign of life.
    Heartbeat = 1,
    /// Cookie of the node's own network namespace, which is the agent's.
    NodeNetns = 2,
    /// Device and inode of the PID namespace in which the agent has found the probers.
    PidNsDevice = 3,
    PidNsInode = 4,
}

pub const SETTINGS: u32 = 5;

/// Index into the per-CPU counters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Counter {
    /// Connects sent to the agent.
    Captured = 0,
    /// Connects let through by an authorised verdict.
    Bypassed = 1,
    /// Connects refused by a verdict.
    Refused = 2,
    /// Connects refused because the socket was bound to a device that would escape capture.
    BoundDevice = 3,
    /// Connects refused because no agent is alive and the pod fails closed.
    RefusedNoAgent = 4,
    /// Connects that went out directly because no agent is alive and the pod fails open.
    DirectNoAgent = 5,
    /// Connects left alone because the local pod has nobody listening there.
    NotListening = 6,
    /// Packets steered to an outbound listener.
    SteeredOutbound = 7,
    /// Packets steered to a plaintext listener.
    SteeredInbound = 8,
    /// Packets steered to an HBONE listener.
    SteeredHbone = 9,
    /// Packets of legs and authorised flows passed to the application.
    PassedToApplication = 10,
    /// Packets for a port nobody listens on, or for one of the mesh's own ports.
    Dropped = 11,
    /// A leg found its map full, or a flow its places taken and the map of such flows full.
    FlowsFull = 12,
    /// A listening port found its map full.
    ListenFull = 13,
    /// An event found the ring full.
    EventsLost = 14,
    /// Connects of the kubelet into a pod.
    Probes = 15,
    /// Bypassed flows that ended.
    FlowsEnded = 16,
}

impl Counter {
    pub const COUNT: u32 = 17;
    pub const ALL: [(Self, &'static str); Self::COUNT as usize] = [
        (Self::Captured, "captured"),
        (Self::Bypassed, "bypassed"),
        (Self::Refused, "refused"),
        (Self::BoundDevice, "bound_device"),
        (Self::RefusedNoAgent, "refused_no_agent"),
        (Self::DirectNoAgent, "direct_no_agent"),
        (Self::NotListening, "not_listening"),
        (Self::SteeredOutbound, "steered_outbound"),
        (Self::SteeredInbound, "steered_inbound"),
        (Self::SteeredHbone, "steered_hbone"),
        (Self::PassedToApplication, "passed_to_application"),
        (Self::Dropped, "dropped"),
        (Self::FlowsFull, "flows_full"),
        (Self::ListenFull, "listen_full"),
        (Self::EventsLost, "events_lost"),
        (Self::Probes, "probes"),
        (Self::FlowsEnded, "flows_ended"),
    ];
}

#[cfg(test)]
mod tests;
