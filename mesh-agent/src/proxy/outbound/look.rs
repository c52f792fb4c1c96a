//! What is looked at before a connection goes anywhere: the name in its ClientHello where rules go by it, whether it
//! speaks HTTP where that matters, and so which rule and which backend it gets. Owns: the order of those looks. Never:
//! takes a byte or connects. Called by `proxy::outbound`.

use std::io;
use std::sync::Arc;

use super::Accepted;
use crate::decide::connection::draw;
use crate::decide::outbound::{Routed, TcpPlan, Transport, canonical, routed, to_backend, transport};
use crate::decide::{Snapshot as _, inbound};
use crate::model::connection::{ConnRule, ConnRules};
use crate::model::route::Backend;
use crate::model::{AppProtocol, Endpoint, Reason, Workload};
use crate::observe::Limit;
use crate::proxy::client_hello::{self, Hello, Peeked};
use crate::proxy::http::server;
use crate::proxy::http::sniff::{self, Sniffed};
use crate::proxy::worker::Worker;
use crate::world::World;

/// The backend that a rule for connections chose, once for the whole connection.
#[derive(Clone, Debug)]
pub struct Chosen {
    pub rule: Arc<ConnRule>,
    pub backend: Backend,
}

impl Chosen {
    /// Where it leads now.
    pub fn plan(
        &self,
        world: &World,
        source: &Workload,
        dialled: std::net::SocketAddr,
    ) -> Result<TcpPlan, Reason> {
        to_backend(world, source, dialled, &self.backend)
    }
}

/// How the connection goes on.
pub(super) enum Look {
    Bytes(Option<Chosen>),
    Http(Sniffed, Option<Chosen>),
    Refused(Reason),
}

/// How a connection may be read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Bytes,
    Http,
    /// The client's first bytes decide.
    Either,
    /// The same, and the client is expected to speak first: it is waited for. Others that share the port are relayed.
    HttpIfSpoken,
}

/// The order of Istio: a port that says TLS goes by its TLS rules, one that says HTTP, or whose client speaks it, by
/// its HTTP rules, and the rest by TCP rules. An error: the client is gone.
pub(super) async fn look(worker: &Worker, accepted: &Accepted) -> io::Result<Look> {
    let (rules, protocol, wanted) = {
        let world = worker.shared.store.load();
        let (rules, protocol) = rules(&world, accepted);
        (rules, protocol, wanted(&world, &worker.shared.node, accepted))
    };
    let Some(rules) = rules else {
        return Ok(match sniffed(accepted, wanted).await? {
            Sniffed::Other => Look::Bytes(None),
            spoken => Look::Http(spoken, None),
        });
    };
    if !rules.exclusive && protocol == Some(AppProtocol::Auto) {
        let spoken = sniffed(accepted, Wanted::Either).await?;
        if spoken != Sniffed::Other {
            return Ok(Look::Http(spoken, None));
        }
    }
    let hello = match rules.by_sni {
        true => client_hello::peek(&accepted.stream, client_hello::HELLO_TIMEOUT).await?,
        false => Peeked::Hello(Hello::Other),
    };
    let (tls, name) = match hello {
        Peeked::Hello(Hello::Tls(name)) => (true, name),
        Peeked::Hello(Hello::Other) => (false, None),
        Peeked::Late => {
            worker.shared.connections.metrics().limit_hit(Limit::ClientHello);
            (false, None)
        }
        Peeked::TooLong => {
            worker.shared.connections.metrics().limit_hit(Limit::ClientHello);
            return Ok(Look::Refused(Reason::LimitReached));
        }
    };
    let (chosen, read) = {
        let world = worker.shared.store.load();
        let chosen = match choose(worker, &world, accepted, name.as_deref()) {
            Ok(chosen) => chosen,
            Err(reason) => return Ok(Look::Refused(reason)),
        };
        // A port that says nothing has been looked at above.
        let unknown = rules.exclusive || protocol != Some(AppProtocol::Auto);
        let read = !tls && unknown && read_at(&world, worker, accepted, chosen.as_ref());
        (chosen, read)
    };
    let wanted = if read { Wanted::Either } else { Wanted::Bytes };
    Ok(match sniffed(accepted, wanted).await? {
        Sniffed::Other => Look::Bytes(chosen),
        spoken => Look::Http(spoken, chosen),
    })
}

