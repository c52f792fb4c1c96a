//! A worker, tunnels over loopback with real TLS, and the applications around them, for tests here and in `proxy`.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::spawn_local;

use super::*;
use crate::identity::WorkloadCert;
use crate::identity::testing::{Authority, identity};
use crate::model::WorkloadId;

/// Ends a test that hangs. No test measures time by it.
const TEST_LIMIT: Duration = Duration::from_secs(90);
/// A CONNECT target for handlers that do not dial it.
pub(crate) const TARGET: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 1, 2, 3)), 8080);

/// Runs a test as a data-plane worker runs its connections.
pub(crate) fn worker<F: Future>(test: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async { tokio::time::timeout(TEST_LIMIT, test).await.expect("the test hangs") })
}

/// Yields until `done`.
pub(crate) async fn until(mut done: impl FnMut() -> bool) {
    while !done() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

pub(crate) async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Two connected sockets.
pub(crate) async fn pair() -> (TcpStream, TcpStream) {
    let (listener, address) = listen().await;
    let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

pub(crate) type Task = Pin<Box<dyn Future<Output = ()>>>;
pub(crate) type Handler = Rc<dyn Fn(ConnectRequest, Responder) -> Task>;

/// A tunnel port.
pub(crate) struct Port {
    pub(crate) address: SocketAddr,
    pub(crate) tunnels: Rc<Cell<usize>>,
    pub(crate) ends: Rc<RefCell<Vec<Result<ServerEnd, Failure>>>>,
    drain: watch::Sender<bool>,
}

impl Port {
    pub(crate) async fn new(cert: &Arc<WorkloadCert>, handler: Handler) -> Self {
        Self::with(cert, handler, TunnelSettings::default()).await
    }

    pub(crate) async fn with(cert: &Arc<WorkloadCert>, handler: Handler, settings: TunnelSettings) -> Self {
        let (listener, address) = listen().await;
        let (drain, draining) = watch::channel(false);
        let port = Self { address, tunnels: Rc::default(), ends: Rc::default(), drain };
        let (tunnels, ends) = (Rc::clone(&port.tunnels), Rc::clone(&port.ends));
        let cert = Arc::clone(cert);
        spawn_local(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                tunnels.set(tunnels.get() + 1);
                let (handler, ends, cert) = (Rc::clone(&handler), Rc::clone(&ends), Arc::clone(&cert));
                let settings = settings.clone();
                let mut draining = draining.clone();
                spawn_local(async move {
                    let drain = async move { drop(draining.wait_for(|drain| *drain).await) };
                    let options = ServeOptions { settings, ..ServeOptions::default() };
                    let end = serve(tcp, cert, options, |c, r| handler(c, r), drain).await;
                    ends.borrow_mut().push(end);
                });
            }
        });
        port
    }

    /// Tells every tunnel, now and later, to go away.
    pub(crate) fn drain(&self) {
        self.drain.send_replace(true);
    }
}

/// A handler from an async closure.
pub(crate) fn handler<F: Future<Output = ()> + 'static>(
    answer: impl Fn(ConnectRequest, Responder) -> F + 'static,
) -> Handler {
    Rc::new(move |connect, responder| Box::pin(answer(connect, responder)))
}

/// Accepts and sends back what it gets, until the client finishes.
pub(crate) fn echo() -> Handler {
    handler(|_, responder| async move {
        let mut stream = responder.accept().unwrap();
        while let Some(Ok(bytes)) = recv(&mut stream).await {
            stream.release(bytes.len());
            if send(&mut stream, bytes).await.is_err() {
                return;
            }
        }
        let _ = stream.finish();
    })
}

/// Accepts and then leaves the stream alone, without reading it, until the test ends.
pub(crate) fn stall() -> Handler {
    handler(|_, responder| async move {
        let _stream = responder.accept().unwrap();
        std::future::pending().await
    })
}

pub(crate) async fn recv(stream: &mut Stream) -> Option<Result<Bytes, StreamError>> {
    poll_fn(|cx| stream.poll_data(cx)).await
}

pub(crate) async fn send(stream: &mut Stream, mut bytes: Bytes) -> Result<(), StreamError> {
    while !bytes.is_empty() {
        let room = poll_fn(|cx| stream.poll_capacity(cx, bytes.len())).await?;
        let part = bytes.split_to(room.min(bytes.len()));
        stream.send(part)?;
        stream.cede();
    }
    Ok(())
}

/// Everything until the peer finishes.
pub(crate) async fn recv_all(stream: &mut Stream) -> Result<Vec<u8>, StreamError> {
    let mut all = Vec::new();
    while let Some(bytes) = recv(stream).await {
        let bytes = bytes?;
        stream.release(bytes.len());
        all.extend_from_slice(&bytes);
    }
    Ok(all)
}

/// One echoed message.
pub(crate) async fn ask(stream: &mut Stream, text: &str) -> String {
    send(stream, Bytes::copy_from_slice(text.as_bytes())).await.unwrap();
    let mut all = Vec::new();
    while all.len() < text.len() {
        let bytes = recv(stream).await.unwrap().unwrap();
        stream.release(bytes.len());
        all.extend_from_slice(&bytes);
    }
    String::from_utf8(all).unwrap()
}

/// The client `web` and the server `api` of one mesh.
pub(crate) struct Mesh {
    pub(crate) authority: Authority,
    pub(crate) client: Arc<WorkloadCert>,
    pub(crate) server: Arc<WorkloadCert>,
}

impl Mesh {
    pub(crate) async fn new() -> Self {
        let authority = Authority::new();
        let (client, server) = (authority.cert("web").await, authority.cert("api").await);
        Self { authority, client, server }
    }

    pub(crate) fn request(&self, port: SocketAddr, target: SocketAddr) -> OpenRequest {
        request(&self.client, port, target)
    }

    pub(crate) async fn open(&self, pool: &Pool, port: SocketAddr) -> Result<Stream, Failure> {
        self.open_to(pool, port, TARGET).await
    }

    pub(crate) async fn open_to(
        &self,
        pool: &Pool,
        port: SocketAddr,
        target: SocketAddr,
    ) -> Result<Stream, Failure> {
        pool.open(self.request(port, target), move || TcpStream::connect(port)).await
    }
}

/// A request from a certificate's holder to `api`.
pub(crate) fn request(cert: &Arc<WorkloadCert>, port: SocketAddr, target: SocketAddr) -> OpenRequest {
    OpenRequest {
        key: TunnelKey {
            source: cert.identity.clone(),
            destination: identity("api"),
            address: port,
            source_ip: Ipv4Addr::LOCALHOST.into(),
            source_pod: WorkloadId("test/client".into()),
            destination_pod: WorkloadId("test/server".into()),
        },
        cert: Arc::clone(cert),
        target,
        headers: ConnectHeaders::default(),
    }
}
