//! Connections to a pod whose policy asks about requests. Owns: telling HTTP from everything else, and what becomes of
//! the latter: one decision for the whole connection, in which what only a request could tell counts against it.
//! Called by `proxy::inbound`.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::TcpStream;

use super::{Arrival, meta};
use crate::decide::inbound::{self as policy, ConnFacts};
use crate::model::{Reason, Workload};
use crate::observe::Conn;
use crate::proxy::http::downstream::{Downstream, Side};
use crate::proxy::http::io::{End, HttpIo};
use crate::proxy::http::server;
use crate::proxy::http::sniff::{self, Sniffed};
use crate::proxy::http::upgrade::UPGRADED_BUFFER_BYTES;
use crate::proxy::outbound::{IDLE_TIMEOUT, cut_or};
use crate::proxy::relay::{self, RelayIo};
use crate::proxy::upstream;
use crate::proxy::worker::{LocalPod, Worker};
use crate::tunnel::{self, Failure};

/// One plaintext connection.
pub(super) async fn plaintext(worker: &Rc<Worker>, pod: &Arc<LocalPod>, arrival: Arrival, stream: TcpStream) {
    let Ok((conn, _workload)) = register(worker, pod, &arrival) else { return upstream::reset(stream) };
    match sniff::socket(&stream, sniff::SNIFF_TIMEOUT).await {
        Ok(Sniffed::Other) => match leg(worker, pod, &arrival, Judged::AsBytes).await {
            Ok(server) => {
                conn.established();
                let io = RelayIo { sent: conn.sent(), received: conn.received(), idle: IDLE_TIMEOUT };
                let end = cut_or(&conn, relay::tcp(stream, server, &io)).await;
                conn.finish(end);
            }
            Err(failure) => {
                refused(conn, &failure);
                upstream::reset(stream);
            }
        },
        Ok(spoken) => {
            let down = downstream(worker, pod, conn, arrival);
            serve(&down, HttpIo::tcp(stream), spoken).await;
        }
        Err(_gone) => conn.finish(Some(Reason::ClientReset)),
    }
}

/// One CONNECT: it is answered when the application has accepted, and the stream's first bytes tell the rest.
pub(super) async fn connect(
    worker: &Rc<Worker>,
    pod: &Arc<LocalPod>,
    arrival: Arrival,
    responder: tunnel::Responder,
) {
    let (conn, _workload) = match register(worker, pod, &arrival) {
        Ok(registered) => registered,
        Err(reason) => return responder.refuse(reason),
    };
    let server = match leg(worker, pod, &arrival, Judged::ByRequest).await {
        Ok(server) => server,
        Err(failure) => {
            responder.refuse(failure.reason);
            return refused(conn, &failure);
        }
    };
    let Ok(stream) = responder.accept() else { return conn.finish(Some(Reason::ClientReset)) };
    match sniff::wire(HttpIo::tunnel(stream)).await {
        Ok((client, Sniffed::Other)) => match judge(worker, pod, &arrival, Judged::AsBytes) {
            Ok(()) => bytes(conn, client, server).await,
            Err(failure) => {
                client.reset();
                upstream::reset(server);
                refused(conn, &failure);
            }
        },
        Ok((client, spoken)) => {
            let down = downstream(worker, pod, conn, arrival);
            down.leave_first(server);
            serve(&down, client, spoken).await;
        }
        Err(_gone) => conn.finish(Some(Reason::ClientReset)),
    }
}

fn downstream(worker: &Rc<Worker>, pod: &Arc<LocalPod>, conn: Conn, arrival: Arrival) -> Rc<Downstream> {
    let Arrival { peer, client, destination, .. } = arrival;
    Downstream::new(worker, pod, conn, client, Side::Inbound { peer, destination })
}

async fn serve(down: &Rc<Downstream>, client: HttpIo, spoken: Sniffed) {
    let io = client.counted(Rc::clone(&down.conn), End::Client);
    server::serve(down, io, spoken).await;
}

/// Relays a stream some of whose bytes have been looked at.
async fn bytes(conn: Conn, client: HttpIo, server: TcpStream) {
    conn.established();
    let conn = Rc::new(conn);
    let mut client = client.counted(Rc::clone(&conn), End::Client);
    let mut server = HttpIo::tcp(server);
    let copied = tokio::select! {
        biased;
        reason = conn.cancelled() => Err(Some(reason)),
        copied = copy_bidirectional_with_sizes(
            &mut client,
            &mut server,
            UPGRADED_BUFFER_BYTES,
            UPGRADED_BUFFER_BYTES,
        ) => copied.map_err(|_broken| None),
    };
    let reason = match copied {
        Ok(_bytes) => None,
        Err(reason) => {
            client.reset();
            server.reset();
            Some(reason.unwrap_or(Reason::ServerReset))
        }
    };
    conn.end(reason);
}

/// How a connection is judged.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Judged {
    /// Now only for what holds of every request on it.
    ByRequest,
    AsBytes,
}

/// Registers the arrival first and judges it afterwards, see `inbound::admit`.
fn register(worker: &Worker, pod: &LocalPod, arrival: &Arrival) -> Result<(Conn, Arc<Workload>), Reason> {
    let world = worker.shared.store.load();
    let Some(workload) = world.workload(&pod.id).map(Arc::clone) else { return Err(Reason::UnknownWorkload) };
    let conn = worker.shared.connections.open(meta(&world, arrival, &workload));
    match judge(worker, pod, arrival, Judged::ByRequest) {
        Ok(()) => Ok((conn, workload)),
        Err(failure) => {
            let reason = failure.reason;
            refused(conn, &failure);
            Err(reason)
        }
    }
}

fn judge(worker: &Worker, pod: &LocalPod, arrival: &Arrival, how: Judged) -> Result<(), Failure> {
    let world = worker.shared.store.load();
    let facts = ConnFacts {
        peer: arrival.peer.as_ref(),
        source_ip: arrival.client.ip(),
        destination: arrival.destination,
    };
    let judged = match world.workload(&pod.id) {
        None => Err(Reason::UnknownWorkload),
        Some(workload) if how == Judged::ByRequest => policy::admit_stream(&*world, workload, &facts),
        Some(workload) => policy::admit(&*world, workload, &facts),
    };
    judged.map_err(|reason| Failure::new(reason, "refused by policy"))
}

async fn leg(worker: &Worker, pod: &LocalPod, arrival: &Arrival, how: Judged) -> Result<TcpStream, Failure> {
    judge(worker, pod, arrival, how)?;
    let to: SocketAddr = arrival.destination;
    upstream::leg(worker, pod, arrival.client.ip(), to, None).await
}

fn refused(conn: Conn, failure: &Failure) {
    tracing::debug!(conn = conn.id(), reason = %failure.reason, "{}", failure.message);
    conn.finish(Some(failure.reason));
}
