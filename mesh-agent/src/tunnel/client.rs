//! The dialling side of one tunnel: TCP, TLS, HTTP/2, and CONNECT requests on it.

use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use h2::client::{Connection, SendRequest};
use http::StatusCode;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::coalesce::{Coalesce, IoState, reason_of_io_error};
use super::drive::{Keepalive, Look, Windows, count_flood};
use super::pool::{OpenRequest, TunnelKey};
use super::read_ahead::ReadAhead;
use super::request::{connect_request, read_refusal};
use super::stream::{Live, Stream, StreamGuard};
use super::validity::Validity;
use super::*;
use crate::identity::WorkloadCert;

/// Plaintext that TLS takes in one go: a gathered write and a frame leave in one system call.
pub(super) const TLS_BUFFER_BYTES: usize = 256 * 1024;

pub(super) type ClientConnection = Connection<Coalesce<TlsStream<ReadAhead>>, Bytes>;

/// A tunnel that is set up, with the connection that its driver polls.
pub(super) struct Connected {
    pub(super) tunnel: Tunnel,
    pub(super) connection: ClientConnection,
}

/// A tunnel as the pool holds it. Dropping it closes the connection once its streams have ended.
pub(super) struct Tunnel {
    send: SendRequest<Bytes>,
    pub(super) live: Rc<Live>,
    /// The certificate it was authenticated with.
    pub(super) cert: Arc<WorkloadCert>,
}

/// Why a CONNECT on a tunnel did not give a stream.
#[derive(Debug)]
pub(super) enum OpenError {
    /// The tunnel takes no more streams; nothing was forwarded, another tunnel may.
    TunnelGone(Failure),
    Failed(Failure),
}

/// Sets up a tunnel over what `dial` gives, within the connect timeout.
pub(super) async fn connect<F>(
    key: TunnelKey,
    cert: Arc<WorkloadCert>,
    dial: F,
    timeout: Duration,
) -> Result<Connected, Failure>
where
    F: Future<Output = io::Result<TcpStream>>,
{
    let address = key.address;
    match tokio::time::timeout(timeout, connect_steps(key, cert, dial)).await {
        Ok(result) => result,
        Err(_) => Err(Failure::new(
            Reason::ConnectTimeout,
            format!("no tunnel to {address} within {} s", timeout.as_secs_f32()),
        )),
    }
}

async fn connect_steps<F>(key: TunnelKey, cert: Arc<WorkloadCert>, dial: F) -> Result<Connected, Failure>
where
    F: Future<Output = io::Result<TcpStream>>,
{
    let address = key.address;
    let tcp = dial.await.map_err(|error| dial_failure(address, &error))?;
    tcp.set_nodelay(true).map_err(|error| dial_failure(address, &error))?;
    let config = cert.client_config(std::slice::from_ref(&key.destination));
    // No name is sent; rustls wants one all the same.
    let name = ServerName::IpAddress(address.ip().into());
    let mut tls = TlsConnector::from(config)
        .connect(name, ReadAhead::new(tcp))
        .await
        .map_err(|error| Failure::new(tls_reason(&error), format!("TLS to {address} failed: {error}")))?;
    if tls.get_ref().1.alpn_protocol() != Some(b"h2") {
        return Err(Failure::new(Reason::TlsHandshake, format!("{address} did not agree on h2")));
    }
    let validity = Validity::of(&cert, tls.get_ref().1)
        .map_err(|error| Failure::new(Reason::PeerCertificate, error.to_string()))?;
    // TLS counts whole seconds; dialling again in the one that is left would find the same certificate.
    if validity.is_over() {
        return Err(Failure::new(
            Reason::PeerCertificate,
            format!("the certificate of {address} has expired"),
        ));
    }
    tls.get_mut().1.set_buffer_limit(Some(TLS_BUFFER_BYTES));
    let io = Rc::new(IoState::default());
    let (send, connection) =
        builder().handshake(Coalesce::new(tls, Rc::clone(&io))).await.map_err(|error| {
            Failure::new(Reason::TunnelProtocol, format!("HTTP/2 to {address} failed: {error}"))
        })?;
    let live = Live::new(io, validity);
    Ok(Connected { tunnel: Tunnel { send, live, cert }, connection })
}

fn builder() -> h2::client::Builder {
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(TUNNEL_WINDOW_BYTES)
        .max_frame_size(FRAME_MAX_BYTES)
        .max_header_list_size(CLIENT_HEADER_LIST_BYTES)
        .header_table_size(4096)
        .max_send_buffer_size(STREAM_SEND_BUFFER_BYTES)
        .max_concurrent_reset_streams(RESETS_REMEMBERED)
        .max_local_error_reset_streams(Some(LOCAL_ERROR_RESETS_MAX))
        .data_frame_budget(SMALL_FRAMES_OVERHEAD_BYTES)
        // What holds until the peer's SETTINGS arrive.
        .initial_max_send_streams(STREAMS_PER_TUNNEL)
        .enable_push(false);
    builder
}

