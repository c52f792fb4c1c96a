//! Servers that speak nothing but bytes.
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use super::Stats;

const BUFFER: usize = 64 << 10;

/// The byte at this place of a patterned stream. Its period is a prime: no block that is lost, doubled or moved by a
/// power of two goes unseen.
pub fn pattern(at: usize) -> u8 {
    u8::try_from(at % 251).unwrap_or(0)
}

/// Over TCP, or over what an application speaks on it.
pub(super) async fn echo(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    stats: Arc<Stats>,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = stream.read(&mut buffer).await?;
        if length == 0 {
            return stream.shutdown().await;
        }
        stats.received.fetch_add(length as u64, Ordering::Relaxed);
        stream.write_all(&buffer[..length]).await?;
        stream.flush().await?;
    }
}

pub(super) async fn greeter(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    stats: Arc<Stats>,
    greeting: Arc<str>,
) -> io::Result<()> {
    stream.write_all(greeting.as_bytes()).await?;
    stream.flush().await?;
    echo(stream, stats).await
}

pub(super) async fn sink(stream: TcpStream, _stats: Arc<Stats>) -> io::Result<()> {
    // Held open, never read, until the app stops.
    std::future::pending::<()>().await;
    drop(stream);
    Ok(())
}

pub(super) async fn swallow(mut stream: TcpStream, stats: Arc<Stats>) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = stream.read(&mut buffer).await?;
        if length == 0 {
            return stream.shutdown().await;
        }
        stats.received.fetch_add(length as u64, Ordering::Relaxed);
    }
}

pub(super) async fn resetter(mut stream: TcpStream, stats: Arc<Stats>) -> io::Result<()> {
    let length = stream.read(&mut [0]).await?;
    stats.received.fetch_add(length as u64, Ordering::Relaxed);
    // Closing with a linger of zero sends a reset.
    stream.set_zero_linger()
}

pub(super) async fn sender(mut stream: TcpStream, stats: Arc<Stats>, bytes: usize) -> io::Result<()> {
    let mut sent = 0;
    while sent < bytes {
        let block: Vec<u8> = (sent..bytes.min(sent + BUFFER)).map(pattern).collect();
        stream.write_all(&block).await?;
        sent += block.len();
    }
    stream.shutdown().await?;
    swallow(stream, stats).await
}