/// The rules that the connection meets, and what its port says of its protocol.
fn rules(world: &World, accepted: &Accepted) -> (Option<Arc<ConnRules>>, Option<AppProtocol>) {
    let original = canonical(accepted.original);
    let Some(service) = world.service_at(original.ip()) else { return (None, None) };
    let protocol = service.port(original.port()).map(|port| port.protocol);
    (world.conn_rules(&accepted.source, service, original.port()), protocol)
}

fn choose(
    worker: &Worker,
    world: &World,
    accepted: &Accepted,
    sni: Option<&str>,
) -> Result<Option<Chosen>, Reason> {
    match routed(world, &accepted.source, accepted.original, sni) {
        Routed::AsDialled => Ok(None),
        Routed::Nowhere => Err(Reason::NoRoute),
        Routed::By(rule) => {
            let chosen = draw(&rule.backends, |one| one.weight, worker.random());
            let backend = chosen.ok_or(Reason::BackendInvalid)?.backend.clone();
            Ok(Some(Chosen { rule, backend }))
        }
    }
}

async fn sniffed(accepted: &Accepted, wanted: Wanted) -> io::Result<Sniffed> {
    match wanted {
        Wanted::Bytes => Ok(Sniffed::Other),
        Wanted::Either => sniff::socket(&accepted.stream, sniff::SNIFF_TIMEOUT).await,
        Wanted::HttpIfSpoken => sniff::socket(&accepted.stream, server::IDLE_TIMEOUT).await,
        Wanted::Http => match sniff::socket(&accepted.stream, server::IDLE_TIMEOUT).await? {
            // It is answered as HTTP: that it is none.
            Sniffed::Other => Ok(Sniffed::Http1),
            spoken => Ok(spoken),
        },
    }
}

/// Where no rule for connections holds.
fn wanted(world: &World, node: &str, accepted: &Accepted) -> Wanted {
    let original = canonical(accepted.original);
    if let Some(service) = world.service_at(original.ip()) {
        let port = service.port(original.port());
        return match port.map(|port| port.protocol) {
            Some(AppProtocol::Http | AppProtocol::Http2 | AppProtocol::Grpc) => Wanted::Http,
            Some(AppProtocol::Auto) => Wanted::Either,
            // The other nodes' agents read what a policy asks about whatever the port is called; so does this one.
            Some(AppProtocol::Tcp | AppProtocol::Tls)
                if port.is_some_and(|port| read_here(world, node, &port.endpoints)) =>
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
        Transport::Local(_) | Transport::Hbone(_) => Wanted::Bytes,
        Transport::Plain if world.workload_at(original.ip()).is_some() => Wanted::Bytes,
        // Nobody's address: a ServiceEntry without addresses may be meant, by the Host of a request.
        Transport::Plain => match world.unaddressed_http(original.port(), &accepted.source.namespace) {
            Some(AppProtocol::Http | AppProtocol::Http2 | AppProtocol::Grpc) => Wanted::HttpIfSpoken,
            Some(_) => Wanted::Either,
            None => Wanted::Bytes,
        },
    }
}

/// The same for the endpoints that a rule leads to, or that were dialled.
fn read_at(world: &World, worker: &Worker, accepted: &Accepted, chosen: Option<&Chosen>) -> bool {
    let node = &worker.shared.node;
    let original = canonical(accepted.original);
    match chosen {
        Some(chosen) => chosen
            .plan(world, &accepted.source, original)
            .is_ok_and(|plan| read_here(world, node, &plan.endpoints)),
        None => world
            .service_at(original.ip())
            .and_then(|service| service.port(original.port()))
            .is_some_and(|port| read_here(world, node, &port.endpoints)),
    }
}

/// Whether a policy asks about requests to one of the endpoints on this node.
fn read_here(world: &World, node: &str, endpoints: &[Endpoint]) -> bool {
    let here = endpoints.iter().filter(|endpoint| *endpoint.node == *node);
    here.filter_map(|endpoint| Some((world.workload_at(endpoint.address.ip())?, endpoint.address.port())))
        .any(|(workload, port)| inbound::needs_http(world, workload, port))
}