/// Runs a tunnel until it ends. `retire` is called when it has had no stream for long, or one of its certificates
/// has ended, and told the limit that was reached, if it was one; dropping the tunnel there is what closes it, once its
/// streams have ended.
pub(super) async fn drive(
    mut connection: ClientConnection,
    live: Rc<Live>,
    settings: &TunnelSettings,
    retire: impl Fn(Option<Limit>),
) {
    let mut keepalive = Keepalive::new(connection.ping_pong(), settings);
    let mut windows = Windows::default();
    let mut expiry = pin!(live.validity.ended(settings.keepalive_every));
    let mut expired = false;
    let ended = poll_fn(|cx| {
        if !expired && expiry.as_mut().poll(cx).is_ready() {
            expired = true;
            retire(None);
        }
        windows.adjust(&live, |bytes| connection.set_initial_window_size(bytes).is_ok());
        let polled = Pin::new(&mut connection).poll(cx);
        live.peer_max.set(connection.max_concurrent_send_streams());
        if let Poll::Ready(result) = polled {
            return Poll::Ready(result.err().map(|error| {
                count_flood(&settings.hits, &error);
                live.reason()
            }));
        }
        while let Poll::Ready(look) = keepalive.poll(cx, &live.io) {
            if look == Look::Dead {
                return Poll::Ready(Some(Reason::TunnelTimeout));
            }
            if live.streams.get() == 0 && live.last_used.get().elapsed() >= settings.idle_release {
                retire(Some(Limit::IdleTunnels));
            }
        }
        Poll::Pending
    })
    .await;
    live.closed.set(true);
    *live.ended.borrow_mut() = ended;
}

impl Tunnel {
    /// A place for a stream, when there is one; `ever` streams are the tunnel's life.
    pub(super) fn enter(&self, ever: u64) -> Option<StreamGuard> {
        let free = !self.live.closed.get() && !self.live.validity.is_over() && self.full(ever).is_none();
        free.then(|| self.live.enter())
    }

    /// The limit that keeps the next stream away.
    pub(super) fn full(&self, ever: u64) -> Option<Limit> {
        if self.live.opened.get() >= ever {
            return Some(Limit::TunnelLife);
        }
        let limit = STREAMS_PER_TUNNEL.min(self.live.peer_max.get()).max(1);
        (self.live.streams.get() >= limit).then_some(Limit::TunnelStreams)
    }

    /// A handle for one CONNECT, so that the pool is not borrowed while it waits.
    pub(super) fn sender(&self) -> SendRequest<Bytes> {
        self.send.clone()
    }
}

/// Sends one CONNECT and waits for its answer. No byte of the application is taken before the 200.
pub(super) async fn open(
    mut send: SendRequest<Bytes>,
    guard: StreamGuard,
    request: &OpenRequest,
    hits: &Hits,
) -> Result<Stream, OpenError> {
    let head = connect_request(request.target, &request.headers).map_err(OpenError::Failed)?;
    poll_fn(|cx| send.poll_ready(cx)).await.map_err(|error| open_error(&guard, &error))?;
    let (answer, stream) = send.send_request(head, false).map_err(|error| open_error(&guard, &error))?;
    // Holding it would keep an idle tunnel from closing.
    drop(send);
    let response = answer.await.map_err(|error| open_error(&guard, &error))?;
    if response.status() == StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE {
        hits.hit(Limit::HeaderList);
    }
    if response.status() != StatusCode::OK {
        return Err(OpenError::Failed(read_refusal(&response)));
    }
    Ok(Stream::new(stream, response.into_body(), guard))
}

fn open_error(guard: &StreamGuard, error: &h2::Error) -> OpenError {
    let live = guard.live();
    if error.is_reset() && error.reason() != Some(h2::Reason::REFUSED_STREAM) {
        return OpenError::Failed(Failure::new(
            Reason::ServerReset,
            format!("the peer reset the stream before it answered CONNECT: {error}"),
        ));
    }
    let going = error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR);
    let reason = if going { Reason::DrainDeadline } else { live.reason() };
    let failure = Failure::new(reason, format!("the tunnel ended before CONNECT was answered: {error}"));
    live.closed.set(true);
    match reason {
        // Another attempt would meet the same certificate.
        Reason::PeerCertificate | Reason::WrongIdentity | Reason::TlsHandshake => OpenError::Failed(failure),
        _ => OpenError::TunnelGone(failure),
    }
}

fn tls_reason(error: &io::Error) -> Reason {
    match reason_of_io_error(error) {
        Reason::TunnelProtocol => Reason::TlsHandshake,
        reason => reason,
    }
}

fn dial_failure(address: SocketAddr, error: &io::Error) -> Failure {
    let reason = match error.kind() {
        io::ErrorKind::TimedOut => Reason::ConnectTimeout,
        _ => Reason::ConnectFailed,
    };
    Failure::new(reason, format!("cannot connect to the tunnel port {address}: {error}"))
}
