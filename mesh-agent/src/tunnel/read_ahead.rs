//! The socket under a tunnel's TLS: reads ahead while much arrives.
//! Owns: the bytes read and not yet asked for. Never: interprets a byte, holds memory while little arrives.
//! Called by TLS only.
//!
//! TLS asks for one record at a time, 16 KiB at most. In bulk that is a system call for each record, and an
//! acknowledgement for each that wakes the sender. Once a read has filled all the room that was offered, more is
//! likely there: then several records are taken at once and handed out one by one.

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Bytes taken from the socket at once in bulk: eight TLS records.
pub(super) const READ_AHEAD_BYTES: usize = 128 * 1024;
/// Room that a read has to fill to count as bulk; TLS offers 4 KiB before it knows a record's length.
const BULK_MIN_BYTES: usize = 8 * 1024;

/// See the module's header.
pub(super) struct ReadAhead<T = TcpStream> {
    inner: T,
    /// Read and not yet asked for; holds memory only while bulk arrives.
    ahead: BytesMut,
    bulk: bool,
}

impl<T> ReadAhead<T> {
    pub(super) fn new(inner: T) -> Self {
        Self { inner, ahead: BytesMut::new(), bulk: false }
    }

    fn hand_out(&mut self, buf: &mut ReadBuf<'_>) {
        let count = self.ahead.len().min(buf.remaining());
        buf.put_slice(&self.ahead[..count]);
        self.ahead.advance(count);
        if self.ahead.is_empty() && !self.bulk {
            self.ahead = BytesMut::new();
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for ReadAhead<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.ahead.is_empty() && this.bulk {
            this.ahead.reserve(READ_AHEAD_BYTES);
            let polled = pin!(this.inner.read_buf(&mut this.ahead)).poll(cx);
            if polled.is_pending() {
                // The burst is over for now; an idle tunnel holds next to nothing.
                this.ahead = BytesMut::new();
            }
            this.bulk = ready!(polled)? >= BULK_MIN_BYTES;
        } else if this.ahead.is_empty() {
            let (before, room) = (buf.filled().len(), buf.remaining());
            ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
            this.bulk = room >= BULK_MIN_BYTES && buf.filled().len() - before == room;
            return Poll::Ready(Ok(()));
        }
        this.hand_out(buf);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for ReadAhead<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
