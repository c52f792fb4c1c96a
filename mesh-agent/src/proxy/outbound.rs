//! A pod's outgoing connection, from accept to end: plan, choose an endpoint, open its transport, relay.
//! Owns: the order of those steps. Never: reads an identity from an address (the listener's namespace says
//! whose connection it is), forwards a byte before the upstream stands. Called by `proxy::worker`.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;

use crate::decide::balance::hash_key;
use crate::decide::circuit::Guard;
use crate::decide::outbound::{OutboundPlan, TcpPlan, Transport, plan, transport};
use crate::decide::outlier::Outcome;
use crate::decide::{self, Snapshot as _, inbound};
use crate::model::traffic::LoadBalance;
use crate::model::{AppProtocol, Endpoint, Reason, Service, ServicePort, Workload};
use crate::net::sock;
use crate::observe::{Conn, ConnMeta, DecisionId, Direction, Limit, Party, Path};
use crate::proxy::http::cluster::{self, Cluster};
use crate::proxy::http::downstream::{Downstream, Side};
use crate::proxy::http::io::{End, HttpIo};
use crate::proxy::http::server;
use crate::proxy::http::sniff::{self, Sniffed};
use crate::proxy::limits::Permit;
use crate::proxy::relay::{self, RelayEnd, RelayIo, TcpSide};
use crate::proxy::upstream;
use crate::proxy::worker::{LocalPod, Worker};
use crate::tunnel::{self, Failure};
use crate::world::World;

/// Endpoints tried for one connection before it is given up; nothing has been forwarded by then, so another
/// try cannot repeat anything.
const MAX_ENDPOINT_TRIES: usize = 3;
/// A relayed connection without a byte in either direction for this long is closed (Istio: TCP idle 1 h).
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);

/// An accepted connection with what is known of it.
struct Accepted {
    stream: TcpStream,
    client: SocketAddr,
    /// Where the application wanted to go: the accepted socket's own address, since capture rewrites nothing.
    original: SocketAddr,
    source: Arc<Workload>,
}

/// The other side, ready to be relayed to.
enum Upstream {
    Tcp(TcpStream),
    Tunnel(Box<tunnel::Stream>),
}

/// An upstream that stands, and what its connection holds while it is open.
struct Opened {
    conn: Conn,
    upstream: Upstream,
    idle: Duration,
    held: Held,
}

/// Places in the balance and in the destination's limits; free again when they are dropped.
type Held = (Option<cluster::Load>, Option<Guard>);

/// One way to the destination: an endpoint and how it is reached.
struct Leg {
    endpoint: SocketAddr,
    transport: Transport,
    service: Option<Arc<Service>>,
    /// The mesh knows the address: a pod's or a Service's endpoint.
    known: bool,
    /// The pod that has the address, in the mesh or not.
    owner: Option<Arc<Workload>>,
}

/// Serves one captured connection to its end.
pub async fn serve(worker: Rc<Worker>, pod: Arc<LocalPod>, (stream, client): (TcpStream, SocketAddr)) {
    let Ok(_permit) = Permit::take(&worker.shared.node_budget, &pod.budget) else {
        worker.limit_reached();
        return upstream::reset(stream);
    };
    let Some(accepted) = identify(&worker, &pod, stream, client) else { return };
    match speaks(&worker, &accepted).await {
        Ok(Sniffed::Other) => {}
        Ok(spoken) => return serve_http(&worker, &pod, accepted, spoken).await,
        // Gone before it said anything.
        Err(_gone) => return,
    }
    match establish(&worker, &pod, &accepted).await {
        Some(opened) => relay_to_end(accepted.stream, opened).await,
        None => upstream::reset(accepted.stream),
    }
}

/// Whether the connection is to be read as HTTP, and which version of it.
async fn speaks(worker: &Worker, accepted: &Accepted) -> std::io::Result<Sniffed> {
    let wanted = {
        let world = worker.shared.store.load();
        wanted(&world, &worker.shared.node, accepted)
    };
    match wanted {
        Wanted::Bytes => Ok(Sniffed::Other),
        Wanted::Either => sniff::socket(&accepted.stream, sniff::SNIFF_TIMEOUT).await,
        Wanted::Http => match sniff::socket(&accepted.stream, server::IDLE_TIMEOUT).await? {
            // It is answered as HTTP: that it is none.
            Sniffed::Other => Ok(Sniffed::Http1),
            spoken => Ok(spoken),
        },
    }
}

/// How a connection may be read.
enum Wanted {
    Bytes,
    Http,
    /// The client's first bytes decide.
    Either,
}

