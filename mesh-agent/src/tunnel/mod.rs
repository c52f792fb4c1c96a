//! HBONE tunnels: one mutually authenticated TLS connection between two workloads that carries many TCP streams
//! as HTTP/2 CONNECT requests.
//! Owns: dialling, TLS, HTTP/2, the pool of client tunnels, flow control and its limits, drain.
//! Never: decides whether a stream is allowed (the server's handler does), moves bytes to an application (`proxy::relay`).
//! Called by `proxy`. The HTTP/2 engine is the h2 crate and is named in `client`, `server`, `stream` and `drive`
//! only; everything else speaks in [`Stream`]s.
//!
//! Everything here runs on one data-plane worker: a current-thread runtime with a `LocalSet`.

mod client;
mod coalesce;
mod drive;
mod pool;
mod read_ahead;
mod request;
mod server;
mod stream;
mod validity;

use std::time::Duration;

use crate::model::{Hits, Limit, Reason};

pub use pool::{OpenRequest, Pool, PoolStats, TunnelKey};
pub use request::{ConnectHeaders, REASON_HEADER};
pub use server::{ConnectRequest, Responder, ServeOptions, ServerEnd, serve};
pub use stream::{Stream, StreamError};

/// Streams on one tunnel before the pool opens another.
pub const STREAMS_PER_TUNNEL: usize = 100;
/// Streams a peer may have open on one tunnel at once.
pub const SERVER_STREAMS_MAX: u32 = 200;
/// Bytes a peer may send on a stream that nobody reads, while the tunnel is young, crowded or slow.
pub const STREAM_WINDOW_BYTES: u32 = 352 * 1024;
/// The same once the tunnel moves much data on few streams.
pub const STREAM_WINDOW_GROWN_BYTES: u32 = 1024 * 1024;
// h2 tells the peer of bytes that were read once they are half of what is left of the window, and looks only when some
// are read. Up to a third of a grown window may so be used and not told of; if shrinking took the rest, the peer could
// send nothing more, nothing more would be read, and the stream would stand still for ever.
const _: () = assert!(STREAM_WINDOW_BYTES > STREAM_WINDOW_GROWN_BYTES / 3);
/// Most streams on a tunnel whose windows are grown.
pub const GROWN_STREAMS_MAX: usize = 16;
/// Bytes received on a tunnel, with few streams open, after which its stream windows grow.
pub const GROW_AFTER_BYTES: u64 = 4 * 1024 * 1024;
/// Bytes that all streams of one tunnel may hold unread. More than every stream's window together, so that
/// stalled streams can never use up the connection's window and with it stall the others.
pub const TUNNEL_WINDOW_BYTES: u32 = 80 * 1024 * 1024;
const _: () = assert!(
    GROWN_STREAMS_MAX as u64 * STREAM_WINDOW_GROWN_BYTES as u64
        + (SERVER_STREAMS_MAX as u64 - GROWN_STREAMS_MAX as u64) * STREAM_WINDOW_BYTES as u64
        <= TUNNEL_WINDOW_BYTES as u64
);
/// Largest DATA frame we accept, bytes. Larger ones make bulk cheaper and others wait longer.
pub const FRAME_MAX_BYTES: u32 = 64 * 1024;
/// Bytes queued for sending on one stream.
pub const STREAM_SEND_BUFFER_BYTES: usize = 256 * 1024;
/// Header list of a CONNECT, bytes.
pub const SERVER_HEADER_LIST_BYTES: u32 = 64 * 1024;
/// Header list of an answer, bytes.
pub const CLIENT_HEADER_LIST_BYTES: u32 = 16 * 1024;
/// Streams reset by the peer before anybody looked at them (rapid reset, CVE-2023-44487).
pub const PENDING_ACCEPT_RESETS_MAX: usize = 20;
/// Streams that the peer made us reset by breaking the protocol, over a tunnel's life (MadeYouReset, CVE-2025-8671).
pub const LOCAL_ERROR_RESETS_MAX: usize = 1024;
/// Streams we reset and remember, so that what the peer sent before it knew is ignored.
pub const RESETS_REMEMBERED: usize = 1024;
/// Framing overhead of small DATA frames that nobody reads, bytes (h2 counts 256 less the payload for each).
/// Room for every stream to stall with 64-byte frames in its window would be 206 MiB; a fifth of the tunnel's
/// window is what is granted.
pub const SMALL_FRAMES_OVERHEAD_BYTES: usize = 16 * 1024 * 1024;
/// Streams opened on one tunnel over its life; then the pool opens another, so that the counters above start anew.
pub const STREAMS_EVER_PER_TUNNEL: u64 = 100_000;

/// Tunnels of one pool. One more closes the idlest, or is refused where each has a stream.
pub const TUNNELS_PER_POOL_MAX: usize = 4096;

/// The times and sizes of tunnels. Defaults of times are what Istio's ztunnel uses, so that both sides give up alike.
#[derive(Clone, Debug)]
pub struct TunnelSettings {
    /// TCP connect, TLS and HTTP/2 set-up together.
    pub connect_timeout: Duration,
    /// A client's TLS and HTTP/2 set-up, on the accepting side.
    pub handshake_timeout: Duration,
    /// PING after this long without a received byte.
    pub keepalive_every: Duration,
    /// The tunnel is given up when a PING has no answer for this long.
    pub keepalive_timeout: Duration,
    /// A tunnel without streams is closed after this long.
    pub idle_release: Duration,
    /// Tunnels of one pool.
    pub tunnels_max: usize,
    /// Streams of one tunnel over its life, on the dialling side.
    pub streams_ever: u64,
    /// Where hits of the limits are counted.
    pub hits: Hits,
}

impl Default for TunnelSettings {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(10),
            keepalive_every: Duration::from_secs(10),
            keepalive_timeout: Duration::from_secs(20),
            idle_release: Duration::from_secs(300),
            tunnels_max: TUNNELS_PER_POOL_MAX,
            streams_ever: STREAMS_EVER_PER_TUNNEL,
            hits: Hits::default(),
        }
    }
}

/// Why a stream could not be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct Failure {
    pub reason: Reason,
    pub message: String,
}

impl Failure {
    pub(crate) fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
