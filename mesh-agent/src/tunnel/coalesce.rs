//! The I/O under a tunnel's HTTP/2: gathers what all streams have to say in one turn of the event loop and hands
//! it to TLS in one write.
//! Owns: the gathered bytes, the note of why the connection broke. Never: interprets a byte.
//! Called by the HTTP/2 engine only.
//!
//! HTTP/2 flushes after each frame it can send. Here a flush waits until the scheduler has run every task that
//! was ready and has looked for new events once; the frames of all those tasks then leave together. Where the last
//! turns brought nothing to gather (one busy stream), it does not wait: the look for events costs a system call.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker, ready};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::identity::reason_of_tls_error;
use crate::model::Reason;

/// Bytes gathered before they leave without waiting for the end of the turn. Four TLS records.
pub(super) const GATHER_MAX_BYTES: usize = 64 * 1024;
/// A write at least this large goes to TLS as it is, when nothing is gathered before it: a copy would cost more
/// than a system call.
const DIRECT_MIN_BYTES: usize = 16 * 1024;
/// How long a closed tunnel waits for the peer to close its side.
const LINGER: Duration = Duration::from_secs(1);
/// Bytes that are read and dropped meanwhile; a peer that sends more has its reset.
const LINGER_MAX_BYTES: usize = 64 * 1024;
/// Capacity that an emptied gather buffer keeps: an idle tunnel holds next to nothing.
const KEEP_CAPACITY_BYTES: usize = 4 * 1024;

/// Turns in a row that brought nothing, after which flushes no longer wait.
const VAIN_TURNS_MAX: u8 = 4;
/// Flushes that do not wait, until one finds out again whether waiting brings something.
const HASTY_FLUSHES: u8 = 16;

/// What the wrapper tells the tunnel's owner.
#[derive(Debug, Default)]
pub(super) struct IoState {
    /// Bytes received so far; tells a live tunnel from a dead one.
    pub(super) received: Cell<u64>,
    /// Why the connection broke. The HTTP/2 engine keeps an error's text only.
    pub(super) broken: Cell<Option<Reason>>,
    /// Writes handed to TLS; tests count them.
    pub(super) writes: Cell<u64>,
}

/// See the module's header.
pub(super) struct Coalesce<T> {
    inner: T,
    gathered: Vec<u8>,
    /// Bytes at the front of `gathered` that TLS has taken.
    taken: usize,
    turn: Arc<TurnEnd>,
    waiting: bool,
    worth: Worth,
    linger: Option<Linger>,
    state: Rc<IoState>,
}

/// Whether it is worth to wait for the end of a turn.
#[derive(Debug, Default)]
struct Worth {
    /// Bytes that were gathered when the wait began.
    before: usize,
    /// Waits in a row that brought nothing.
    vain: u8,
    /// Flushes since that did not wait.
    hasty: u8,
}

impl Worth {
    /// Asked once for each flush.
    fn wait(&mut self, gathered: usize) -> bool {
        if self.vain >= VAIN_TURNS_MAX && self.hasty < HASTY_FLUSHES {
            self.hasty += 1;
            return false;
        }
        self.before = gathered;
        true
    }

    fn waited(&mut self, gathered: usize) {
        self.hasty = 0;
        self.vain = if gathered > self.before { 0 } else { self.vain.saturating_add(1) };
    }
}

/// The wait for the peer's end, after ours.
struct Linger {
    end: Pin<Box<tokio::time::Sleep>>,
    dropped: usize,
}

/// Learns from the scheduler that the turn is over.
#[derive(Default)]
struct TurnEnd {
    over: AtomicBool,
    task: Mutex<Option<Waker>>,
}

impl Wake for TurnEnd {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.over.store(true, Ordering::Release);
        let task = self.task.lock().take();
        if let Some(task) = task {
            task.wake();
        }
    }
}

impl<T: AsyncWrite + Unpin> Coalesce<T> {
    pub(super) fn new(inner: T, state: Rc<IoState>) -> Self {
        Self {
            inner,
            gathered: Vec::new(),
            taken: 0,
            turn: Arc::default(),
            waiting: false,
            worth: Worth::default(),
            linger: None,
            state,
        }
    }

