//! What arrives at a pod: plaintext steered to the agent, and HBONE tunnels on port 15008. Owns: the order
//! register, judge, connect, answer, relay. Never: takes an identity from anything but the peer's certificate.
//! Called by `proxy::worker`.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use tokio::net::TcpStream;

use crate::capture::{Opener, OpenerRole};
use crate::decide::MESH_PORTS;
use crate::decide::inbound::{self as policy, ConnFacts};
use crate::model::{Identity, Reason, Workload};
use crate::net::sock;
use crate::observe::{Conn, ConnMeta, DecisionId, Direction, Party, Path};
use crate::proxy::limits::Permit;
use crate::proxy::outbound::{IDLE_TIMEOUT, cut_or};
use crate::proxy::relay::{self, RelayIo, TcpSide};
use crate::proxy::upstream;
use crate::proxy::worker::{LocalPod, Worker};
use crate::tunnel::{self, Failure};

mod http;

/// An arriving connection: who, from where, to which port of the pod.
struct Arrival {
    peer: Option<Identity>,
    client: SocketAddr,
    destination: SocketAddr,
    path: Path,
    decision_id: DecisionId,
}

/// Serves one plaintext connection that `mesh_steer` handed to the agent.
pub async fn serve_plaintext(worker: Rc<Worker>, pod: Arc<LocalPod>, accepted: (TcpStream, SocketAddr)) {
    let (stream, client) = accepted;
    let Ok(destination) = stream.local_addr() else { return };
    let (client, destination) = (sock::canonical(client), sock::canonical(destination));
    let Ok(_permit) = Permit::take(&worker.shared.node_budget, &pod.budget) else {
        worker.limit_reached();
        return upstream::reset(stream);
    };
    // An authorised bypass whose verdict was withdrawn while its first packet was on its way ends up here; the
    // kernel's own record says which pod opened it. A leg of our own here would be a loop.
    let peer = match worker.shared.capture.opener(client, destination) {
        Ok(Some(Opener { role: OpenerRole::Leg, .. })) => return upstream::reset(stream),
        Ok(Some(Opener { cookie, role: OpenerRole::Application })) => worker.identity_of(cookie),
        Ok(None) | Err(_) => None,
    };
    let decision_id = DecisionId::new();
    let arrival = Arrival { peer, client, destination, path: Path::Plain, decision_id };
    if asks_for_requests(&worker, &pod, destination.port()) {
        return Box::pin(http::plaintext(&worker, &pod, arrival, stream)).await;
    }
    // In a box, as in `outbound::serve`.
    match Box::pin(admit(&worker, &pod, &arrival)).await {
        Ok((conn, server)) => {
            let io = RelayIo { sent: conn.sent(), received: conn.received(), idle: IDLE_TIMEOUT };
            let end = cut_or(&conn, relay::tcp(stream, server, &io)).await;
            conn.finish(end);
        }
        Err(_) => upstream::reset(stream),
    }
}

/// Serves one tunnel: the TLS handshake with the pod's certificate, then every CONNECT on it.
pub async fn serve_tunnel(worker: Rc<Worker>, pod: Arc<LocalPod>, accepted: (TcpStream, SocketAddr)) {
    let (stream, client) = accepted;
    let Ok(local) = stream.local_addr() else { return };
    let (client, local) = (sock::canonical(client), sock::canonical(local));
    let (_tunnel, handshake) = match worker.shared.node_tunnels.enter(&pod.tunnels) {
        Ok(permits) => permits,
        Err(limit) => {
            worker.shared.connections.metrics().limit_hit(limit);
            return upstream::reset(stream);
        }
    };
    // Only the identity is kept: a tunnel outlives many snapshots.
    let identity = worker.shared.store.load().workload(&pod.id).map(|workload| workload.identity.clone());
    let Some(identity) = identity else { return upstream::reset(stream) };
    let cert = match upstream::certificate(&worker, &identity).await {
        Ok(cert) => cert,
        Err(failure) => {
            tracing::warn!(pod = %pod.id, reason = %failure.reason, "{}", failure.message);
            return upstream::reset(stream);
        }
    };
    let mut draining = worker.draining.clone();
    let drain = async move { drop(draining.wait_for(|draining| *draining).await) };
    let handler = {
        let (worker, pod) = (Rc::clone(&worker), Arc::clone(&pod));
        move |request: tunnel::ConnectRequest, responder: tunnel::Responder| {
            let (worker, pod) = (Rc::clone(&worker), Arc::clone(&pod));
            serve_connect(worker, pod, Connect { request, client, local: local.ip() }, responder)
        }
    };
    let settings = worker.settings.clone();
    let options = tunnel::ServeOptions { settings, handshake: Some(Box::new(handshake)) };
    if let Err(failure) = tunnel::serve(stream, cert, options, handler, drain).await {
        tracing::warn!(pod = %pod.id, peer = %client, reason = %failure.reason, "tunnel refused: {}", failure.message);
    }
}

/// One CONNECT with the tunnel it came in by.
struct Connect {
    request: tunnel::ConnectRequest,
    client: SocketAddr,
    local: IpAddr,
}

