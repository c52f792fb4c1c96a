//! The bytes under HTTP, at either end: a socket or a tunnel's stream. hyper sees it through [`hyper_util::rt::TokioIo`].
//! Owns: reading, writing, half-close and byte counts of one connection. Never: parses. Called by `proxy::http`.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::net::sock;
use crate::observe::Conn;
use crate::tunnel::{Stream, StreamError};

/// Bytes of one write into a tunnel's stream; more waits for the next turn.
pub const TUNNEL_WRITE_MAX_BYTES: usize = 64 * 1024;

/// Where the bytes go.
enum Wire {
    Tcp(TcpStream),
    Tunnel(Box<TunnelWire>),
    /// TLS of the agent's own over another wire.
    Tls(Box<TlsStream<HttpIo>>),
}

/// A tunnel's stream and what it delivered but nobody has taken yet.
struct TunnelWire {
    stream: Stream,
    unread: Bytes,
}

/// Which end of the connection in the table this wire is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Client,
    Server,
}

/// One end's bytes; see the module's header.
pub struct HttpIo {
    wire: Wire,
    /// Read already, by whoever had the wire before.
    ahead: Bytes,
    count: Option<(Rc<Conn>, End)>,
    /// All bytes read so far.
    read: Rc<Cell<u64>>,
}

impl HttpIo {
    pub fn tcp(stream: TcpStream) -> Self {
        Self::new(Wire::Tcp(stream))
    }

    pub fn tunnel(stream: Stream) -> Self {
        Self::new(Wire::Tunnel(Box::new(TunnelWire { stream, unread: Bytes::new() })))
    }

    pub fn tls(stream: TlsStream<Self>) -> Self {
        Self::new(Wire::Tls(Box::new(stream)))
    }

    fn new(wire: Wire) -> Self {
        Self { wire, ahead: Bytes::new(), count: None, read: Rc::new(Cell::new(0)) }
    }

    /// Counts this end's bytes for a connection in the table.
    #[must_use]
    pub fn counted(mut self, conn: Rc<Conn>, end: End) -> Self {
        self.count = Some((conn, end));
        self
    }

    /// Gives bytes back that were read too early; they are read again first.
    #[must_use]
    pub fn rewound(mut self, ahead: Bytes) -> Self {
        self.ahead = match self.ahead.is_empty() {
            true => ahead,
            false => [ahead, self.ahead].concat().into(),
        };
        self
    }

    /// The number of bytes read, for who looks on.
    pub fn bytes_read(&self) -> Rc<Cell<u64>> {
        Rc::clone(&self.read)
    }

    /// Closes so that the peer learns that the connection broke.
    pub fn reset(self) {
        match self.wire {
            Wire::Tcp(tcp) => {
                if let Err(error) = sock::set_linger_rst(&tcp) {
                    tracing::debug!(%error, "a connection could not be reset");
                }
            }
            Wire::Tunnel(mut tunnel) => tunnel.stream.reset(),
            Wire::Tls(tls) => tls.into_inner().0.reset(),
        }
    }

    fn was_read(&self, bytes: usize) {
        self.read.set(self.read.get().wrapping_add(bytes as u64));
        if let Some((conn, end)) = &self.count {
            let count = if *end == End::Client { conn.sent() } else { conn.received() };
            count.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    }

    fn was_written(&self, bytes: usize) {
        if let Some((conn, end)) = &self.count {
            let count = if *end == End::Client { conn.received() } else { conn.sent() };
            count.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    }
}

impl AsyncRead for HttpIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        if this.ahead.is_empty() {
            match &mut this.wire {
                Wire::Tcp(tcp) => ready!(Pin::new(tcp).poll_read(cx, buf))?,
                Wire::Tunnel(tunnel) => ready!(tunnel.poll_read(cx, buf))?,
                Wire::Tls(tls) => ready!(Pin::new(&mut **tls).poll_read(cx, buf))?,
            }
        } else {
            let taken = this.ahead.len().min(buf.remaining());
            buf.put_slice(&this.ahead.split_to(taken));
        }
        this.was_read(buf.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for HttpIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(match &mut self.wire {
            Wire::Tcp(tcp) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Wire::Tunnel(tunnel) => tunnel.poll_write(cx, bufs),
            Wire::Tls(tls) => Pin::new(&mut **tls).poll_write_vectored(cx, bufs),
        })?;
        self.was_written(written);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Neither a socket nor a stream keeps anything back; TLS may.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.wire {
            Wire::Tcp(_) | Wire::Tunnel(_) => Poll::Ready(Ok(())),
            Wire::Tls(tls) => Pin::new(&mut **tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.wire {
            Wire::Tcp(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Wire::Tunnel(tunnel) => Poll::Ready(tunnel.stream.finish().map_err(failed)),
            Wire::Tls(tls) => Pin::new(&mut **tls).poll_shutdown(cx),
        }
    }
}

impl TunnelWire {
    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.unread.is_empty() {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(chunk)) => self.unread = chunk,
                Some(Err(error)) => return Poll::Ready(Err(failed(error))),
                None => return Poll::Ready(Ok(())),
            }
        }
        let taken = self.unread.len().min(buf.remaining());
        buf.put_slice(&self.unread[..taken]);
        self.unread.advance(taken);
        // The peer may send as much again: what was taken is bounded by whoever reads.
        self.stream.release(taken);
        Poll::Ready(Ok(()))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let wanted = bufs.iter().map(|buf| buf.len()).sum::<usize>().min(TUNNEL_WRITE_MAX_BYTES);
        if wanted == 0 {
            return Poll::Ready(Ok(0));
        }
        let mut room = ready!(self.stream.poll_capacity(cx, wanted)).map_err(failed)?;
        let mut gathered = BytesMut::with_capacity(room);
        for buf in bufs {
            let part = buf.len().min(room);
            gathered.extend_from_slice(&buf[..part]);
            room -= part;
        }
        let written = gathered.len();
        self.stream.send(gathered.freeze()).map_err(failed)?;
        self.stream.cede();
        Poll::Ready(Ok(written))
    }
}

fn failed(error: StreamError) -> io::Error {
    let kind = match error {
        StreamError::Reset | StreamError::Lost(_) => io::ErrorKind::ConnectionReset,
        StreamError::Stopped => io::ErrorKind::BrokenPipe,
    };
    io::Error::new(kind, error)
}

#[cfg(test)]
mod tests;
