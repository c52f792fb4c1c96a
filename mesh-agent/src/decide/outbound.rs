//! Where an enrolled pod's connection goes: the plan (Service, pod, passthrough or refusal) and, per endpoint,
//! the transport. Owns that and nothing else: balancing is `balance`, dialling is `proxy`.
//! Called by `proxy::outbound`, `bypass` and `explain`.

use std::net::SocketAddr;
use std::sync::Arc;

use super::{MESH_PORTS, Snapshot};
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
    /// The port that was dialled (of the Service, or of the pod).
    pub port: u16,
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
    };
    OutboundPlan::Tcp(TcpPlan {
        service: None,
        port: dst.port(),
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
        endpoints: Arc::clone(endpoints),
        balance: service.balance,
    })
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
