//! The accepting side of a tunnel: TLS with a client certificate, HTTP/2, CONNECT requests to a handler.
//! Owns: the limits of an accepted tunnel and its drain. Never: answers 200 by itself.

use std::any::Any;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::{Connection, SendResponse};
use http::{Request, Response};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::client::TLS_BUFFER_BYTES;
use super::coalesce::{Coalesce, IoState, reason_of_io_error};
use super::drive::{Keepalive, Look, Windows, count_flood};
use super::read_ahead::ReadAhead;
use super::request::{read_connect, refusal};
use super::stream::{Live, Stream, StreamError, StreamGuard};
use super::validity::Validity;
use super::*;
use crate::identity::{WorkloadCert, peer_identity};
use crate::model::Identity;

/// How to serve a tunnel.
#[derive(Debug, Default)]
pub struct ServeOptions {
    pub settings: TunnelSettings,
    /// Held until the handshake is over, well or not: a place among those under way.
    pub handshake: Option<Box<dyn Any>>,
}

/// How an accepted tunnel ended, when it ended well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerEnd {
    pub peer: Identity,
    /// CONNECT requests that were handed to the handler.
    pub streams: u64,
}

/// A CONNECT, with the peer as TLS proved it.
#[derive(Clone, Debug)]
pub struct ConnectRequest {
    pub peer: Identity,
    /// The tunnel's other end.
    pub peer_addr: SocketAddr,
    pub target: SocketAddr,
    pub headers: ConnectHeaders,
}

/// Answers one CONNECT. Dropping it unanswered resets the stream.
#[derive(Debug)]
pub struct Responder {
    respond: SendResponse<Bytes>,
    recv: RecvStream,
    guard: StreamGuard,
}

type ServerConnection = Connection<Coalesce<TlsStream<ReadAhead>>, Bytes>;

impl Responder {
    /// Answers 200 and hands over the stream, with whatever the client has sent since its CONNECT.
    pub fn accept(mut self) -> Result<Stream, StreamError> {
        match self.respond.send_response(Response::new(()), false) {
            Ok(send) => Ok(Stream::new(send, self.recv, self.guard)),
            Err(error) if error.is_reset() => Err(StreamError::Reset),
            Err(_) => Err(StreamError::Lost(self.guard.live().reason())),
        }
    }

    /// Answers with the reason's status and name, and ends the stream.
    pub fn refuse(mut self, reason: Reason) {
        // The client may be gone; then nobody needs the answer.
        drop(self.respond.send_response(refusal(reason), true));
    }

    /// Completes when the client gives up before the answer. For a handler that waits for its application.
    pub async fn cancelled(&mut self) -> StreamError {
        match poll_fn(|cx| self.respond.poll_reset(cx)).await {
            Ok(_) => StreamError::Reset,
            Err(error) if error.is_reset() => StreamError::Reset,
            Err(_) => StreamError::Lost(self.guard.live().reason()),
        }
    }
}

/// Serves one accepted connection until the peer closes it. `handler` is called for each CONNECT and its future
/// runs as a task of its own. When `drain` completes, the peer is told to open no further streams (GOAWAY) and
/// this returns when the open ones have ended; dropping it instead resets them. The same happens by itself when one
/// of the two certificates ends: no stream is opened past it, those that are open may finish.
pub async fn serve<H, F, D>(
    tcp: TcpStream,
    cert: Arc<WorkloadCert>,
    options: ServeOptions,
    handler: H,
    drain: D,
) -> Result<ServerEnd, Failure>
where
    H: Fn(ConnectRequest, Responder) -> F,
    F: Future<Output = ()> + 'static,
    D: Future<Output = ()>,
{
    let ServeOptions { settings, handshake } = options;
    let setup = tokio::time::timeout(settings.handshake_timeout, Box::pin(accept(tcp, cert)));
    let accepted = setup.await.map_err(|late| {
        Failure::new(Reason::TlsHandshake, format!("the peer did not finish its handshake: {late}"))
    })??;
    drop(handshake);
    let Accepted { connection, peer, peer_addr, live } = accepted;
    let template = ConnectRequest {
        peer: peer.clone(),
        peer_addr,
        target: peer_addr,
        headers: ConnectHeaders::default(),
    };
    let dispatch = |request: Request<RecvStream>, respond: SendResponse<Bytes>| {
        receive(&template, &live, request, respond, &handler);
        if live.streams.get() == SERVER_STREAMS_MAX as usize {
            // The engine refuses the next one by itself and tells nobody.
            settings.hits.hit(Limit::TunnelStreams);
        }
    };
    let drain = async {
        tokio::select! { () = drain => {}, () = live.validity.ended(settings.keepalive_every) => {} }
    };
    run(connection, &live, &settings, dispatch, drain).await?;
    Ok(ServerEnd { peer, streams: live.opened.get() })
}

struct Accepted {
    connection: ServerConnection,
    peer: Identity,
    peer_addr: SocketAddr,
    live: Rc<Live>,
}

