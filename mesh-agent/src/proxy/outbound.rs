//! A pod's outgoing connection, from accept to end: plan, choose an endpoint, open its transport, relay.
//! Owns: the order of those steps. Never: reads an identity from an address (the listener's namespace says
//! whose connection it is), forwards a byte before the upstream stands. Called by `proxy::worker`.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};

use crate::decide::circuit::Guard;
use crate::decide::outbound::{OutboundPlan, TcpPlan, Transport, plan, secured, transport};
use crate::decide::{Snapshot as _, inbound};
use crate::model::{Reason, Service, Workload};
use crate::net::sock;
use crate::observe::{Conn, ConnMeta, DecisionId, Direction, Limit, Party, Path};
use crate::proxy::http::cluster;
use crate::proxy::http::downstream::{Downstream, Side};
use crate::proxy::http::io::{End, HttpIo};
use crate::proxy::http::server;
use crate::proxy::http::sniff::Sniffed;
use crate::proxy::limits::Permit;
use crate::proxy::originate::{Inside, Origination};
use crate::proxy::relay::{self, RelayEnd, RelayIo, TcpSide};
use crate::proxy::upstream;
use crate::proxy::worker::{LocalPod, Worker};
use crate::tunnel::{self, Failure};
use crate::world::World;

mod choice;
mod look;

use choice::{Choice, Times};
pub use look::Chosen;
use look::{Look, look};

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
    /// Where a rule for connections sends it.
    chosen: Option<Chosen>,
}

/// The other side, ready to be relayed to.
enum Upstream {
    Tcp(TcpStream),
    Tunnel(Box<tunnel::Stream>),
    /// TLS of the agent's own, over either.
    Tls(HttpIo),
}

/// An upstream that stands, and what its connection holds while it is open.
struct Opened {
    conn: Conn,
    upstream: Upstream,
    times: Times,
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
    /// How long it may take to stand; none = what the transport allows.
    limit: Option<Duration>,
    /// What the agent speaks on it.
    tls: Option<Origination>,
}

/// Serves one captured connection to its end.
pub async fn serve(worker: Rc<Worker>, pod: Arc<LocalPod>, (stream, client): (TcpStream, SocketAddr)) {
    let Ok(_permit) = Permit::take(&worker.shared.node_budget, &pod.budget) else {
        worker.limit_reached();
        return upstream::reset(stream);
    };
    let Some(mut accepted) = identify(&worker, &pod, stream, client) else { return };
    // What is over before bytes are relayed lies in boxes of its own: a relayed connection may rest for days, and keeps the
    // memory of the largest thing that its task has waited for.
    match Box::pin(look(&worker, &accepted)).await {
        Ok(Look::Bytes(chosen)) => accepted.chosen = chosen,
        Ok(Look::Http(spoken, chosen)) => {
            accepted.chosen = chosen;
            return Box::pin(serve_http(&worker, &pod, accepted, spoken)).await;
        }
        Ok(Look::Refused(reason)) => {
            let service = worker.shared.store.load().service_at(accepted.original.ip()).map(Arc::clone);
            nobody(&worker, &accepted, service.as_ref(), reason);
            return upstream::reset(accepted.stream);
        }
        // Gone before it said anything.
        Err(_gone) => return,
    }
    match Box::pin(establish(&worker, &pod, &accepted)).await {
        Some(opened) => relay_to_end(accepted.stream, opened).await,
        None => upstream::reset(accepted.stream),
    }
}

/// Serves a client's requests, each with a decision of its own.
async fn serve_http(worker: &Rc<Worker>, pod: &Arc<LocalPod>, accepted: Accepted, spoken: Sniffed) {
    let mut meta = meta(&accepted, None, None, Path::Plain);
    meta.service = worker.shared.store.load().service_at(accepted.original.ip()).map(Arc::clone);
    let conn = worker.shared.connections.open(meta);
    let Accepted { stream, client, original, source, chosen } = accepted;
    let side = Side::Outbound { source, original, chosen };
    let down = Downstream::new(worker, pod, conn, client, side);
    let io = HttpIo::tcp(stream).counted(Rc::clone(&down.conn), End::Client);
    server::serve(&down, io, spoken).await;
}

