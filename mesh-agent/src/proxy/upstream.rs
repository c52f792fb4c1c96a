//! Opening the far side of a connection: the leg to an application in a pod's namespace, a plain connection
//! from a pod's namespace, a tunnel's TCP connection, and the certificate that goes with it. Owns: deadlines and
//! the mapping of connect errors to reasons. Never: judges. Called by `proxy::{outbound, inbound}`.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;

use crate::capture::CaptureHandle;
use crate::identity::WorkloadCert;
use crate::model::{Identity, Reason, Workload};
use crate::net::netns::NetNs;
use crate::net::sock;
use crate::observe::DecisionId;
use crate::proxy::worker::{LocalPod, Worker};
use crate::tunnel::{self, ConnectHeaders, Failure};

/// How long an upstream may take to accept where nobody says (Istio: connectTimeout 10 s).
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection waits for its workload's first certificate.
const CERTIFICATE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a tunnel's stream may take from dial to answer: the far agent's own connect timeout and a dial.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(22);

/// Ports tried for one leg. With nine of ten ports taken, one leg in a thousand finds none.
const LEG_PORT_TRIES: usize = 64;

/// Whose connection it is: a pod of this node.
#[derive(Clone, Copy)]
pub struct Origin<'a> {
    pub source: &'a Workload,
    /// The application's own address.
    pub client: SocketAddr,
}

impl Origin<'_> {
    /// The pod's address that the other side will see: the application's own, or the pod's of the endpoint's family.
    pub fn address(&self, endpoint: SocketAddr) -> Option<IpAddr> {
        let client = self.client.ip();
        if client.is_ipv4() == endpoint.is_ipv4() {
            return Some(client);
        }
        self.source.address_like(endpoint.ip())
    }

    fn address_for(&self, endpoint: SocketAddr) -> Result<IpAddr, Failure> {
        self.address(endpoint).ok_or_else(|| {
            Failure::new(Reason::ConnectFailed, "the pod has no address of the endpoint's family")
        })
    }
}

/// A tunnelled way to an endpoint.
pub struct Way<'a> {
    pub endpoint: SocketAddr,
    pub workload: &'a Workload,
    pub headers: ConnectHeaders,
}

/// Whether the port was to blame.
fn is_taken(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable)
}

/// Names a failure to connect.
fn connect_failure(error: &io::Error, to: SocketAddr) -> Failure {
    let reason = match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => Reason::ConnectionRefused,
        io::ErrorKind::TimedOut => Reason::ConnectTimeout,
        _ => Reason::ConnectFailed,
    };
    Failure::new(reason, format!("connect to {to}: {error}"))
}

/// Whether another endpoint may do better; a policy's refusal is final.
pub fn worth_another_endpoint(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::ConnectionRefused
            | Reason::ConnectTimeout
            | Reason::ConnectFailed
            | Reason::UnknownWorkload
            | Reason::TunnelTimeout
            | Reason::TunnelProtocol
            | Reason::TlsHandshake
            | Reason::UpstreamTls
    )
}

/// Connects to an application inside its pod's namespace with the client's own address as source, within the limit
/// (none: [`CONNECT_TIMEOUT`]).
pub async fn leg(
    worker: &Worker,
    pod: &LocalPod,
    source: IpAddr,
    to: SocketAddr,
    limit: Option<Duration>,
) -> Result<TcpStream, Failure> {
    let open = || -> io::Result<socket2::Socket> {
        let socket = sock::leg_socket(&pod.netns, source, to, worker.random())?;
        worker.shared.capture.mark_leg(&socket)?;
        Ok(socket)
    };
    let mut tries = 1;
    let connected = loop {
        let connected = match open() {
            Ok(socket) => connect(socket, to, limit).await,
            Err(error) => Err(error),
        };
        match connected {
            Err(error) if tries < LEG_PORT_TRIES && is_taken(&error) => tries += 1,
            connected => break connected,
        }
    };
    if connected.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
        && let Err(error) = worker.shared.capture.refresh_listening(pod.cookie)
    {
        // The kernel does not report the end of a listener from before the enrolment; only its table is stale.
        tracing::debug!(%error, "the table of listening ports could not be read again");
    }
    connected.map_err(|error| connect_failure(&error, to))
}

/// Connects a pod of this node to an application in another; whether it may has been judged.
pub async fn local(
    worker: &Worker,
    origin: &Origin<'_>,
    workload: &Workload,
    endpoint: SocketAddr,
    limit: Option<Duration>,
) -> Result<TcpStream, Failure> {
    let pods = worker.shared.pods.load();
    let Some(target) = pods.get(&workload.id) else {
        return Err(Failure::new(
            Reason::UnknownWorkload,
            "the pod is not attached to this node's agent yet",
        ));
    };
    leg(worker, target, origin.address_for(endpoint)?, endpoint, limit).await
}

