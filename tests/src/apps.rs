//! Applications that run in a pod: servers of the lab's own, nginx and dnsmasq.
//!
//! Each of the lab's servers is one thread in the pod's namespace with a runtime of its own. It remembers whom it saw,
//! because what the application sees is what most tests are about.
mod dnsmasq;
mod grpc;
mod http;
mod nginx;
mod tcp;
mod tls;
mod websocket;

use std::collections::HashMap;
use std::net::{Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::LocalSet;

pub use self::dnsmasq::{NameServer, ZONE};
pub use self::nginx::{Nginx, TlsFiles};
pub use self::tcp::pattern;
use crate::lab::Pod;
use crate::netns::NetNs;
use crate::wait::eventually;

const BACKLOG: i32 = 4096;

/// For a port that was in use a moment ago.
const BIND_DEADLINE: Duration = Duration::from_secs(5);

/// How many connections an app remembers; the oldest go first.
const SEEN_MAX: usize = 1024;

/// One connection as the application saw it; addresses of IPv4 are shown as such.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeenConn {
    /// `getpeername`
    pub peer: SocketAddr,
    /// `getsockname`
    pub local: SocketAddr,
}

/// What an app has seen so far.
#[derive(Debug, Default)]
pub struct Stats {
    accepted: AtomicU64,
    open: AtomicU64,
    received: AtomicU64,
    resets: AtomicU64,
    seen: Mutex<Vec<SeenConn>>,
    requests: AtomicU64,
    asked: Mutex<Vec<Asked>>,
    /// How often each key of a request was met.
    keys: Mutex<HashMap<String, u64>>,
}

/// One HTTP request as the application saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    pub host: String,
    pub path: String,
}

impl Stats {
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Connections that the app still holds.
    pub fn open(&self) -> u64 {
        self.open.load(Ordering::Relaxed)
    }

    /// Bytes read over all connections.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Connections that ended with a reset from the other side.
    pub fn resets(&self) -> u64 {
        self.resets.load(Ordering::Relaxed)
    }

