//! The three small HTTP/1 servers of the agent: admin (Unix socket), metrics and readiness (TCP).
//! Owns: accepting, its limits and timeouts. Never: knows what is answered (`admin::routes` does).
//! Called by `agent` on the control runtime.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;

use super::AdminSource;
use super::routes::{Missing, Routes};
use super::socket::{self, SocketError, SocketFile, Takeover};
use crate::observe::{Limit, Metrics};

/// Connections that one server serves at a time; further ones are closed at once.
pub const SERVER_CONNECTIONS_MAX: usize = 64;
/// A client that has not sent its whole head by then is cut.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time one connection may live: scrapers reconnect, stuck ones go.
pub const CONNECTION_LIFE_MAX: Duration = Duration::from_secs(300);
/// Largest request head, bytes.
pub const HEAD_MAX_BYTES: usize = 16 * 1024;
/// Pause after a failed accept (out of descriptors): trying again at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Bounds of one server.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub connections: usize,
    pub head_timeout: Duration,
    pub life: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: SERVER_CONNECTIONS_MAX, head_timeout: HEAD_TIMEOUT, life: CONNECTION_LIFE_MAX }
    }
}

/// The admin API on its Unix socket. Dropping it removes the socket's file.
pub struct AdminServer {
    listener: UnixListener,
    _file: SocketFile,
    server: Server,
}

/// Metrics or readiness over TCP.
pub struct HttpServer {
    listener: TcpListener,
    server: Server,
}

#[derive(Clone)]
struct Server {
    routes: Routes,
    metrics: Arc<Metrics>,
    limits: Limits,
}

impl AdminServer {
    /// Binds the socket; must be called within a tokio runtime.
    pub fn bind(
        path: &Path,
        takeover: Takeover,
        source: Arc<dyn AdminSource>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, SocketError> {
        let bound = socket::bind(path, takeover)?;
        let listener = UnixListener::from_std(bound.listener)
            .map_err(|source| SocketError::Io { path: path.to_owned(), source })?;
        let server = Server { routes: Routes::Admin(source), metrics, limits: Limits::default() };
        Ok(Self { listener, _file: bound.file, server })
    }

    /// Serves until dropped.
    pub async fn run(self) -> Infallible {
        let accept = || async { self.listener.accept().await.map(|(stream, _peer)| stream) };
        self.server.serve(accept).await
    }
}

impl HttpServer {
    /// `/metrics` and `/stats/prometheus`.
    pub async fn metrics(address: SocketAddr, metrics: Arc<Metrics>) -> io::Result<Self> {
        let routes = Routes::Metrics(Arc::clone(&metrics));
        Self::bind(address, routes, metrics).await
    }

    /// `/healthz/ready`.
    pub async fn readiness(
        address: SocketAddr,
        source: Arc<dyn AdminSource>,
        metrics: Arc<Metrics>,
    ) -> io::Result<Self> {
        Self::readiness_of(address, Arc::new(move || source.missing()), metrics).await
    }

    /// As [`Self::readiness`], for a process that is no agent.
    pub async fn readiness_of(
        address: SocketAddr,
        missing: Missing,
        metrics: Arc<Metrics>,
    ) -> io::Result<Self> {
        Self::bind(address, Routes::Readiness(missing), metrics).await
    }

    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until dropped.
    pub async fn run(self) -> Infallible {
        let accept = || async { self.listener.accept().await.map(|(stream, _peer)| stream) };
        self.server.serve(accept).await
    }

    async fn bind(address: SocketAddr, routes: Routes, metrics: Arc<Metrics>) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        Ok(Self { listener, server: Server { routes, metrics, limits: Limits::default() } })
    }
}

impl Server {
    async fn serve<A, F, S>(&self, mut accept: A) -> Infallible
    where
        A: FnMut() -> F,
        F: Future<Output = io::Result<S>>,
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let places = Arc::new(Semaphore::new(self.limits.connections));
        loop {
            let stream = match accept().await {
                Ok(stream) => stream,
                Err(error) => {
                    tracing::warn!(%error, "admin: cannot accept; raise the limit of open files if it persists");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                self.metrics.limit_hit(Limit::AdminConnections);
                continue;
            };
            let server = self.clone();
            tokio::spawn(async move {
                server.connection(stream).await;
                drop(place);
            });
        }
    }

    async fn connection<S>(self, stream: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let answered = AtomicBool::new(false);
        let service = service_fn(|request| {
            answered.store(true, Ordering::Relaxed);
            let answer = self.routes.answer(&request);
            async move { Ok::<_, Infallible>(answer) }
        });
        let serving = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.head_timeout)
            .max_buf_size(HEAD_MAX_BYTES)
            .serve_connection(TokioIo::new(stream), service);
        // A client that goes away or sends nonsense is its own problem.
        let over = match tokio::time::timeout(self.limits.life, serving).await {
            Ok(Ok(())) => false,
            // A client that is silent after its answer keeps nobody waiting.
            Ok(Err(error)) => {
                error.is_parse_too_large() || (error.is_timeout() && !answered.load(Ordering::Relaxed))
            }
            Err(_elapsed) => !answered.load(Ordering::Relaxed),
        };
        if over {
            self.metrics.limit_hit(Limit::AdminRequests);
        }
    }
}

#[cfg(test)]
mod tests;
