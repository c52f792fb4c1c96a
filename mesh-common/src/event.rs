//! What the kernel programs tell the agent, one record of fixed size through the ring.

use crate::FlowKey;

/// Values of [`Event::kind`].
pub struct EventKind;

impl EventKind {
    /// A bypassed flow ended; every field is set.
    pub const FLOW_CLOSED: u32 = 1;
    /// A pod began to listen; the port is the key's local port.
    pub const LISTEN_UP: u32 = 2;
    /// The last listener of a port closed.
    pub const LISTEN_DOWN: u32 = 3;
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Event {
    pub kind: u32,
    pub slot: u32,
    pub netns_cookie: u64,
    pub socket_cookie: u64,
    /// `CLOCK_MONOTONIC` nanoseconds.
    pub opened_ns: u64,
    pub closed_ns: u64,
    /// As TCP counts them; see [`payload_bytes`].
    pub bytes_acked: u64,
    pub bytes_received: u64,
    /// Smoothed round trip, microseconds.
    pub srtt_us: u32,
    pub retransmits: u32,
    /// TCP state before the close.
    pub old_state: u32,
    pub key: FlowKey,
}

const _: () = assert!(size_of::<Event>() == 104);

/// TCP states as `sock_ops` numbers them.
const FIN_WAIT2: u32 = 5;
const CLOSE_WAIT: u32 = 8;
const LAST_ACK: u32 = 9;
const CLOSING: u32 = 11;

/// Bytes of payload (sent, received) from TCP's own counts, which also count SYN and FIN as a byte
/// each. A flow that ends in FIN-WAIT-2 has usually had the other side's FIN, which is assumed:
/// there, and only there, the second number may be one too small.
pub const fn payload_bytes(acked: u64, received: u64, old_state: u32) -> (u64, u64) {
    let own_fin = matches!(old_state, FIN_WAIT2 | LAST_ACK | CLOSING) as u64;
    let their_fin = matches!(old_state, FIN_WAIT2 | CLOSE_WAIT | LAST_ACK | CLOSING) as u64;
    (acked.saturating_sub(1 + own_fin), received.saturating_sub(their_fin))
}

#[cfg(feature = "user")]
mod user {
    // SAFETY: plain integers without implicit padding (asserted by size above); any bytes are a value.
    unsafe impl aya::Pod for super::Event {}
}

#[cfg(test)]
mod tests;