    /// Hands everything gathered to TLS.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.taken < self.gathered.len() {
            let written = Pin::new(&mut self.inner).poll_write(cx, &self.gathered[self.taken..]);
            match ready!(note(&self.state, written))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.taken += count,
            }
            self.state.writes.set(self.state.writes.get() + 1);
        }
        self.gathered.clear();
        self.gathered.shrink_to(KEEP_CAPACITY_BYTES);
        self.taken = 0;
        Poll::Ready(Ok(()))
    }

    /// Ready once the turn in which it was first asked is over.
    fn poll_turn_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        *self.turn.task.lock() = Some(cx.waker().clone());
        if !self.waiting {
            self.waiting = true;
            self.turn.over.store(false, Ordering::Release);
            // `yield_now` leaves its waker with the scheduler, which wakes it after it has run out of ready
            // tasks and has polled the driver; outside of a runtime it wakes it at once.
            let waker = Waker::from(Arc::clone(&self.turn));
            let first = pin!(tokio::task::yield_now()).poll(&mut Context::from_waker(&waker));
            if first.is_ready() {
                self.turn.over.store(true, Ordering::Release);
            }
        }
        if self.turn.over.load(Ordering::Acquire) {
            self.waiting = false;
            return Poll::Ready(());
        }
        Poll::Pending
    }

    fn pending_bytes(&self) -> usize {
        self.gathered.len() - self.taken
    }
}

impl<T: AsyncRead + Unpin> Coalesce<T> {
    /// Ready when the peer has closed its side too, or had its time. A socket that is closed with something
    /// unread (a window update is enough) is reset, and what the kernel has not sent by then is lost (RFC 2525, 2.17).
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let linger = self
            .linger
            .get_or_insert_with(|| Linger { end: Box::pin(tokio::time::sleep(LINGER)), dropped: 0 });
        let mut scrap = [0; 4096];
        while linger.dropped < LINGER_MAX_BYTES {
            let mut buf = ReadBuf::new(&mut scrap);
            match Pin::new(&mut self.inner).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => linger.dropped += buf.filled().len(),
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return linger.end.as_mut().poll(cx),
            }
        }
        Poll::Ready(())
    }
}

/// Notes why the connection broke before the engine turns the error into text.
fn note<R>(state: &IoState, result: Poll<io::Result<R>>) -> Poll<io::Result<R>> {
    if let Poll::Ready(Err(error)) = &result
        && state.broken.get().is_none()
    {
        state.broken.set(Some(reason_of_io_error(error)));
    }
    result
}

/// The reason behind an error of a TLS stream.
pub(super) fn reason_of_io_error(error: &io::Error) -> Reason {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(error) => reason_of_tls_error(error),
        None => Reason::TunnelProtocol,
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Coalesce<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.inner).poll_read(cx, buf);
        let count = (buf.filled().len() - before) as u64;
        self.state.received.set(self.state.received.get() + count);
        note(&self.state, result)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Coalesce<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let total: usize = bufs.iter().map(|buf| buf.len()).sum();
        if this.pending_bytes() >= GATHER_MAX_BYTES {
            ready!(this.poll_drain(cx))?;
        }
        if this.pending_bytes() == 0 && total >= DIRECT_MIN_BYTES {
            let written = Pin::new(&mut this.inner).poll_write_vectored(cx, bufs);
            this.state.writes.set(this.state.writes.get() + 1);
            return note(&this.state, written);
        }
        let mut room = GATHER_MAX_BYTES.saturating_sub(this.pending_bytes()).max(1);
        let mut accepted = 0;
        for buf in bufs {
            let take = buf.len().min(room);
            this.gathered.extend_from_slice(&buf[..take]);
            accepted += take;
            room -= take;
            if room == 0 {
                break;
            }
        }
        Poll::Ready(Ok(accepted))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.pending_bytes() > 0 {
            let gathered = this.pending_bytes();
            // A flush that has begun to drain or to wait is polled again: it goes on where it was.
            if this.taken == 0 && (this.waiting || this.worth.wait(gathered)) {
                ready!(this.poll_turn_end(cx));
                this.worth.waited(gathered);
            }
            ready!(this.poll_drain(cx))?;
        }
        note(&this.state, Pin::new(&mut this.inner).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.linger.is_none() {
            ready!(this.poll_drain(cx))?;
            ready!(Pin::new(&mut this.inner).poll_shutdown(cx))?;
        }
        this.poll_linger(cx).map(Ok)
    }
}
