//! A relay between any two kinds of carrier: where one side speaks TLS of the agent's own, bytes cannot go from socket to
//! socket. Owns what `relay` owns. Called by `proxy::outbound`.

use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional_with_sizes};
use tokio::time::{Instant, sleep_until};

use super::{RelayEnd, RelayIo};
use crate::proxy::http::io::HttpIo;

/// Buffer of each direction, bytes.
pub const ANY_BUFFER_BYTES: usize = 16 * 1024;

/// One side: counts what is read from it, and remembers whether it broke. Dropped before its good end it is reset.
struct Side<'a> {
    io: Option<HttpIo>,
    read: &'a AtomicU64,
    broken: bool,
}

impl Drop for Side<'_> {
    fn drop(&mut self) {
        if let Some(io) = self.io.take() {
            io.reset();
        }
    }
}

impl Side<'_> {
    fn io(&mut self) -> io::Result<Pin<&mut HttpIo>> {
        self.io.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::BrokenPipe.into())
    }

    fn note<T>(&mut self, done: io::Result<T>) -> io::Result<T> {
        self.broken |= done.is_err();
        done
    }
}

impl AsyncRead for Side<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let done = ready!(self.io()?.poll_read(cx, buf));
        self.read.fetch_add((buf.filled().len() - before) as u64, Ordering::Relaxed);
        Poll::Ready(self.note(done))
    }
}

impl AsyncWrite for Side<'_> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let done = ready!(self.io()?.poll_write(cx, buf));
        Poll::Ready(self.note(done))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let done = ready!(self.io()?.poll_write_vectored(cx, bufs));
        Poll::Ready(self.note(done))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.as_ref().is_some_and(HttpIo::is_write_vectored)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let done = ready!(self.io()?.poll_flush(cx));
        Poll::Ready(self.note(done))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let done = ready!(self.io()?.poll_shutdown(cx));
        Poll::Ready(self.note(done))
    }
}

/// Relays until both sides have finished sending, or one breaks, or nothing moves for too long.
pub async fn any(client: HttpIo, server: HttpIo, io: &RelayIo<'_>) -> RelayEnd {
    let mut client = Side { io: Some(client), read: io.sent, broken: false };
    let mut server = Side { io: Some(server), read: io.received, broken: false };
    let moved = || io.sent.load(Ordering::Relaxed).wrapping_add(io.received.load(Ordering::Relaxed));
    let copied = {
        let size = ANY_BUFFER_BYTES;
        let mut copying = pin!(copy_bidirectional_with_sizes(&mut client, &mut server, size, size));
        loop {
            let before = moved();
            tokio::select! {
                copied = &mut copying => break Some(copied),
                () = sleep_until(Instant::now() + io.idle) => {
                    if moved() == before {
                        break None;
                    }
                }
            }
        }
    };
    match copied {
        None => RelayEnd::Idle,
        Some(Ok(_bytes)) => {
            // Both have said that they are done: an orderly close.
            drop((client.io.take(), server.io.take()));
            RelayEnd::Closed
        }
        Some(Err(_broken)) if client.broken => RelayEnd::ClientReset,
        Some(Err(_broken)) => RelayEnd::ServerReset,
    }
}
