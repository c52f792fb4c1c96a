//! Sockets, verdicts and flows as the kernel programs know them.

use crate::Address;

/// What a socket is to the mesh. Kept in socket storage, which a pod cannot write.
pub struct SocketRole;

impl SocketRole {
    /// The agent's own socket: never captured.
    pub const OWN: u32 = 1;
    /// The agent's leg to an application: steered past the agent.
    pub const LEG: u32 = 2;
    /// An application's connection that bypasses the agent: the role of a flow, never noted on a socket.
    pub const BYPASS: u32 = 3;
    /// A listening socket that is counted among its pod's ports.
    pub const LISTENER: u32 = 4;
    /// A socket of the kubelet that probes a pod of this node: steered past the agent, as a leg is.
    pub const PROBE: u32 = 5;
}

/// Value of the socket storage.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct SocketState {
    pub role: u32,
    /// For a listener: the epoch of the pod under which it was counted.
    pub epoch: u32,
}

const _: () = assert!(size_of::<SocketState>() == 8);

/// What a verdict says.
pub struct VerdictAction;

impl VerdictAction {
    pub const BYPASS: u32 = 1;
    pub const REFUSE: u32 = 2;
}

/// Key of the verdict cache: who connects to where.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(C)]
pub struct VerdictKey {
    /// Cookie of the opener's network namespace.
    pub cookie: u64,
    pub address: Address,
    /// As wide as leaves no padding: to clear six bytes is a call of a function.
    pub port: u64,
}

const _: () = assert!(size_of::<VerdictKey>() == 32);

impl VerdictKey {
    #[inline(always)]
    pub const fn new(cookie: u64, address: Address, port: u16) -> Self {
        Self { cookie, address, port: port as u64 }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Verdict {
    /// Void unless it is the current generation.
    pub generation: u64,
    pub action: u32,
    pub padding: u32,
}

const _: () = assert!(size_of::<Verdict>() == 16);

/// A connection as its opener sees it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(C)]
pub struct FlowKey {
    pub local: Address,
    pub remote: Address,
    pub local_port: u16,
    pub remote_port: u16,
}

const _: () = assert!(size_of::<FlowKey>() == 36);

/// First places of the flows of one client to one destination.
const NEAR_PLACES: u32 = 64;

impl FlowKey {
    /// Word by word: never a `memcmp`.
    #[inline(always)]
    pub const fn same(&self, other: &Self) -> bool {
        self.local.same(&other.local)
            && self.remote.same(&other.remote)
            && self.local_port == other.local_port
            && self.remote_port == other.remote_port
    }

    /// The two places of the table that the flow may have, below [`FLOW_PLACES`](crate::FLOW_PLACES); the first is tried
    /// first. Linux gives a client every second port in turn: first places of one client and destination are a few that
    /// come round soon, and so are still in the processor's cache; second ones are spread over the whole table.
    #[inline(always)]
    pub const fn places(&self) -> [u32; 2] {
        let (from, to) = (&self.local.0, &self.remote.0);
        let from = from[0] ^ from[1] ^ from[2] ^ from[3];
        let to = to[0] ^ to[1] ^ to[2] ^ to[3];
        // Fibonacci hashing: the best-mixed bits of the product are its highest.
        let mixed = (from ^ to.rotate_left(7) ^ self.remote_port as u32).wrapping_mul(0x9e37_79b1);
        let start = mixed >> (u32::BITS - crate::FLOW_PLACES.ilog2());
        let turn = self.local_port.rotate_right(1) as u32;
        [
            start.wrapping_add(turn % NEAR_PLACES) % crate::FLOW_PLACES,
            start.wrapping_add(turn) % crate::FLOW_PLACES,
        ]
    }
}

/// Who opened a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Flow {
    /// Cookie of the opener's network namespace.
    pub netns_cookie: u64,
    /// Cookie of the opener's socket: names it to `sock_diag`.
    pub socket_cookie: u64,
    /// `CLOCK_MONOTONIC` nanoseconds.
    pub opened_ns: u64,
    /// Slot of the pod in whose namespace the opener lives.
    pub slot: u32,
    pub role: u32,
}

const _: () = assert!(size_of::<Flow>() == 32);

/// A place in the table of live bypassed flows: one cache line. Whoever finds it free takes it by compare-and-swap of
/// the first word, fills the rest and then writes his name there; to free it is to write one word.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct FlowPlace {
    /// Cookie of the opener's socket, or [`FREE`](Self::FREE), or [`TAKEN`](Self::TAKEN).
    pub socket_cookie: u64,
    /// As in [`Flow`], like what follows.
    pub netns_cookie: u64,
    pub opened_ns: u64,
    pub key: FlowKey,
    pub slot: u32,
}

const _: () = assert!(size_of::<FlowPlace>() == 64);

impl FlowPlace {
    pub const FREE: u64 = 0;
    /// Being written.
    pub const TAKEN: u64 = u64::MAX;

    /// Whether a flow is filed here; its key tells which.
    #[inline(always)]
    pub const fn is_filed(socket_cookie: u64) -> bool {
        socket_cookie != Self::FREE && socket_cookie != Self::TAKEN
    }
}

#[cfg(feature = "user")]
mod user {
    // SAFETY: plain integers without implicit padding (asserted by size above); any bytes are a value.
    unsafe impl aya::Pod for super::SocketState {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::VerdictKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Verdict {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::FlowKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Flow {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::FlowPlace {}
}

#[cfg(test)]
mod tests;