    /// HTTP requests.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// The latest requests, the oldest first.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().clone()
    }

    fn requested(&self, headers: &::http::HeaderMap, uri: &::http::Uri) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let host = headers.get("host").and_then(|host| host.to_str().ok()).map(str::to_owned);
        let host = host.or_else(|| uri.authority().map(ToString::to_string)).unwrap_or_default();
        let mut asked = self.asked.lock();
        if asked.len() == SEEN_MAX {
            asked.remove(0);
        }
        asked.push(Asked { host, path: uri.path_and_query().map(ToString::to_string).unwrap_or_default() });
    }

    /// The number of this request among those with its key, from 1.
    fn nth(&self, key: &str) -> u64 {
        let mut keys = self.keys.lock();
        let count = keys.entry(key.to_owned()).or_default();
        *count += 1;
        *count
    }

    pub fn seen(&self) -> Vec<SeenConn> {
        self.seen.lock().clone()
    }

    pub fn last(&self) -> Option<SeenConn> {
        self.seen.lock().last().copied()
    }

    fn enter(&self, stream: &TcpStream) {
        self.accepted.fetch_add(1, Ordering::Relaxed);
        self.open.fetch_add(1, Ordering::Relaxed);
        if let (Ok(peer), Ok(local)) = (stream.peer_addr(), stream.local_addr()) {
            let mut seen = self.seen.lock();
            if seen.len() == SEEN_MAX {
                seen.remove(0);
            }
            seen.push(SeenConn { peer: canonical(peer), local: canonical(local) });
        }
    }

    fn leave(&self, ended: std::io::Result<()>) {
        self.open.fetch_sub(1, Ordering::Relaxed);
        if ended.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset) {
            self.resets.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// An IPv4 address that a dual-stack socket shows as mapped, as IPv4.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// A running app. Dropping it closes its listener and its connections.
pub struct App {
    port: u16,
    stats: Arc<Stats>,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

/// How an app treats one connection.
type Behaviour = Arc<dyn Fn(TcpStream, Arc<Stats>) -> Serving + Send + Sync>;
type Serving = std::pin::Pin<Box<dyn Future<Output = std::io::Result<()>>>>;

impl App {
    /// Gives every byte back; closes its side when the client has closed its own.
    pub fn echo(pod: &Pod, port: u16) -> Result<Self> {
        Self::start(pod.netns(), port, Arc::new(|stream, stats| Box::pin(tcp::echo(stream, stats))))
    }

    /// Speaks first, then echoes: as SMTP or MySQL would.
    pub fn greeter(pod: &Pod, port: u16, greeting: &str) -> Result<Self> {
        let greeting: Arc<str> = Arc::from(greeting);
        let serve =
            move |stream, stats| -> Serving { Box::pin(tcp::greeter(stream, stats, Arc::clone(&greeting))) };
        Self::start(pod.netns(), port, Arc::new(serve))
    }

    /// Speaks TLS under these names with a certificate of its own, which it gives back; then greets and echoes.
    pub fn tls(
        pod: &Pod,
        port: u16,
        names: &[&str],
        greeting: &str,
    ) -> Result<(Self, CertificateDer<'static>)> {
        let (acceptor, certificate) = tls::acceptor(names)?;
        let greeting: Arc<str> = Arc::from(greeting);
        let serve = move |stream, stats| -> Serving {
            Box::pin(tls::serve(stream, stats, acceptor.clone(), Arc::clone(&greeting)))
        };
        Ok((Self::start(pod.netns(), port, Arc::new(serve))?, certificate))
    }

    /// Accepts and never reads.
    pub fn sink(pod: &Pod, port: u16) -> Result<Self> {
        Self::start(pod.netns(), port, Arc::new(|stream, stats| Box::pin(tcp::sink(stream, stats))))
    }

    /// Reads everything, answers nothing, closes at the end: counts bytes.
    pub fn swallow(pod: &Pod, port: u16) -> Result<Self> {
        Self::start(pod.netns(), port, Arc::new(|stream, stats| Box::pin(tcp::swallow(stream, stats))))
    }

    /// Resets the connection on the first byte.
    pub fn resetter(pod: &Pod, port: u16) -> Result<Self> {
        Self::start(pod.netns(), port, Arc::new(|stream, stats| Box::pin(tcp::resetter(stream, stats))))
    }

    /// Sends this many patterned bytes at once, closes its side, then reads to the end.
    pub fn sender(pod: &Pod, port: u16, bytes: usize) -> Result<Self> {
        Self::start(
            pod.netns(),
            port,
            Arc::new(move |stream, stats| Box::pin(tcp::sender(stream, stats, bytes))),
        )
    }

    /// HTTP/1.1 and HTTP/2 that answers with JSON: `pod`, `version` (the pod's label), `peer`, `local`, `protocol`,
    /// `method`, `path`, `headers`, `body_bytes`; what else it can do, see [`http`].
    pub fn http(pod: &Pod, port: u16) -> Result<Self> {
        Self::impatient_http(pod, port, Duration::MAX)
    }

    /// The same, but a connection on which nothing has come within `patience` is closed, as nginx and many others do.
    pub fn impatient_http(pod: &Pod, port: u16, patience: Duration) -> Result<Self> {
        let version = pod.labels().get("version").cloned();
        let name = Arc::new(http::Name { pod: pod.name().to_owned(), version });
        let serve = move |stream, stats| -> Serving {
            Box::pin(http::serve(stream, stats, Arc::clone(&name), patience))
        };
        Self::start(pod.netns(), port, Arc::new(serve))
    }

    /// A gRPC server by tonic, service `lab.Talk`, that shouts; see [`grpc`].
    pub fn grpc(pod: &Pod, port: u16) -> Result<Self> {
        Self::start(pod.netns(), port, Arc::new(|stream, stats| Box::pin(grpc::serve(stream, stats))))
    }

    /// A WebSocket server by tungstenite that speaks first and then gives every message back; see [`websocket`].
    pub fn websocket(pod: &Pod, port: u16) -> Result<Self> {
        Self::start(pod.netns(), port, Arc::new(|stream, _stats| Box::pin(websocket::serve(stream))))
    }

    /// A server of any behaviour in any namespace.
    pub fn start(ns: &NetNs, port: u16, behaviour: Behaviour) -> Result<Self> {
        let listener = ns.run(|| listen(port))?;
        let stats = Arc::new(Stats::default());
        let (stop, stopped) = watch::channel(false);
        let (inside, seen) = (ns.try_clone()?, Arc::clone(&stats));
        let thread = thread::Builder::new()
            .name(format!("app-{port}"))
            .spawn(move || {
                if let Err(error) = inside.enter().and_then(|()| run(listener, &behaviour, &seen, stopped)) {
                    eprintln!("app on port {port}: {error:#}");
                }
            })
            .context("cannot start an app's thread")?;
        Ok(Self { port, stats, stop, thread: Some(thread) })
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Stops and waits until the listener and the connections are closed.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("app on port {} panicked", self.port);
        }
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.end();
    }
}

/// A dual-stack listener in the calling thread's namespace.
fn listen(port: u16) -> Result<std::net::TcpListener> {
    let socket =
        Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP)).context("cannot make a listener")?;
    socket.set_only_v6(false).context("cannot listen in both families")?;
    socket.set_reuse_address(true).context("cannot set SO_REUSEADDR")?;
    // An app that has just ended may leave its listener, for moments, in a child that another test's thread has
    // started and that has yet to become another program.
    eventually(&format!("port {port} to be free"), BIND_DEADLINE, || {
        socket.bind(&SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port).into())?;
        Ok(true)
    })?;
    socket.listen(BACKLOG).context("cannot listen")?;
    socket.set_nonblocking(true).context("cannot make a listener non-blocking")?;
    Ok(socket.into())
}

fn run(
    listener: std::net::TcpListener,
    behaviour: &Behaviour,
    stats: &Arc<Stats>,
    mut stop: watch::Receiver<bool>,
) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot make a runtime")?;
    let tasks = Rc::new(LocalSet::new());
    let inner = Rc::clone(&tasks);
    runtime.block_on(tasks.run_until(async move {
        let listener = TcpListener::from_std(listener).context("cannot use a listener")?;
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = stop.changed() => return Ok(()),
            };
            // A connection that was reset before it was accepted is none.
            let Ok((stream, _)) = accepted else { continue };
            stats.enter(&stream);
            let (serving, stats) = (behaviour(stream, Arc::clone(stats)), Arc::clone(stats));
            drop(inner.spawn_local(async move { stats.leave(serving.await) }));
        }
    }))
}
