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
    pub port: u16,
    pub padding: [u16; 3],
}

const _: () = assert!(size_of::<VerdictKey>() == 32);

impl VerdictKey {
    #[inline(always)]
    pub const fn new(cookie: u64, address: Address, port: u16) -> Self {
        Self { cookie, address, port, padding: [0; 3] }
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
}