fn wanted(world: &World, node: &str, accepted: &Accepted) -> Wanted {
    let original = decide::outbound::canonical(accepted.original);
    if let Some(service) = world.service_at(original.ip()) {
        return match service.port(original.port()).map(|port| port.protocol) {
            Some(AppProtocol::Http | AppProtocol::Http2 | AppProtocol::Grpc) => Wanted::Http,
            Some(AppProtocol::Auto) => Wanted::Either,
            // The other nodes' agents read what a policy asks about whatever the port is called; so does this one.
            Some(AppProtocol::Tcp | AppProtocol::Tls)
                if service.port(original.port()).is_some_and(|port| read_here(world, node, port)) =>
            {
                Wanted::Either
            }
            Some(AppProtocol::Tcp | AppProtocol::Tls) | None => Wanted::Bytes,
        };
    }
    match transport(world, node, original) {
        // Routes belong to Services; what a pod's own address wants is its policy read.
        Transport::Local(workload) if inbound::needs_http(world, &workload, original.port()) => {
            Wanted::Either
        }
        Transport::Local(_) | Transport::Hbone(_) | Transport::Plain => Wanted::Bytes,
    }
}

/// Whether a policy asks about requests to one of the port's endpoints on this node.
fn read_here(world: &World, node: &str, port: &ServicePort) -> bool {
    let here = port.endpoints.iter().filter(|endpoint| *endpoint.node == *node);
    here.filter_map(|endpoint| Some((world.workload_at(endpoint.address.ip())?, endpoint.address.port())))
        .any(|(workload, port)| inbound::needs_http(world, workload, port))
}

/// Serves a client's requests, each with a decision of its own.
async fn serve_http(worker: &Rc<Worker>, pod: &Arc<LocalPod>, accepted: Accepted, spoken: Sniffed) {
    let mut meta = meta(&accepted, None, None, Path::Plain);
    meta.service = worker.shared.store.load().service_at(accepted.original.ip()).map(Arc::clone);
    let conn = worker.shared.connections.open(meta);
    let Accepted { stream, client, original, source } = accepted;
    let side = Side::Outbound { source, original };
    let down = Downstream::new(worker, pod, conn, client, side);
    let io = HttpIo::tcp(stream).counted(Rc::clone(&down.conn), End::Client);
    server::serve(&down, io, spoken).await;
}

/// Plans the connection and opens its far side. The snapshot it decides from lives no longer than this: a
/// relayed connection may last for days and must not keep an old world alive.
async fn establish(worker: &Rc<Worker>, pod: &LocalPod, accepted: &Accepted) -> Option<Opened> {
    let world = worker.shared.store.load();
    match plan(&*world, &accepted.source, accepted.original) {
        OutboundPlan::Tcp(plan) => try_endpoints(worker, pod, accepted, &plan, &world).await,
        OutboundPlan::Passthrough(endpoint) => {
            let leg = Leg { endpoint, transport: Transport::Plain, service: None, known: false, owner: None };
            let (conn, upstream) = connect(worker, pod, accepted, &leg).await.ok()?;
            Some(Opened { conn, upstream, idle: IDLE_TIMEOUT, held: (None, None) })
        }
        OutboundPlan::Refuse(reason) => {
            let meta = meta(accepted, None, None, Path::Passthrough);
            worker.shared.connections.open(meta).finish(Some(reason));
            None
        }
    }
}

/// Says whose connection this is and where it was going; none (and a reset) where that makes no sense.
fn identify(worker: &Worker, pod: &LocalPod, stream: TcpStream, client: SocketAddr) -> Option<Accepted> {
    let world = worker.shared.store.load();
    let Ok(original) = stream.local_addr() else { return None };
    let (client, original) = (sock::canonical(client), sock::canonical(original));
    let Some(source) = world.workload(&pod.id).map(|workload| pod.with_addresses(workload)) else {
        upstream::reset(stream);
        return None;
    };
    // The listener's own port, reached on an address of the pod, was not captured but called: relaying it
    // would have the agent call itself for ever.
    let own = original.ip().is_loopback() || source.addresses.contains(&original.ip());
    if own && original.port() == mesh_common::PORT_OUTBOUND {
        upstream::reset(stream);
        return None;
    }
    let accepted = Accepted { stream, client, original, source };
    // Policy may speak of source addresses and the destination shall see a true one: a pod that binds to
    // another's address (IP_TRANSPARENT, an address added to lo) goes nowhere.
    if !accepted.source.addresses.contains(&client.ip()) {
        let meta = meta(&accepted, None, None, Path::Passthrough);
        worker.shared.connections.open(meta).finish(Some(Reason::SpoofedSource));
        upstream::reset(accepted.stream);
        return None;
    }
    Some(accepted)
}

/// What one connection's endpoint is chosen from: a Service's by its policy, or the one address that was dialled.
struct Choice {
    cluster: Option<Rc<Cluster>>,
    endpoints: Arc<[Endpoint]>,
    hash: Option<u64>,
    place: Option<Guard>,
}

