//! Where an enrolled pod's connection goes: the plan (Service, pod, passthrough or refusal), the rule that sends it
//! elsewhere where one does, and, per endpoint, the transport. Owns that and nothing else: balancing is `balance`, dialling is `proxy`.
//! Called by `proxy::outbound`, `bypass` and `explain`.

use std::net::SocketAddr;
use std::sync::Arc;

use super::connection::{self, ConnView};
use super::{Destination, MESH_PORTS, Snapshot};
use crate::model::connection::ConnRule;
use crate::model::route::Backend;
use crate::model::traffic::ClientTls;
use crate::model::{Balance, Endpoint, MtlsMode, Reason, Service, Workload};

/// What to do with a connection, before anything is done.
#[derive(Clone, Debug, PartialEq)]
pub enum OutboundPlan {
    Tcp(TcpPlan),
    /// Nobody the mesh knows: connect as the pod asked.
    Passthrough(SocketAddr),
    Refuse(Reason),
}

/// One of these endpoints takes the connection.
#[derive(Clone, Debug, PartialEq)]
pub struct TcpPlan {
    /// None when the pod's own address was dialled.
    pub service: Option<Arc<Service>>,
    /// Of the Service, or of the pod.
    pub port: u16,
    /// The part of the Service that a rule names.
    pub subset: Option<Arc<str>>,
    /// Ready or not; `balance` skips those that are not.
    pub endpoints: Arc<[Endpoint]>,
    pub balance: Balance,
}

/// How bytes get to an endpoint.
#[derive(Clone, Debug, PartialEq)]
pub enum Transport {
    /// An enrolled pod of this node: no encryption, judged in this process.
    Local(Arc<Workload>),
    /// An enrolled pod of another node: mutual TLS to its port 15008.
    Hbone(Arc<Workload>),
    /// Outside the mesh, or DISABLE at the destination.
    Plain,
}

/// What a transport is asked for: an endpoint of a plan, or a bare address.
#[derive(Clone, Copy, Debug)]
pub enum Target<'a> {
    Endpoint(&'a Endpoint),
    Address(SocketAddr),
}

impl<'a> From<&'a Endpoint> for Target<'a> {
    fn from(endpoint: &'a Endpoint) -> Self {
        Self::Endpoint(endpoint)
    }
}

impl From<SocketAddr> for Target<'_> {
    fn from(address: SocketAddr) -> Self {
        Self::Address(address)
    }
}

/// An IPv4 destination dialled through an IPv6 socket is the IPv4 destination.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Plans a connection of `src` to `dst`. At L4 the source matters for the deny list only.
pub fn plan<S: Snapshot + ?Sized>(world: &S, src: &Workload, dst: SocketAddr) -> OutboundPlan {
    if world.denied(&src.identity) {
        return OutboundPlan::Refuse(Reason::IdentityDenied);
    }
    let dst = canonical(dst);
    if let Some(service) = world.service_at(dst.ip()) {
        return to_service(service, dst);
    }
    let Some(workload) = world.workload_at(dst.ip()) else {
        return OutboundPlan::Passthrough(dst);
    };
    if workload.enrolled && MESH_PORTS.contains(&dst.port()) {
        return OutboundPlan::Refuse(Reason::ConnectMeshPort);
    }
    let endpoint = Endpoint {
        address: dst,
        workload: Some(workload.id.clone()),
        ready: true,
        node: Arc::clone(&workload.node),
        weight: 1,
    };
    OutboundPlan::Tcp(TcpPlan {
        service: None,
        port: dst.port(),
        subset: None,
        endpoints: Arc::new([endpoint]),
        balance: Balance::RoundRobin,
    })
}

fn to_service(service: &Arc<Service>, dst: SocketAddr) -> OutboundPlan {
    let Some(found) = service.port(dst.port()) else {
        return OutboundPlan::Refuse(Reason::NoSuchPort);
    };
    let endpoints = found.endpoints_for(dst.ip());
    if !endpoints.iter().any(|endpoint| endpoint.ready) {
        return OutboundPlan::Refuse(Reason::NoEndpoint);
    }
    OutboundPlan::Tcp(TcpPlan {
        service: Some(Arc::clone(service)),
        port: dst.port(),
        subset: None,
        endpoints: Arc::clone(endpoints),
        balance: service.balance,
    })
}