async fn accept(tcp: TcpStream, cert: Arc<WorkloadCert>) -> Result<Accepted, Failure> {
    let failed = |error: &std::io::Error| {
        let reason = match reason_of_io_error(error) {
            Reason::TunnelProtocol => Reason::TlsHandshake,
            reason => reason,
        };
        Failure::new(reason, format!("TLS with the peer failed: {error}"))
    };
    let peer_addr = tcp.peer_addr().map_err(|error| failed(&error))?;
    tcp.set_nodelay(true).map_err(|error| failed(&error))?;
    let mut tls = TlsAcceptor::from(cert.server_config())
        .accept(ReadAhead::new(tcp))
        .await
        .map_err(|error| failed(&error))?;
    let session = tls.get_mut().1;
    // rustls lets a client without ALPN pass; the mesh does not.
    if session.alpn_protocol() != Some(b"h2") {
        return Err(Failure::new(Reason::TlsHandshake, "the peer did not offer ALPN h2"));
    }
    let peer =
        peer_identity(session).map_err(|error| Failure::new(Reason::PeerCertificate, error.to_string()))?;
    let validity = Validity::of(&cert, session)
        .map_err(|error| Failure::new(Reason::PeerCertificate, error.to_string()))?;
    session.set_buffer_limit(Some(TLS_BUFFER_BYTES));
    let io = Rc::new(IoState::default());
    let connection = builder().handshake(Coalesce::new(tls, Rc::clone(&io))).await.map_err(|error| {
        let reason = io.broken.get().unwrap_or(Reason::TunnelProtocol);
        Failure::new(reason, format!("HTTP/2 with the peer failed: {error}"))
    })?;
    Ok(Accepted { connection, peer, peer_addr, live: Live::new(io, validity) })
}

fn builder() -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(TUNNEL_WINDOW_BYTES)
        .max_frame_size(FRAME_MAX_BYTES)
        .max_header_list_size(SERVER_HEADER_LIST_BYTES)
        .header_table_size(4096)
        .max_concurrent_streams(SERVER_STREAMS_MAX)
        .max_send_buffer_size(STREAM_SEND_BUFFER_BYTES)
        .max_concurrent_reset_streams(RESETS_REMEMBERED)
        .max_local_error_reset_streams(Some(LOCAL_ERROR_RESETS_MAX))
        .max_pending_accept_reset_streams(PENDING_ACCEPT_RESETS_MAX)
        .data_frame_budget(SMALL_FRAMES_OVERHEAD_BYTES);
    builder
}

async fn run<D>(
    mut connection: ServerConnection,
    live: &Rc<Live>,
    settings: &TunnelSettings,
    dispatch: impl Fn(Request<RecvStream>, SendResponse<Bytes>),
    drain: D,
) -> Result<(), Failure>
where
    D: Future<Output = ()>,
{
    let mut drain = std::pin::pin!(drain);
    let mut draining = false;
    let mut keepalive = Keepalive::new(connection.ping_pong(), settings);
    let mut windows = Windows::default();
    let ended = poll_fn(|cx| {
        if !draining && drain.as_mut().poll(cx).is_ready() {
            draining = true;
            connection.graceful_shutdown();
        }
        windows.adjust(live, |bytes| connection.set_initial_window_size(bytes).is_ok());
        loop {
            match connection.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => dispatch(request, respond),
                // Told to go, and without streams, the peer may close the socket under our last words.
                Poll::Ready(Some(Err(_))) if draining && live.streams.get() == 0 => {
                    return Poll::Ready(Ok(()));
                }
                Poll::Ready(Some(Err(error))) => {
                    count_flood(&settings.hits, &error);
                    return Poll::Ready(Err(Failure::new(
                        live.reason(),
                        format!("the tunnel broke: {error}"),
                    )));
                }
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Pending => break,
            }
        }
        while let Poll::Ready(look) = keepalive.poll(cx, &live.io) {
            if look == Look::Dead {
                return Poll::Ready(Err(Failure::new(Reason::TunnelTimeout, "the peer answers no PING")));
            }
            // The dialling side closes idle tunnels; this is for peers that do not.
            let idle = live.streams.get() == 0 && live.last_used.get().elapsed() >= settings.idle_release * 2;
            if idle && !draining {
                draining = true;
                settings.hits.hit(Limit::IdleTunnels);
                connection.graceful_shutdown();
                cx.waker().wake_by_ref();
            }
        }
        Poll::Pending
    })
    .await;
    live.closed.set(true);
    *live.ended.borrow_mut() = ended.as_ref().err().map(|failure: &Failure| failure.reason);
    ended
}

/// Reads one request and starts its handler, or answers what is no CONNECT.
fn receive<H, F>(
    template: &ConnectRequest,
    live: &Rc<Live>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    handler: &H,
) where
    H: Fn(ConnectRequest, Responder) -> F,
    F: Future<Output = ()> + 'static,
{
    if live.validity.is_over() {
        // Never looked at, says this reset (RFC 9113, 8.7): the peer may ask again on a tunnel with other certificates.
        return respond.send_reset(h2::Reason::REFUSED_STREAM);
    }
    match read_connect(&request) {
        Ok((target, headers)) => {
            let responder = Responder { respond, recv: request.into_body(), guard: live.enter() };
            let connect = ConnectRequest { target, headers, ..template.clone() };
            drop(tokio::task::spawn_local(handler(connect, responder)));
        }
        Err(failure) => {
            tracing::debug!(peer = %template.peer, %failure, "a request on the tunnel is refused");
            drop(respond.send_response(refusal(failure.reason), true));
        }
    }
}