async fn serve_connect(
    worker: Rc<Worker>,
    pod: Arc<LocalPod>,
    connect: Connect,
    responder: tunnel::Responder,
) {
    let Connect { request, client, local } = connect;
    if let Err(reason) = check_target(request.target, local) {
        return responder.refuse(reason);
    }
    let Ok(_permit) = Permit::take(&worker.shared.node_budget, &pod.budget) else {
        worker.limit_reached();
        return responder.refuse(Reason::LimitReached);
    };
    let arrival = Arrival {
        decision_id: upstream::decision_of(&request.headers),
        peer: Some(request.peer),
        client,
        destination: request.target,
        path: Path::Hbone,
    };
    if asks_for_requests(&worker, &pod, arrival.destination.port()) {
        return Box::pin(http::connect(&worker, &pod, arrival, responder)).await;
    }
    match Box::pin(admit(&worker, &pod, &arrival)).await {
        Ok((conn, server)) => {
            let io = RelayIo { sent: conn.sent(), received: conn.received(), idle: IDLE_TIMEOUT };
            let Ok(stream) = responder.accept() else { return conn.finish(Some(Reason::ClientReset)) };
            let end = cut_or(&conn, relay::tunnel(server, stream, TcpSide::Server, &io)).await;
            conn.finish(end);
        }
        Err(reason) => responder.refuse(reason),
    }
}

/// Whether policy asks about single requests to a port of the pod.
fn asks_for_requests(worker: &Worker, pod: &LocalPod, port: u16) -> bool {
    let world = worker.shared.store.load();
    world.workload(&pod.id).is_some_and(|workload| policy::needs_http(&*world, workload, port))
}

/// A CONNECT may name only the address that it was sent to, and none of the mesh's own ports: anything else
/// would make the agent a proxy for whoever has a certificate.
fn check_target(target: SocketAddr, local: IpAddr) -> Result<(), Reason> {
    if target.ip() != local {
        return Err(Reason::ConnectTarget);
    }
    if target.port() == 0 || MESH_PORTS.contains(&target.port()) {
        return Err(Reason::ConnectMeshPort);
    }
    Ok(())
}

/// Registers the arrival, judges it and connects to the application with the client's own address.
async fn admit(worker: &Worker, pod: &LocalPod, arrival: &Arrival) -> Result<(Conn, TcpStream), Reason> {
    let world = worker.shared.store.load();
    let Some(workload) = world.workload(&pod.id).map(Arc::clone) else { return Err(Reason::UnknownWorkload) };
    let conn = worker.shared.connections.open(meta(&world, arrival, &workload));
    match judged_leg(worker, pod, arrival, &workload).await {
        Ok(server) => {
            conn.established();
            Ok((conn, server))
        }
        Err(failure) => {
            tracing::debug!(conn = conn.id(), reason = %failure.reason, "{}", failure.message);
            conn.finish(Some(failure.reason));
            Err(failure.reason)
        }
    }
}

async fn judged_leg(
    worker: &Worker,
    pod: &LocalPod,
    arrival: &Arrival,
    workload: &Workload,
) -> Result<TcpStream, Failure> {
    // Loaded after the connection was registered: a policy published before this line is judged here, one
    // published later finds the connection in the table.
    let world = worker.shared.store.load();
    let facts = ConnFacts {
        peer: arrival.peer.as_ref(),
        source_ip: arrival.client.ip(),
        destination: arrival.destination,
    };
    policy::admit(&*world, workload, &facts).map_err(|reason| Failure::new(reason, "refused by policy"))?;
    upstream::leg(worker, pod, arrival.client.ip(), arrival.destination, None).await
}

fn meta(world: &crate::world::World, arrival: &Arrival, workload: &Arc<Workload>) -> ConnMeta {
    // The source's workload is for people: labels of metrics and logs. Policy never reads it.
    let source = world
        .workload_at(arrival.client.ip())
        .filter(|source| arrival.peer.as_ref().is_none_or(|peer| *peer == source.identity))
        .map(Arc::clone);
    ConnMeta {
        direction: Direction::Inbound,
        path: arrival.path,
        source: Party { workload: source, identity: arrival.peer.clone(), address: arrival.client },
        destination: Party {
            identity: Some(workload.identity.clone()),
            workload: Some(Arc::clone(workload)),
            address: arrival.destination,
        },
        hbone_address: None,
        service: None,
        rule: None,
        decision_id: arrival.decision_id,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::outbound;

    /// A task of a connection that is relayed as bytes. With its buffers, the kernel's sockets aside, this is what an idle
    /// one costs (bar: 5 KiB).
    const TASK_MAX_BYTES: usize = 3 * 1024;

    fn task<A, B, C, F>(_serve: impl Fn(A, B, C) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn what_a_connection_waited_for_once_does_not_stay_with_it() {
        for (name, bytes) in [
            ("outbound", task(outbound::serve)),
            ("plaintext", task(serve_plaintext)),
            ("connect", task(|worker, pod, (connect, to)| serve_connect(worker, pod, connect, to))),
        ] {
            assert!(bytes <= TASK_MAX_BYTES, "{name}: {bytes} bytes; put the large part into a box");
        }
    }

    #[test]
    fn a_connect_may_name_only_the_pod_it_was_sent_to_and_no_port_of_the_mesh() {
        let pod: IpAddr = "10.1.0.1".parse().unwrap();
        let check = |to: &str| check_target(to.parse().unwrap(), pod);
        assert_eq!(check("10.1.0.1:8080"), Ok(()));
        assert_eq!(check("10.1.0.2:8080"), Err(Reason::ConnectTarget));
        assert_eq!(check("127.0.0.1:8080"), Err(Reason::ConnectTarget));
        assert_eq!(check("[::ffff:10.1.0.1]:8080"), Err(Reason::ConnectTarget));
        for port in ["0", "15001", "15006", "15008"] {
            assert_eq!(check(&format!("10.1.0.1:{port}")), Err(Reason::ConnectMeshPort), "{port}");
        }
    }
}
