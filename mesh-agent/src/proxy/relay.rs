//! Moves bytes between two ends of one connection: TCP and TCP, or TCP and a tunnel's stream.
//! Owns: both ends while it runs; half-close, resets, idleness, byte counts.
//! Never: opens, judges or logs a connection; reads ahead of what the other end takes.
//! Called by `proxy::{outbound, inbound}`.
//!
//! Both directions run in one future on one worker. An idle relay holds no buffer: it waits for readiness, and
//! only then takes a buffer from the worker's pool. Dropping the future before it ends resets both ends, which
//! is how a connection is cut.

mod any;
mod buffer;
mod legs;
mod pump;

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::AtomicU64;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until};

use crate::model::Reason;
use crate::tunnel::{Stream, StreamError};
use legs::TcpLeg;
use pump::{Fault, FromTunnel, Sink, TcpToTcp, ToTunnel};

pub use any::{ANY_BUFFER_BYTES, any};
pub use buffer::{POOLED_BUFFERS_MAX, RELAY_BUFFER_BYTES};
pub use pump::{GATHER_MAX_CHUNKS, MERGE_BELOW_BYTES};

/// Longest time until a relay whose one end cannot take more notices that the other end was reset: a socket
/// that nobody reads tells nobody.
pub const STALL_LOOK_EVERY: Duration = Duration::from_secs(10);

/// Where a relay reports to and how long it may be silent.
#[derive(Clone, Copy, Debug)]
pub struct RelayIo<'a> {
    /// Bytes from the client to the server, added as they are delivered.
    pub sent: &'a AtomicU64,
    /// Bytes from the server to the client.
    pub received: &'a AtomicU64,
    /// The relay ends when no byte has moved in either direction for this long.
    pub idle: Duration,
}

/// Which end of a tunnelled connection the TCP socket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcpSide {
    /// The socket is the client's; the server is behind the tunnel.
    Client,
    /// The socket is the server's; the client is behind the tunnel.
    Server,
}

/// How a relayed connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelayEnd {
    /// Both sides finished sending.
    Closed,
    ClientReset,
    ServerReset,
    Idle,
    /// The tunnel under the stream broke.
    TunnelLost(Reason),
}

impl RelayEnd {
    /// The reason to report; none for a good end.
    pub fn reason(self) -> Option<Reason> {
        match self {
            RelayEnd::Closed => None,
            RelayEnd::ClientReset => Some(Reason::ClientReset),
            RelayEnd::ServerReset => Some(Reason::ServerReset),
            RelayEnd::Idle => Some(Reason::IdleTimeout),
            RelayEnd::TunnelLost(reason) => Some(reason),
        }
    }
}

/// Relays between two sockets until both have finished sending, or one is reset.
pub async fn tcp(client: TcpStream, server: TcpStream, io: &RelayIo<'_>) -> RelayEnd {
    let (mut client, mut server) = (TcpLeg::new(client), TcpLeg::new(server));
    let (mut up, mut down) = (TcpToTcp::default(), TcpToTcp::default());
    let end = watch(io.idle, |cx, look| {
        if look && client.failed() {
            return Turn::end(RelayEnd::ClientReset);
        }
        if look && server.failed() {
            return Turn::end(RelayEnd::ServerReset);
        }
        let sent =
            up.poll(cx, &mut client.tcp, Sink { tcp: &mut server.tcp, ended: down.source_ended() }, io.sent);
        let received = down.poll(
            cx,
            &mut server.tcp,
            Sink { tcp: &mut client.tcp, ended: up.source_ended() },
            io.received,
        );
        let ended = match (sent, received) {
            (Poll::Ready(Err(Fault::Source)), _) | (_, Poll::Ready(Err(Fault::Sink))) => {
                Some(RelayEnd::ClientReset)
            }
            (Poll::Ready(Err(_)), _) | (_, Poll::Ready(Err(_))) => Some(RelayEnd::ServerReset),
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Some(RelayEnd::Closed),
            _ => None,
        };
        Turn { ended, moved: up.moved() + down.moved() }
    })
    .await;
    if end == RelayEnd::Closed {
        client.close();
        server.close();
    }
    end
}

/// Relays between a socket and a tunnel's stream until both have finished sending, or one is reset.
pub async fn tunnel(tcp: TcpStream, mut stream: Stream, side: TcpSide, io: &RelayIo<'_>) -> RelayEnd {
    let mut leg = TcpLeg::new(tcp);
    let (mut out, mut back) = (ToTunnel::default(), FromTunnel::default());
    let (into_tunnel, out_of_tunnel) = match side {
        TcpSide::Client => (io.sent, io.received),
        TcpSide::Server => (io.received, io.sent),
    };
    let end = watch(io.idle, |cx, look| {
        if look && leg.failed() {
            return Turn::end(side.tcp_reset());
        }
        let to = out.poll(cx, &mut leg.tcp, &mut stream, into_tunnel);
        let from =
            back.poll(cx, &mut stream, Sink { tcp: &mut leg.tcp, ended: out.source_ended() }, out_of_tunnel);
        let ended = match (to, from) {
            (Poll::Ready(Err(fault)), _) | (_, Poll::Ready(Err(fault))) => Some(side.end_of(fault)),
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Some(RelayEnd::Closed),
            _ => None,
        };
        Turn { ended, moved: out.moved() + back.moved() }
    })
    .await;
    if end == RelayEnd::Closed {
        leg.close();
    } else {
        stream.reset();
    }
    end
}

impl TcpSide {
    fn tcp_reset(self) -> RelayEnd {
        match self {
            TcpSide::Client => RelayEnd::ClientReset,
            TcpSide::Server => RelayEnd::ServerReset,
        }
    }

    fn end_of(self, fault: Fault) -> RelayEnd {
        match (fault, self) {
            (Fault::Stream(StreamError::Lost(reason)), _) => RelayEnd::TunnelLost(reason),
            (Fault::Stream(_), TcpSide::Client) => RelayEnd::ServerReset,
            (Fault::Stream(_), TcpSide::Server) => RelayEnd::ClientReset,
            (Fault::Source | Fault::Sink, _) => self.tcp_reset(),
        }
    }
}

/// What one poll of both directions gave.
struct Turn {
    ended: Option<RelayEnd>,
    /// Bytes moved so far, both directions.
    moved: u64,
}

impl Turn {
    fn end(end: RelayEnd) -> Self {
        Self { ended: Some(end), moved: 0 }
    }
}

/// Polls the relay, looks at the clock between, and ends it when nothing has moved for `idle`. `turn` is told
/// when it is time to look for a reset that readiness does not show.
async fn watch(idle: Duration, mut turn: impl FnMut(&mut Context<'_>, bool) -> Turn) -> RelayEnd {
    let step = idle.min(STALL_LOOK_EVERY);
    let mut timer = pin!(sleep_until(Instant::now() + step));
    let (mut moved, mut last) = (0, Instant::now());
    poll_fn(move |cx| {
        let mut look = false;
        loop {
            let turned = turn(cx, look);
            if let Some(end) = turned.ended {
                return Poll::Ready(end);
            }
            if turned.moved != moved {
                moved = turned.moved;
                last = Instant::now();
            }
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            let now = Instant::now();
            if now.duration_since(last) >= idle {
                return Poll::Ready(RelayEnd::Idle);
            }
            timer.as_mut().reset((now + step).min(last + idle));
            look = true;
        }
    })
    .await
}

#[cfg(test)]
mod tests;
