//! Opening the far side of a connection: the leg to an application in a pod's namespace, a plain connection
//! from a pod's namespace, a tunnel's TCP connection, and the certificate that goes with it. Owns: deadlines and
//! the mapping of connect errors to reasons. Never: judges. Called by `proxy::{outbound, inbound}`.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;

use crate::capture::CaptureHandle;
use crate::identity::WorkloadCert;
use crate::model::{Identity, Reason};
use crate::net::netns::NetNs;
use crate::net::sock;
use crate::proxy::worker::{LocalPod, Worker};

/// How long an upstream may take to accept (Istio: connectTimeout 10 s).
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection waits for its workload's first certificate.
const CERTIFICATE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why an upstream could not be opened.
#[derive(Debug)]
pub struct Failure {
    pub reason: Reason,
    pub message: String,
}

impl Failure {
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }

    fn connect(error: &io::Error, to: SocketAddr) -> Self {
        let reason = match error.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => Reason::ConnectionRefused,
            io::ErrorKind::TimedOut => Reason::ConnectTimeout,
            _ => Reason::ConnectFailed,
        };
        Self::new(reason, format!("connect to {to}: {error}"))
    }
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
    )
}

/// Connects to an application inside its pod's namespace with the client's own address as source.
pub async fn leg(
    worker: &Worker,
    pod: &LocalPod,
    source: IpAddr,
    to: SocketAddr,
) -> Result<TcpStream, Failure> {
    let open = || -> io::Result<socket2::Socket> {
        let socket = sock::leg_socket(&pod.netns, source, to)?;
        worker.shared.capture.mark_leg(socket.as_raw_fd())?;
        Ok(socket)
    };
    let socket = open().map_err(|error| Failure::connect(&error, to))?;
    connect(socket, to).await.map_err(|error| Failure::connect(&error, to))
}

/// Connects to an address outside the mesh from inside the pod's namespace.
pub async fn plain(worker: &Worker, pod: &LocalPod, to: SocketAddr) -> Result<TcpStream, Failure> {
    dial(&pod.netns, &worker.shared.capture, None, to).await.map_err(|error| Failure::connect(&error, to))
}

/// Opens a connection of the agent's own from a pod's namespace.
pub async fn dial(
    netns: &NetNs,
    capture: &CaptureHandle,
    source: Option<IpAddr>,
    to: SocketAddr,
) -> io::Result<TcpStream> {
    let socket = sock::own_socket(netns, source, to)?;
    capture.mark_own(socket.as_raw_fd())?;
    connect(socket, to).await
}

async fn connect(socket: socket2::Socket, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = tokio::net::TcpSocket::from_std_stream(socket.into());
    match tokio::time::timeout(CONNECT_TIMEOUT, socket.connect(to)).await {
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
