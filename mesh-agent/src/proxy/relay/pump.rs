//! One direction of a relay. Each pump polls until it would block, and yields after a share of work.

use std::collections::VecDeque;
use std::future::Future as _;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWrite as _};
use tokio::net::TcpStream;

use super::buffer::{self, RELAY_BUFFER_BYTES};
use crate::tunnel::{Stream, StreamError};

/// Chunks written to a socket in one system call.
pub const GATHER_MAX_CHUNKS: usize = 16;
/// Chunks smaller than this are copied together when they have to wait.
pub const MERGE_BELOW_BYTES: usize = 4 * 1024;
/// Rounds of one direction before the worker's other connections get their turn.
const ROUNDS_MAX: usize = 4;

/// What ended a direction before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The socket that is read.
    Source,
    /// The socket that is written.
    Sink,
    /// The tunnel's stream.
    Stream(StreamError),
}

/// The socket that takes a direction's bytes.
pub(super) struct Sink<'a> {
    pub(super) tcp: &'a mut TcpStream,
    /// It has finished sending itself.
    pub(super) ended: bool,
}

/// Socket to socket, by copying.
#[derive(Default)]
pub(super) struct TcpToTcp {
    waiting: Option<BytesMut>,
    finished: bool,
    done: bool,
    moved: u64,
}

impl TcpToTcp {
    pub(super) fn moved(&self) -> u64 {
        self.moved
    }