impl Choice {
    fn of(worker: &Worker, accepted: &Accepted, plan: &TcpPlan, world: &World) -> Result<Self, Reason> {
        let Some(service) = &plan.service else {
            return Ok(Self {
                cluster: None,
                endpoints: Arc::clone(&plan.endpoints),
                hash: None,
                place: None,
            });
        };
        let family = decide::outbound::canonical(accepted.original).ip();
        let wanted = cluster::Wanted { service, port: plan.port, subset: None, family };
        let cluster = worker.http.cluster(worker, world, &accepted.source, &wanted)?;
        let circuit = &cluster.destination.circuit;
        let place = circuit.try_connection(&cluster.policy.pool).map_err(|_full| Reason::LimitReached)?;
        let hash = match &cluster.policy.balance {
            LoadBalance::Hash { key, .. } => hash_key::of_connection(key, accepted.client.ip()),
            _ => None,
        };
        let endpoints = Arc::clone(&cluster.endpoints);
        Ok(Self { cluster: Some(cluster), endpoints, hash, place: Some(place) })
    }

    /// The next endpoint; none when all that may be used have been tried.
    fn pick(&self, worker: &Worker, tried: &[usize]) -> Option<usize> {
        let index = match &self.cluster {
            Some(cluster) => cluster.pick(worker, self.hash, tried)?,
            None => self.endpoints.iter().position(|endpoint| endpoint.ready)?,
        };
        (!tried.contains(&index)).then_some(index)
    }

    /// Remembers how an endpoint did. Policy's refusal says nothing of it.
    fn remember(&self, worker: &Worker, index: usize, failed: Option<Reason>) {
        let Some(cluster) = &self.cluster else { return };
        let outcome = match failed {
            None => Outcome::Connected,
            Some(Reason::ConnectTimeout) => Outcome::TimedOut,
            Some(reason) if upstream::worth_another_endpoint(reason) => Outcome::ConnectFailed,
            Some(_) => return,
        };
        cluster.result(worker, index, outcome);
    }

    fn idle(&self) -> Duration {
        self.cluster.as_ref().map_or(IDLE_TIMEOUT, |cluster| cluster.policy.pool.tcp_idle)
    }
}

/// Tries endpoints in the order of the balancer until one stands.
async fn try_endpoints(
    worker: &Rc<Worker>,
    pod: &LocalPod,
    accepted: &Accepted,
    plan: &TcpPlan,
    world: &World,
) -> Option<Opened> {
    let mut choice = match Choice::of(worker, accepted, plan, world) {
        Ok(choice) => choice,
        Err(reason) => {
            nobody(worker, accepted, plan, reason);
            return None;
        }
    };
    let mut tried: Vec<usize> = Vec::new();
    while tried.len() < MAX_ENDPOINT_TRIES {
        let Some(index) = choice.pick(worker, &tried) else { break };
        tried.push(index);
        let endpoint = &choice.endpoints[index];
        let leg = Leg {
            endpoint: endpoint.address,
            transport: transport(world, &worker.shared.node, endpoint),
            service: plan.service.as_ref().map(Arc::clone),
            known: true,
            owner: world.workload_at(endpoint.address.ip()).map(Arc::clone),
        };
        let load = choice.cluster.as_ref().and_then(|cluster| cluster.load(index));
        let connected = connect(worker, pod, accepted, &leg).await;
        choice.remember(worker, index, connected.as_ref().err().copied());
        match connected {
            Ok((conn, upstream)) => {
                let held = (load, choice.place.take());
                return Some(Opened { conn, upstream, idle: choice.idle(), held });
            }
            // Policy gave its answer; another endpoint of the same Service must not be asked for a better one.
            Err(reason) if !upstream::worth_another_endpoint(reason) => return None,
            Err(_) => {}
        }
    }
    if tried.len() == MAX_ENDPOINT_TRIES
        && choice.endpoints.iter().filter(|one| one.ready).count() > tried.len()
    {
        worker.shared.connections.metrics().limit_hit(Limit::EndpointTries);
    }
    if tried.is_empty() {
        nobody(worker, accepted, plan, Reason::NoEndpoint);
    }
    None
}

/// Files a connection that came to no endpoint.
fn nobody(worker: &Worker, accepted: &Accepted, plan: &TcpPlan, reason: Reason) {
    let mut meta = meta(accepted, None, None, Path::Passthrough);
    meta.service = plan.service.as_ref().map(Arc::clone);
    worker.shared.connections.open(meta).finish(Some(reason));
}