/// Plans the connection and opens its far side. The snapshot it decides from lives no longer than this: a
/// relayed connection may last for days and must not keep an old world alive.
async fn establish(worker: &Rc<Worker>, pod: &LocalPod, accepted: &Accepted) -> Option<Opened> {
    let world = worker.shared.store.load();
    let plan = match &accepted.chosen {
        None => plan(&*world, &accepted.source, accepted.original),
        Some(chosen) => chosen
            .plan(&world, &accepted.source, accepted.original)
            .map_or_else(OutboundPlan::Refuse, OutboundPlan::Tcp),
    };
    match plan {
        OutboundPlan::Tcp(plan) => try_endpoints(worker, pod, accepted, &plan, &world).await,
        OutboundPlan::Passthrough(endpoint) => {
            let leg = Leg {
                endpoint,
                transport: Transport::Plain,
                service: None,
                known: false,
                owner: None,
                limit: None,
                tls: None,
            };
            let (conn, upstream) = connect(worker, pod, accepted, &leg).await.ok()?;
            Some(Opened { conn, upstream, times: Times::default(), held: (None, None) })
        }
        OutboundPlan::Refuse(reason) => {
            nobody(worker, accepted, None, reason);
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
    let accepted = Accepted { stream, client, original, source, chosen: None };
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
            nobody(worker, accepted, plan.service.as_ref(), reason);
            return None;
        }
    };
    let times = choice.times();
    let mut tried: Vec<usize> = Vec::new();
    while tried.len() < MAX_ENDPOINT_TRIES {
        let Some(index) = choice.pick(worker, &tried) else { break };
        tried.push(index);
        let endpoint = &choice.endpoints[index];
        let transport = match secured(transport(world, &worker.shared.node, endpoint), choice.tls()) {
            Ok(transport) => transport,
            Err(reason) => {
                nobody(worker, accepted, plan.service.as_ref(), reason);
                return None;
            }
        };
        let leg = Leg {
            endpoint: endpoint.address,
            transport,
            tls: choice.origination(),
            service: plan.service.as_ref().map(Arc::clone),
            known: true,
            owner: world.workload_at(endpoint.address.ip()).map(Arc::clone),
            limit: times.connect,
        };
        let load = choice.cluster.as_ref().and_then(|cluster| cluster.load(index));
        let connected = connect(worker, pod, accepted, &leg).await;
        choice.remember(worker, index, connected.as_ref().err().copied());
        match connected {
            Ok((conn, upstream)) => {
                let held = (load, choice.place.take());
                return Some(Opened { conn, upstream, times, held });
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
        nobody(worker, accepted, plan.service.as_ref(), Reason::NoEndpoint);
    }
    None
}

/// Files a connection that came to no endpoint.
fn nobody(worker: &Worker, accepted: &Accepted, service: Option<&Arc<Service>>, reason: Reason) {
    let mut meta = meta(accepted, None, None, Path::Passthrough);
    meta.service = service.map(Arc::clone);
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
    let opening = open(worker, pod, accepted, leg, decision);
    let opened = match leg.limit {
        None => opening.await,
        Some(limit) => timeout(limit, opening).await.unwrap_or_else(|_elapsed| {
            Err(Failure::new(
                Reason::ConnectTimeout,
                "not connected within connectionPool.tcp.connectTimeout",
            ))
        }),
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

/// Opens the way to an endpoint.
async fn open(
    worker: &Rc<Worker>,
    pod: &LocalPod,
    accepted: &Accepted,
    leg: &Leg,
    decision: DecisionId,
) -> Result<Upstream, Failure> {
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
        Transport::Plain => upstream::plain(worker, pod, leg.endpoint, leg.limit).await.map(Upstream::Tcp),
    }?;
    let Some(tls) = &leg.tls else { return Ok(opened) };
    let io = match opened {
        Upstream::Tcp(stream) => HttpIo::tcp(stream),
        Upstream::Tunnel(stream) => HttpIo::tunnel(*stream),
        Upstream::Tls(io) => io,
    };
    worker.shared.originator.begin(io, tls, Inside::Bytes).await.map(Upstream::Tls)
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
    upstream::local(worker, &accepted.origin(), workload, leg.endpoint, leg.limit).await
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
        rule: accepted.chosen.as_ref().map(|chosen| Arc::clone(&chosen.rule)),
        decision_id: DecisionId::new(),
    }
}

/// Relays until either side ends, the connection idles out or is too old, or the table cuts it.
async fn relay_to_end(client: TcpStream, opened: Opened) {
    let Opened { conn, upstream, times, held } = opened;
    let io = RelayIo { sent: conn.sent(), received: conn.received(), idle: times.idle };
    let relayed = async {
        match upstream {
            Upstream::Tcp(server) => cut_or(&conn, relay::tcp(client, server, &io)).await,
            // Larger than the others, and rare.
            Upstream::Tls(server) => {
                cut_or(&conn, Box::pin(relay::any(HttpIo::tcp(client), server, &io))).await
            }
            Upstream::Tunnel(stream) => {
                cut_or(&conn, relay::tunnel(client, *stream, TcpSide::Client, &io)).await
            }
        }
    };
    let end = match times.longest.map(|longest| Instant::now() + longest) {
        None => relayed.await,
        Some(until) => tokio::select! {
            biased;
            () = sleep_until(until) => Some(Reason::MaxDuration),
            end = relayed => end,
        },
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
