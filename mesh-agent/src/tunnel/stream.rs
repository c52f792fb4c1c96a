//! One TCP connection inside a tunnel, as the relays see it: bytes, flow control, half-close, reset.
//! Owns: the two halves of one HTTP/2 stream and its place in the tunnel's count. Never: buffers; what the peer
//! sent waits in the engine inside the stream's window, what we send waits for the stream's window.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use h2::{RecvStream, SendStream};

use super::coalesce::IoState;
use super::validity::Validity;
use crate::model::Reason;

/// How a stream ended badly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The peer reset this stream: its TCP connection was reset.
    #[error("the peer reset the stream")]
    Reset,
    /// The peer takes no more bytes and has said all it had to say (RFC 9113, 8.1: RST_STREAM with NO_ERROR).
    #[error("the peer takes no more bytes")]
    Stopped,
    /// The tunnel under it broke.
    #[error("the tunnel is lost: {0}")]
    Lost(Reason),
}

/// What a tunnel's streams, its driver and the pool know of each other.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) io: Rc<IoState>,
    pub(super) validity: Validity,
    pub(super) streams: Cell<usize>,
    pub(super) opened: Cell<u64>,
    /// Streams the peer allows at once.
    pub(super) peer_max: Cell<usize>,
    /// No new streams: closed, going away, or retired.
    pub(super) closed: Cell<bool>,
    pub(super) last_used: Cell<Instant>,
    /// Why the tunnel ended, where its driver knows better than the I/O.
    pub(super) ended: RefCell<Option<Reason>>,
}

impl Live {
    pub(super) fn new(io: Rc<IoState>, validity: Validity) -> Rc<Self> {
        Rc::new(Self {
            io,
            validity,
            streams: Cell::new(0),
            opened: Cell::new(0),
            peer_max: Cell::new(usize::MAX),
            closed: Cell::new(false),
            last_used: Cell::new(Instant::now()),
            ended: RefCell::new(None),
        })
    }

    pub(super) fn reason(&self) -> Reason {
        let ended = *self.ended.borrow();
        ended.or(self.io.broken.get()).unwrap_or(Reason::TunnelProtocol)
    }

    /// Counts a stream until the guard goes.
    pub(super) fn enter(self: &Rc<Self>) -> StreamGuard {
        self.streams.set(self.streams.get() + 1);
        self.opened.set(self.opened.get() + 1);
        StreamGuard(Rc::clone(self))
    }
}

/// One stream's place in its tunnel's count.
#[derive(Debug)]
pub(super) struct StreamGuard(Rc<Live>);

impl StreamGuard {
    pub(super) fn live(&self) -> &Rc<Live> {
        &self.0
    }
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.0.streams.set(self.0.streams.get() - 1);
        self.0.last_used.set(Instant::now());
    }
}

/// See the module's header. Dropping a stream that has not ended on both sides resets it.
#[derive(Debug)]
pub struct Stream {
    send: SendStream<Bytes>,
    recv: RecvStream,
    guard: StreamGuard,
    send_done: bool,
    recv_done: bool,
}

impl Stream {
    pub(super) fn new(send: SendStream<Bytes>, recv: RecvStream, guard: StreamGuard) -> Self {
        Self { send, recv, guard, send_done: false, recv_done: false }
    }

    /// The next received bytes; `None` when the peer has finished sending. The window they took opens again
    /// only with [`Stream::release`].
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, StreamError>>> {
        if self.recv_done {
            return Poll::Ready(None);
        }
        self.recv.poll_data(cx).map(|item| match item {
            Some(Ok(bytes)) => Some(Ok(bytes)),
            Some(Err(error)) => match self.error(&error) {
                StreamError::Stopped => self.received_all(),
                error => Some(Err(error)),
            },
            None => self.received_all(),
        })
    }

    /// Says that `count` received bytes are delivered, so that the peer may send as many again.
    pub fn release(&mut self, count: usize) {
        // Fails only for more bytes than were received, which the relay cannot have.
        drop(self.recv.flow_control().release_capacity(count));
    }

    /// Waits until some of `want` bytes may be sent and says how many. Asking takes part of the tunnel's window:
    /// ask only with bytes at hand, and give back with [`Stream::cede`] what was not used.
    pub fn poll_capacity(&mut self, cx: &mut Context<'_>, want: usize) -> Poll<Result<usize, StreamError>> {
        self.send.reserve_capacity(want);
        loop {
            let free = self.send.capacity();
            if free > 0 {
                return Poll::Ready(Ok(free.min(want)));
            }
            match self.send.poll_capacity(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(self.error(&error))),
                // The sending side ended, and not by us: the peer's reset or the tunnel's end.
                Poll::Ready(None) => return Poll::Ready(Err(self.closed(cx))),
            }
        }
    }

    /// Gives the window that was asked for and not used back to the tunnel's other streams.
    pub fn cede(&mut self) {
        self.send.reserve_capacity(0);
    }

    /// Sends bytes within what [`Stream::poll_capacity`] granted.
    pub fn send(&mut self, bytes: Bytes) -> Result<(), StreamError> {
        self.send.send_data(bytes, false).map_err(|error| self.error(&error))
    }

    /// Half-close: nothing more will be sent.
    pub fn finish(&mut self) -> Result<(), StreamError> {
        if self.send_done {
            return Ok(());
        }
        self.send.send_data(Bytes::new(), true).map_err(|error| self.error(&error))?;
        self.send_done = true;
        Ok(())
    }

    /// Resets both directions, as an RST does; the peer's relay resets its TCP connection.
    pub fn reset(&mut self) {
        self.send.send_reset(h2::Reason::CANCEL);
        self.send_done = true;
        self.recv_done = true;
    }

    /// Ready when the peer resets or stops the stream, or the tunnel ends. For a relay that waits for its TCP side only.
    pub fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        self.send.poll_reset(cx).map(|result| match result {
            Ok(h2::Reason::NO_ERROR) => StreamError::Stopped,
            Ok(_) => StreamError::Reset,
            Err(error) => self.error(&error),
        })
    }

    /// Writes that the tunnel has handed to TLS so far.
    #[cfg(test)]
    pub(super) fn tunnel_writes(&self) -> u64 {
        self.guard.live().io.writes.get()
    }

    /// Whether both sides have finished.
    pub fn done(&self) -> bool {
        self.send_done && self.recv_done
    }

    fn closed(&mut self, cx: &mut Context<'_>) -> StreamError {
        match self.poll_reset(cx) {
            Poll::Ready(error) => error,
            Poll::Pending => StreamError::Lost(self.guard.live().reason()),
        }
    }

    fn error(&self, error: &h2::Error) -> StreamError {
        match error.reason() {
            Some(h2::Reason::NO_ERROR) if error.is_reset() => StreamError::Stopped,
            _ if error.is_reset() => StreamError::Reset,
            _ => StreamError::Lost(self.guard.live().reason()),
        }
    }

    fn received_all(&mut self) -> Option<Result<Bytes, StreamError>> {
        self.recv_done = true;
        None
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // Said outright: what the engine would say by itself for a side that has finished sending is NO_ERROR,
        // which the peer must take for a good end.
        if !self.send_done || !(self.recv_done || self.recv.is_end_stream()) {
            self.send.send_reset(h2::Reason::CANCEL);
        }
    }
}