    /// Whether the source has finished sending and the sink has all of it.
    pub(super) fn source_ended(&self) -> bool {
        self.done
    }

    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut TcpStream,
        sink: Sink<'_>,
        count: &AtomicU64,
    ) -> Poll<Result<(), Fault>> {
        let Sink { tcp: sink, ended } = sink;
        let mut rounds = 0;
        while !self.done {
            if let Some(mut waiting) = self.waiting.take() {
                match Pin::new(&mut *sink).poll_write(cx, &waiting) {
                    Poll::Ready(Ok(written)) if written > 0 => {
                        self.moved += written as u64;
                        count.fetch_add(written as u64, Ordering::Relaxed);
                        waiting.advance(written);
                        if waiting.is_empty() {
                            buffer::give(waiting);
                        } else {
                            self.waiting = Some(waiting);
                        }
                    }
                    Poll::Ready(_) => return Poll::Ready(Err(Fault::Sink)),
                    Poll::Pending => {
                        self.waiting = Some(waiting);
                        return Poll::Pending;
                    }
                }
                continue;
            }
            if self.finished {
                ready!(finish(cx, sink, ended))?;
                self.done = true;
                break;
            }
            ready!(share(cx, &mut rounds));
            ready!(source.poll_read_ready(cx)).map_err(|_| Fault::Source)?;
            let mut taken = buffer::take();
            match poll_read(cx, source, &mut taken, RELAY_BUFFER_BYTES) {
                Poll::Ready(Ok(0)) => {
                    buffer::give(taken);
                    self.finished = true;
                }
                Poll::Ready(Ok(_)) => self.waiting = Some(taken),
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Fault::Source)),
                Poll::Pending => {
                    buffer::give(taken);
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// Socket to tunnel. Reads only what the stream's window takes: what it does not stays in the kernel, where it
/// pushes back on the application.
#[derive(Default)]
pub(super) struct ToTunnel {
    source_ended: bool,
    done: bool,
    moved: u64,
}

impl ToTunnel {
    pub(super) fn moved(&self) -> u64 {
        self.moved
    }

    /// Whether the socket has finished sending.
    pub(super) fn source_ended(&self) -> bool {
        self.source_ended
    }

    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut TcpStream,
        stream: &mut Stream,
        count: &AtomicU64,
    ) -> Poll<Result<(), Fault>> {
        match ready!(self.poll_rounds(cx, source, stream, count)) {
            // What the application has still to say, nobody wants to hear: a good end, as with a closed socket.
            Err(Fault::Stream(StreamError::Stopped)) => self.done = true,
            result => return Poll::Ready(result),
        }
        Poll::Ready(Ok(()))
    }

    fn poll_rounds(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut TcpStream,
        stream: &mut Stream,
        count: &AtomicU64,
    ) -> Poll<Result<(), Fault>> {
        let mut rounds = 0;
        while !self.done {
            ready!(share(cx, &mut rounds));
            match source.poll_read_ready(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Fault::Source)),
                // The peer's reset shows here when it has finished sending and this side has nothing to send.
                Poll::Pending => return stream.poll_reset(cx).map(|error| Err(Fault::Stream(error))),
            }
            let window = ready!(stream.poll_capacity(cx, RELAY_BUFFER_BYTES)).map_err(Fault::Stream)?;
            let mut taken = buffer::take();
            match poll_read(cx, source, &mut taken, window) {
                Poll::Ready(Ok(0)) => {
                    buffer::give(taken);
                    stream.cede();
                    stream.finish().map_err(Fault::Stream)?;
                    (self.source_ended, self.done) = (true, true);
                }
                Poll::Ready(Ok(read)) => {
                    stream.send(buffer::into_bytes(taken)).map_err(Fault::Stream)?;
                    stream.cede();
                    self.moved += read as u64;
                    count.fetch_add(read as u64, Ordering::Relaxed);
                }
                Poll::Ready(Err(_)) => {
                    buffer::give(taken);
                    return Poll::Ready(Err(Fault::Source));
                }
                Poll::Pending => {
                    buffer::give(taken);
                    // An idle stream that kept what it asked for would starve the tunnel's other streams.
                    stream.cede();
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// Tunnel to socket. The peer's window opens again as the socket takes the bytes, not before; that window is
/// what bounds the backlog. The backlog is taken out of the engine even while the socket is stalled, and small
/// chunks are put together: a stalled stream that got one byte per frame would otherwise use up the tunnel's
/// budget of small frames and end it for all.
#[derive(Default)]
pub(super) struct FromTunnel {
    chunks: VecDeque<Bytes>,
    /// Small chunks put together; comes after `chunks`.
    tail: BytesMut,
    finished: bool,
    done: bool,
    moved: u64,
}

impl FromTunnel {
    pub(super) fn moved(&self) -> u64 {
        self.moved
    }

    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut Stream,
        sink: Sink<'_>,
        count: &AtomicU64,
    ) -> Poll<Result<(), Fault>> {
        let Sink { tcp: sink, ended } = sink;
        let mut rounds = 0;
        while !self.done {
            ready!(share(cx, &mut rounds));
            self.gather(cx, stream).map_err(Fault::Stream)?;
            if self.is_empty() {
                if !self.finished {
                    return Poll::Pending;
                }
                ready!(finish(cx, sink, ended))?;
                self.done = true;
                break;
            }
            let written = ready!(self.write(cx, sink)).map_err(|_| Fault::Sink)?;
            if written == 0 {
                return Poll::Ready(Err(Fault::Sink));
            }
            stream.release(written);
            self.moved += written as u64;
            count.fetch_add(written as u64, Ordering::Relaxed);
            self.advance(written);
        }
        Poll::Ready(Ok(()))
    }

    fn is_empty(&self) -> bool {
        self.chunks.is_empty() && self.tail.is_empty()
    }

    /// Takes everything the stream has.
    fn gather(&mut self, cx: &mut Context<'_>, stream: &mut Stream) -> Result<(), StreamError> {
        while !self.finished {
            match stream.poll_data(cx) {
                Poll::Ready(Some(Ok(chunk))) => self.push(chunk),
                Poll::Ready(Some(Err(error))) => return Err(error),
                Poll::Ready(None) => self.finished = true,
                Poll::Pending => break,
            }
        }
        Ok(())
    }

    fn push(&mut self, chunk: Bytes) {
        // The first chunk is kept as it is: most are alone, and leave with the write that follows.
        if chunk.len() < MERGE_BELOW_BYTES && !self.is_empty() {
            self.tail.extend_from_slice(&chunk);
            return;
        }
        if !self.tail.is_empty() {
            self.chunks.push_back(self.tail.split().freeze());
        }
        if !chunk.is_empty() {
            self.chunks.push_back(chunk);
        }
    }

    fn write(&self, cx: &mut Context<'_>, sink: &mut TcpStream) -> Poll<io::Result<usize>> {
        let sink = Pin::new(sink);
        let parts = self.chunks.len() + usize::from(!self.tail.is_empty());
        match self.chunks.front() {
            Some(only) if parts == 1 => sink.poll_write(cx, only),
            None => sink.poll_write(cx, &self.tail),
            Some(_) => {
                let mut slices = [IoSlice::new(&[]); GATHER_MAX_CHUNKS];
                let chunks = self.chunks.iter().map(|chunk| &chunk[..]).chain([&self.tail[..]]);
                for (slice, chunk) in slices.iter_mut().zip(chunks) {
                    *slice = IoSlice::new(chunk);
                }
                sink.poll_write_vectored(cx, &slices[..parts.min(GATHER_MAX_CHUNKS)])
            }
        }
    }

    fn advance(&mut self, mut count: usize) {
        while let Some(front) = self.chunks.front_mut() {
            if count < front.len() {
                front.advance(count);
                return;
            }
            count -= front.len();
            self.chunks.pop_front();
        }
        self.tail.advance(count);
        if self.tail.is_empty() {
            // Memory is held only while there is something in it.
            self.chunks = VecDeque::new();
            self.tail = BytesMut::new();
        }
    }
}

/// Yields after [`ROUNDS_MAX`] rounds.
fn share(cx: &mut Context<'_>, rounds: &mut usize) -> Poll<()> {
    *rounds += 1;
    if *rounds > ROUNDS_MAX {
        cx.waker().wake_by_ref();
        return Poll::Pending;
    }
    Poll::Ready(())
}

/// Tells the sink that nothing more comes. One that has finished sending itself is closed next, which says the same.
fn finish(cx: &mut Context<'_>, sink: &mut TcpStream, ended: bool) -> Poll<Result<(), Fault>> {
    if ended {
        return Poll::Ready(Ok(()));
    }
    Pin::new(sink).poll_shutdown(cx).map_err(|_| Fault::Sink)
}

/// One read of at most `limit` bytes. `poll_read` underneath spares the read that would only say "nothing more".
fn poll_read(
    cx: &mut Context<'_>,
    source: &mut TcpStream,
    into: &mut BytesMut,
    limit: usize,
) -> Poll<io::Result<usize>> {
    let mut room = into.limit(limit.min(RELAY_BUFFER_BYTES));
    pin!(source.read_buf(&mut room)).poll(cx)
}

#[cfg(test)]
mod tests;