/// Registers the attempt, has it judged where this node is also the destination's, and opens the transport.
async fn connect(
    worker: &Rc<Worker>,
    pod: &LocalPod,
    accepted: &Accepted,
    leg: &Leg,
) -> Result<(Conn, Upstream), Reason> {
    let (path, destination) = match &leg.transport {
        Transport::Local(workload) => (Path::Local, Some(workload)),
        Transport::Hbone(workload) => (Path::Hbone, Some(workload)),
        Transport::Plain if leg.known => (Path::Plain, None),
        Transport::Plain => (Path::Passthrough, None),
    };
    let mut meta = meta(accepted, Some(leg.endpoint), destination, path);
    meta.service = leg.service.as_ref().map(Arc::clone);
    // For labels only: what is reached in plaintext has proved no identity.
    meta.destination.workload = meta.destination.workload.or_else(|| leg.owner.as_ref().map(Arc::clone));
    let decision = meta.decision_id;
    let conn = worker.shared.connections.open(meta);
    let opened = match &leg.transport {
        Transport::Local(workload) => local(worker, accepted, leg, workload).await.map(Upstream::Tcp),
        // The destination's agent refuses too; a stolen key answers from elsewhere.
        Transport::Hbone(workload) if worker.shared.store.load().denied(&workload.identity) => {
            Err(Failure::new(Reason::IdentityDenied, "the destination's identity is on the deny list"))
        }
        Transport::Hbone(workload) => {
            let headers = upstream::headers(accepted.client, leg.service.as_deref(), decision);
            let way = upstream::Way { endpoint: leg.endpoint, workload, headers };
            upstream::hbone(worker, pod, &accepted.origin(), way)
                .await
                .map(|stream| Upstream::Tunnel(Box::new(stream)))
        }
        Transport::Plain => upstream::plain(worker, pod, leg.endpoint).await.map(Upstream::Tcp),
    };
    match opened {
        Ok(upstream) => {
            conn.established();
            Ok((conn, upstream))
        }
        Err(failure) => {
            tracing::debug!(conn = conn.id(), reason = %failure.reason, "{}", failure.message);
            conn.finish(Some(failure.reason));
            Err(failure.reason)
        }
    }
}

/// Same node: one pass, no encryption, the destination's decision taken here from the same code.
async fn local(
    worker: &Worker,
    accepted: &Accepted,
    leg: &Leg,
    workload: &Workload,
) -> Result<TcpStream, Failure> {
    // Loaded again: the connection is registered by now, so a policy published since is either seen here or
    // cuts it from the table.
    let world = worker.shared.store.load();
    let facts = inbound::ConnFacts {
        peer: Some(&accepted.source.identity),
        source_ip: accepted.client.ip(),
        destination: leg.endpoint,
    };
    inbound::admit(&*world, workload, &facts).map_err(|reason| Failure::new(reason, "refused by policy"))?;
    upstream::local(worker, &accepted.origin(), workload, leg.endpoint).await
}

impl Accepted {
    fn origin(&self) -> upstream::Origin<'_> {
        upstream::Origin { source: &self.source, client: self.client }
    }
}

fn meta(
    accepted: &Accepted,
    endpoint: Option<SocketAddr>,
    destination: Option<&Arc<Workload>>,
    path: Path,
) -> ConnMeta {
    ConnMeta {
        direction: if path == Path::Local { Direction::Local } else { Direction::Outbound },
        path,
        source: Party {
            identity: Some(accepted.source.identity.clone()),
            workload: Some(Arc::clone(&accepted.source)),
            address: accepted.client,
        },
        destination: Party {
            identity: destination.map(|workload| workload.identity.clone()),
            workload: destination.map(Arc::clone),
            address: endpoint.unwrap_or(accepted.original),
        },
        hbone_address: endpoint
            .filter(|_| path == Path::Hbone)
            .map(|endpoint| SocketAddr::new(endpoint.ip(), mesh_common::PORT_HBONE)),
        service: None,
        decision_id: DecisionId::new(),
    }
}

/// Relays until either side ends, the connection idles out or the table cuts it.
async fn relay_to_end(client: TcpStream, opened: Opened) {
    let Opened { conn, upstream, idle, held } = opened;
    let io = RelayIo { sent: conn.sent(), received: conn.received(), idle };
    let end = match upstream {
        Upstream::Tcp(server) => cut_or(&conn, relay::tcp(client, server, &io)).await,
        Upstream::Tunnel(stream) => cut_or(&conn, relay::tunnel(client, *stream, TcpSide::Client, &io)).await,
    };
    conn.finish(end);
    drop(held);
}

/// Why a relay ended; dropping it unfinished resets both sides.
pub(super) async fn cut_or(conn: &Conn, relay: impl Future<Output = RelayEnd>) -> Option<Reason> {
    tokio::select! {
        biased;
        reason = conn.cancelled() => Some(reason),
        end = relay => end.reason(),
    }
}
