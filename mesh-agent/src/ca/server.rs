//! TLS, HTTP/2 and gRPC around `issue`. Owns: the listener, its limits, the graceful end. Never: looks into a
//! request. Called by `controller`.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::body::Body;
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tonic::{Status, codegen};

use super::issue::Issue;
use super::metrics::CaMetrics;
use crate::identity::wire::{
    CREATE_CERTIFICATE, CertificateRequest, CertificateResponse, MESSAGE_MAX_BYTES, SERVICE,
};
use crate::identity::{Clock, provider, time_provider};

/// Connections at once, handshakes included; a cluster has one per node.
pub const CONNECTIONS_MAX: usize = 8192;
/// TLS handshakes at once.
pub const HANDSHAKES_MAX: usize = 256;
/// Longest TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Requests of one connection at once.
const STREAMS_MAX: u32 = 64;
/// Longest life of one connection: agents spread over the replicas again, and see the certificate of the moment.
const CONNECTION_AGE_MAX: Duration = Duration::from_secs(1800);
/// Longest time for one answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// Largest header list, bytes: a token has one to a few KiB.
const HEADERS_MAX_BYTES: u32 = 32 * 1024;
/// Finished handshakes that wait to be served.
const READY_MAX: usize = 64;
/// Pause after a failed accept (out of descriptors): trying again at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A bound server.
pub struct CaServer {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    issue: Arc<Issue>,
}

impl CaServer {
    pub async fn bind(address: SocketAddr, issue: Arc<Issue>, clock: &Arc<dyn Clock>) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let mut config = ServerConfig::builder_with_details(provider(), time_provider(clock))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(io::Error::other)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::<super::authority::Authority>::clone(&issue.parts.authority) as _);
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self { listener, acceptor: TlsAcceptor::from(Arc::new(config)), issue })
    }

    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` completes; requests under way are answered first.
    pub async fn run(self, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
        let (ready, mut accepted) = mpsc::channel(READY_MAX);
        let accepting =
            tokio::spawn(accept(self.listener, self.acceptor, Arc::clone(&self.issue.parts.metrics), ready));
        let incoming = futures_util::stream::poll_fn(move |context| {
            accepted.poll_recv(context).map(|next: Option<Conn>| next.map(Ok::<_, io::Error>))
        });
        let served = Server::builder()
            .max_concurrent_streams(STREAMS_MAX)
            .max_connection_age(CONNECTION_AGE_MAX)
            .http2_max_header_list_size(HEADERS_MAX_BYTES)
            .http2_keepalive_interval(Some(Duration::from_secs(60)))
            .timeout(ANSWER_TIMEOUT)
            .add_service(CaGrpc { issue: self.issue })
            .serve_with_incoming_shutdown(incoming, stop)
            .await;
        accepting.abort();
        Ok(served?)
    }
}

async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    metrics: Arc<CaMetrics>,
    ready: mpsc::Sender<Conn>,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    loop {
        let (tcp, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "ca: cannot accept; raise the limit of open files if it persists");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (Ok(place), Ok(handshake)) =
            (Arc::clone(&places).try_acquire_owned(), Arc::clone(&handshakes).try_acquire_owned())
        else {
            metrics.connection_refused();
            continue;
        };
        let (acceptor, ready) = (acceptor.clone(), ready.clone());
        tokio::spawn(async move {
            let _small = tcp.set_nodelay(true);
            match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(tcp)).await {
                Ok(Ok(tls)) => {
                    drop(handshake);
                    // Fails only when the server ends.
                    let _ended = ready.send(Conn { tls, peer, _place: place }).await;
                }
                Ok(Err(error)) => tracing::debug!(%peer, %error, "ca: TLS failed"),
                Err(_elapsed) => tracing::debug!(%peer, "ca: TLS took too long"),
            }
        });
    }
}

/// A connection after its handshake; holds its place among the connections.
struct Conn {
    tls: TlsStream<TcpStream>,
    peer: SocketAddr,
    _place: OwnedSemaphorePermit,
}

/// The peer's address, as requests carry it.
#[derive(Clone, Copy, Debug)]
struct Peer(SocketAddr);

impl Connected for Conn {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        Peer(self.peer)
    }
}

impl AsyncRead for Conn {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_read(context, buffer)
    }
}

impl AsyncWrite for Conn {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(context)
    }
}

/// The gRPC service, as generated code would be.
#[derive(Clone)]
struct CaGrpc {
    issue: Arc<Issue>,
}

impl NamedService for CaGrpc {
    const NAME: &'static str = SERVICE;
}

impl tower_service::Service<Request<Body>> for CaGrpc {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = codegen::BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let method = CreateCertificate { issue: Arc::clone(&self.issue) };
        Box::pin(async move {
            if request.uri().path() != CREATE_CERTIFICATE {
                return Ok(Status::unimplemented("no such method").into_http());
            }
            let mut grpc = Grpc::new(tonic_prost::ProstCodec::default())
                .max_decoding_message_size(MESSAGE_MAX_BYTES)
                .max_encoding_message_size(MESSAGE_MAX_BYTES);
            Ok(grpc.unary(method, request).await)
        })
    }
}

struct CreateCertificate {
    issue: Arc<Issue>,
}

impl UnaryService<CertificateRequest> for CreateCertificate {
    type Response = CertificateResponse;
    type Future = Pin<Box<dyn Future<Output = Result<tonic::Response<CertificateResponse>, Status>> + Send>>;

    fn call(&mut self, request: tonic::Request<CertificateRequest>) -> Self::Future {
        let issue = Arc::clone(&self.issue);
        Box::pin(async move {
            let peer = request.extensions().get::<Peer>().map(|peer| peer.0);
            let header = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
            let token = header.and_then(bearer).map(str::to_owned);
            let answer = issue.answer(token.as_deref(), request.get_ref(), peer).await?;
            Ok(tonic::Response::new(answer))
        })
    }
}

/// The token of `Bearer TOKEN`; the scheme's case does not matter (RFC 9110, 11.1).
fn bearer(header: &str) -> Option<&str> {
    let (scheme, token) = header.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}