/// Another node: a stream of the tunnel that this worker shares between all connections of one pair of identities.
pub async fn hbone(
    worker: &Worker,
    pod: &LocalPod,
    origin: &Origin<'_>,
    way: Way<'_>,
) -> Result<tunnel::Stream, Failure> {
    let Way { endpoint, workload, headers } = way;
    let cert: Arc<WorkloadCert> = certificate(worker, &origin.source.identity).await?;
    let source = origin.address_for(endpoint)?;
    let address = SocketAddr::new(endpoint.ip(), mesh_common::PORT_HBONE);
    let request = tunnel::OpenRequest {
        key: tunnel::TunnelKey {
            source: origin.source.identity.clone(),
            destination: workload.identity.clone(),
            address,
            source_ip: source,
            source_pod: origin.source.id.clone(),
            destination_pod: workload.id.clone(),
        },
        cert,
        target: endpoint,
        headers,
    };
    let dial_it = || {
        let (netns, capture) = (Arc::clone(&pod.netns), worker.shared.capture.clone());
        async move { dial(&netns, &capture, Some(source), address, None).await }
    };
    // The pool bounds the way up to the CONNECT; the answer waits for the far agent's own connect.
    match tokio::time::timeout(ANSWER_TIMEOUT, worker.pool.open(request, dial_it)).await {
        Ok(opened) => opened,
        Err(_elapsed) => Err(Failure::new(Reason::ConnectTimeout, "the far node did not answer the CONNECT")),
    }
}

/// Connects to an address outside the mesh from inside the pod's namespace.
pub async fn plain(
    worker: &Worker,
    pod: &LocalPod,
    to: SocketAddr,
    limit: Option<Duration>,
) -> Result<TcpStream, Failure> {
    let dialled = dial(&pod.netns, &worker.shared.capture, None, to, limit).await;
    dialled.map_err(|error| connect_failure(&error, to))
}

/// Opens a connection of the agent's own from a pod's namespace.
pub async fn dial(
    netns: &NetNs,
    capture: &CaptureHandle,
    source: Option<IpAddr>,
    to: SocketAddr,
    limit: Option<Duration>,
) -> io::Result<TcpStream> {
    let socket = sock::pod_socket(netns, source, to)?;
    capture.mark_own(&socket)?;
    connect(socket, to, limit).await
}

async fn connect(socket: socket2::Socket, to: SocketAddr, limit: Option<Duration>) -> io::Result<TcpStream> {
    let socket = tokio::net::TcpSocket::from_std_stream(socket.into());
    match tokio::time::timeout(limit.unwrap_or(CONNECT_TIMEOUT), socket.connect(to)).await {
        Ok(connected) => connected,
        Err(_elapsed) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// The workload's certificate: the one at hand, or the first one as soon as the CA gives it.
pub async fn certificate(worker: &Worker, identity: &Identity) -> Result<Arc<WorkloadCert>, Failure> {
    if let Some(cert) = worker.shared.certs.current(identity) {
        return Ok(cert);
    }
    match tokio::time::timeout(CERTIFICATE_TIMEOUT, worker.shared.certs.fetch(identity)).await {
        Ok(Ok(cert)) => Ok(cert),
        Ok(Err(error)) => Err(Failure::new(Reason::NoCertificate, error.to_string())),
        Err(_elapsed) => Err(Failure::new(Reason::NoCertificate, "the CA did not answer in time")),
    }
}

/// Closes a connection so that its peer learns that it broke.
pub fn reset(stream: TcpStream) {
    // Without it the close is an orderly one: the next best.
    if let Err(error) = sock::set_linger_rst(&stream) {
        tracing::debug!(%error, "a connection could not be reset");
    }
}

/// What a CONNECT tells beside its target. The receiver believes none of it for policy.
pub fn headers(
    client: SocketAddr,
    service: Option<&crate::model::Service>,
    decision: DecisionId,
) -> ConnectHeaders {
    let forwarded = match service {
        Some(service) => format!("for=\"{client}\";host={}", service.hostname),
        None => format!("for=\"{client}\""),
    };
    // W3C trace context; its parent id is the decision's, so that both nodes' logs can be joined.
    let traceparent = format!("00-{}{}-{decision}-00", DecisionId::new(), DecisionId::new());
    ConnectHeaders { forwarded: Some(forwarded), baggage: None, traceparent: Some(traceparent) }
}

/// The decision id that the far node's agent gave the connection; a new one where it gave none.
pub fn decision_of(headers: &ConnectHeaders) -> DecisionId {
    headers
        .traceparent
        .as_deref()
        .and_then(|text| text.split('-').nth(2))
        .and_then(|parent| parent.parse().ok())
        .unwrap_or_default()
}