/// Who decides where a connection goes.
#[derive(Clone, Debug, PartialEq)]
pub enum Routed {
    /// Nobody's rule: the destination that was dialled, by [`plan`].
    AsDialled,
    /// To one of this rule's backends, by [`to_backend`].
    By(Arc<ConnRule>),
    /// No rule takes it, and there is nothing but rules.
    Nowhere,
}

/// Which rule decides about a connection that is not read as HTTP. `sni` is the ClientHello's name, in lower case.
pub fn routed<S: Snapshot + ?Sized>(world: &S, src: &Workload, dst: SocketAddr, sni: Option<&str>) -> Routed {
    let dst = canonical(dst);
    let Some(service) = world.service_at(dst.ip()) else { return Routed::AsDialled };
    let Some(rules) = world.conn_rules(src, service, dst.port()) else { return Routed::AsDialled };
    let conn = ConnView { address: dst.ip(), port: dst.port(), sni };
    match connection::select(&rules.rules, src, &conn) {
        Some(rule) => Routed::By(Arc::clone(rule)),
        None if rules.exclusive => Routed::Nowhere,
        None => Routed::AsDialled,
    }
}

/// The plan for a connection that a rule sends to one of its backends.
pub fn to_backend<S: Snapshot + ?Sized>(
    world: &S,
    src: &Workload,
    dst: SocketAddr,
    backend: &Backend,
) -> Result<TcpPlan, Reason> {
    if world.denied(&src.identity) {
        return Err(Reason::IdentityDenied);
    }
    let dst = canonical(dst);
    let Backend::Host { host, port, subset, timeout: _ } = backend else {
        return Err(Reason::BackendInvalid);
    };
    let service = world.service_by_host(host, &src.namespace).ok_or(Reason::BackendInvalid)?;
    let port = backend_port(service, *port, dst.port()).ok_or(Reason::NoSuchPort)?;
    if service.port(port).is_none() {
        return Err(Reason::NoSuchPort);
    }
    let to = Destination { service, port, subset: subset.as_deref() };
    let endpoints = world.endpoints(src, &to, dst.ip()).map_err(|_missing| Reason::NoSubset)?;
    if !endpoints.iter().any(|endpoint| endpoint.ready) {
        return Err(Reason::NoEndpoint);
    }
    let (service, balance) = (Arc::clone(service), service.balance);
    Ok(TcpPlan { service: Some(service), port, subset: subset.clone(), endpoints, balance })
}

/// The port of a backend: the one that the rule names, else the one that was dialled, else the only one there is.
pub fn backend_port(service: &Service, named: Option<u16>, dialled: u16) -> Option<u16> {
    let only = || match service.ports.as_slice() {
        [only] => Some(only.port),
        _ => None,
    };
    named.or_else(|| service.port(dialled).map(|port| port.port)).or_else(only)
}

/// The transport as the destination's DestinationRule wants it (`tls.mode`). TLS of the agent's own is spoken inside of
/// whatever carries the bytes.
pub fn secured(transport: Transport, tls: &ClientTls) -> Result<Transport, Reason> {
    match (tls, transport) {
        (ClientTls::Mesh | ClientTls::Originate(_), transport) => Ok(transport),
        (ClientTls::Disable, _) => Ok(Transport::Plain),
        (ClientTls::Mutual, Transport::Plain) => Err(Reason::NoMutualTls),
        (ClientTls::Mutual, transport) => Ok(transport),
    }
}

/// The transport from an agent of `node` to a target.
pub fn transport<'a, S: Snapshot + ?Sized>(
    world: &S,
    node: &str,
    target: impl Into<Target<'a>>,
) -> Transport {
    let address = canonical(match target.into() {
        Target::Address(address) => address,
        Target::Endpoint(endpoint) => endpoint.address,
    });
    // The address's owner now, not the pod an endpoint was written for: an address that went to another pod
    // must never be reached under the former one's identity.
    let Some(dst) = world.workload_at(address.ip()) else {
        return Transport::Plain;
    };
    if !dst.enrolled || world.mtls_mode(dst, address.port()).0 == MtlsMode::Disable {
        return Transport::Plain;
    }
    if &*dst.node == node { Transport::Local(Arc::clone(dst)) } else { Transport::Hbone(Arc::clone(dst)) }
}
