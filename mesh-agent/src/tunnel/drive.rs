//! What keeps a tunnel alive and its windows right, on either side.
//! Owns: the keepalive PING and the size of the stream windows. Called by `client` and `server`.

use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use h2::{Ping, PingPong};
use tokio::time::{Interval, MissedTickBehavior, interval_at};

use super::coalesce::IoState;
use super::stream::Live;
use super::{
    GROW_AFTER_BYTES, GROWN_STREAMS_MAX, Hits, Limit, STREAM_WINDOW_BYTES, STREAM_WINDOW_GROWN_BYTES,
    TunnelSettings,
};

/// PINGs a peer that has been silent and notices when it stays so.
pub(super) struct Keepalive {
    ping: Option<PingPong>,
    ticks: Interval,
    timeout: Duration,
    seen: u64,
    sent: Option<Instant>,
}

/// What a look at the clock says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// A tick passed and the peer is alive, or not yet given up.
    Tick,
    /// No answer for too long.
    Dead,
}

impl Keepalive {
    pub(super) fn new(ping: Option<PingPong>, settings: &TunnelSettings) -> Self {
        let every = settings.keepalive_every.max(Duration::from_millis(1));
        let mut ticks = interval_at(tokio::time::Instant::now() + every, every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { ping, ticks, timeout: settings.keepalive_timeout, seen: 0, sent: None }
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>, io: &IoState) -> Poll<Look> {
        if self.sent.is_some()
            && let Some(ping) = &mut self.ping
            && ping.poll_pong(cx).is_ready()
        {
            self.sent = None;
        }
        if self.ticks.poll_tick(cx).is_pending() {
            return Poll::Pending;
        }
        let received = io.received.get();
        let silent = received == self.seen;
        self.seen = received;
        match self.sent {
            // Any byte proves life as well as the answer does.
            Some(_) if !silent => self.sent = Some(Instant::now()),
            Some(sent) if sent.elapsed() >= self.timeout => return Poll::Ready(Look::Dead),
            Some(_) => {}
            None if silent => self.send(cx),
            None => {}
        }
        Poll::Ready(Look::Tick)
    }

    fn send(&mut self, cx: &mut Context<'_>) {
        if let Some(ping) = &mut self.ping
            && ping.send_ping(Ping::opaque()).is_ok()
        {
            self.sent = Some(Instant::now());
            // Registers for the answer; it cannot be here yet.
            drop(ping.poll_pong(cx));
        }
    }
}

/// Counts a tunnel that ended because its peer cost us more than itself (the engine says ENHANCE_YOUR_CALM).
pub(super) fn count_flood(hits: &Hits, error: &h2::Error) {
    if error.is_library() && error.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM) {
        hits.hit(Limit::TunnelFlood);
    }
}

/// Grows the stream windows of a tunnel that moves much on few streams, and shrinks them again when it fills:
/// the product of the two is what a peer can make us hold.
#[derive(Debug, Default)]
pub(super) struct Windows {
    grown: bool,
    /// Bytes received when the tunnel last had few streams, or changed.
    since: u64,
}

impl Windows {
    /// `set` announces a window for all streams; it may refuse while an earlier change is not acknowledged.
    pub(super) fn adjust(&mut self, live: &Live, mut set: impl FnMut(u32) -> bool) {
        let (streams, received) = (live.streams.get(), live.io.received.get());
        let crowded = streams > GROWN_STREAMS_MAX;
        if crowded || streams == 0 {
            self.since = received;
        }
        if crowded && self.grown && set(STREAM_WINDOW_BYTES) {
            self.grown = false;
        } else if !self.grown && received - self.since >= GROW_AFTER_BYTES && set(STREAM_WINDOW_GROWN_BYTES) {
            self.grown = true;
        }
    }
}
