//! Pure decisions: may this connection be, where does it go, which endpoint takes it.
//! Owns: authorization, peer authentication, the outbound plan, the transport, route matching, what routes do to a
//! request, balancing, circuit breaking, outlier detection, the bypass verdict.
//! Never: I/O, clocks, locks, randomness (a random number comes in as an argument), or knowledge of how the
//! world is stored. The tables of Istio's semantics are tested from YAML to verdict in `world/tests`. Called by `proxy`, `capture`'s verdict filler, `observe` (re-judging) and `explain`.

use std::net::IpAddr;
use std::sync::Arc;

use crate::model::connection::ConnRules;
use crate::model::route::HttpRule;
use crate::model::traffic::TrafficPolicy;
use crate::model::{
    AuthzPolicy, Endpoint, Identity, MtlsMode, PeerAuth, PolicyRef, Service, Workload, WorkloadId,
};

pub mod authz;
pub mod balance;
pub mod bypass;
pub mod circuit;
pub mod connection;
pub mod cors;
pub mod fault;
pub mod headers;
pub mod inbound;
pub mod matching;
pub mod outbound;
pub mod outlier;
pub mod path;
pub mod peer_auth;
pub mod retry;
pub mod rewrite;
pub mod route;

/// Ports of every enrolled pod that belong to the mesh: outbound, inbound plaintext, HBONE.
pub const MESH_PORTS: [u16; 3] = [15001, 15006, 15008];

/// What a decision reads. `world::World` implements it; decisions do not know how it stores things.
pub trait Snapshot {
    /// Whether an identity is on the mesh's deny list.
    fn denied(&self, identity: &Identity) -> bool;
    /// The namespace whose policies are mesh-wide.
    fn root_namespace(&self) -> &str;
    fn workload(&self, id: &WorkloadId) -> Option<&Arc<Workload>>;
    /// The pod that owns an address now; never a host-network or ended one.
    fn workload_at(&self, address: IpAddr) -> Option<&Arc<Workload>>;
    /// The Service that has this virtual address.
    fn service_at(&self, address: IpAddr) -> Option<&Arc<Service>>;
    /// How the paths of requests are brought into one form before they are judged and sent on.
    fn path_normalization(&self) -> path::PathNormalization;
    /// `region/zone/subzone` of a node, as far as its labels tell; empty where they do not.
    fn locality(&self, node: &str) -> &str;
    /// Every PeerAuthentication of one namespace.
    fn peer_auths(&self, namespace: &str) -> impl Iterator<Item = &Arc<PeerAuth>>;
    /// Every AuthorizationPolicy of one namespace.
    fn authz_policies(&self, namespace: &str) -> impl Iterator<Item = &Arc<AuthzPolicy>>;
    /// Whether the workload is an endpoint of the Service, or its selector picks it.
    fn serves(&self, namespace: &str, service: &str, workload: &Workload) -> bool;
    /// The rules for requests of `source` to a Service's port, in the order in which they are tried; empty = the
    /// Service's own endpoints take everything. Already narrowed to what this client may see.
    fn http_rules(&self, source: &Workload, service: &Service, port: u16) -> Arc<[Arc<HttpRule>]>;
    /// Whether any client meets HTTP rules at this Service: then its connections must not bypass the agent.
    fn has_http_rules(&self, service: &Service) -> bool;
    /// The rules for connections of `source` to a Service's port that are not read as HTTP; none = they go to the
    /// Service's own endpoints. Already narrowed to what this client may see.
    fn conn_rules(&self, source: &Workload, service: &Service, port: u16) -> Option<Arc<ConnRules>>;
    /// The Service that a host name means to a client of this namespace: fully qualified, `name.namespace`,
    /// `name.namespace.svc`, or a name of the client's own namespace; with or without a port.
    fn service_by_host(&self, host: &str, from_namespace: &str) -> Option<&Arc<Service>>;
    /// How `source` balances and bounds its traffic to a Service's port, after inheritance.
    fn traffic(&self, source: &Workload, to: &Destination<'_>) -> Result<Arc<TrafficPolicy>, NoSubset>;
    /// The endpoints of a Service's port, or of a subset of it, for a connection to an address of `vip`'s family.
    /// Empty where the Service has no such port.
    fn endpoints(
        &self,
        source: &Workload,
        to: &Destination<'_>,
        vip: IpAddr,
    ) -> Result<Arc<[Endpoint]>, NoSubset>;
    /// PeerAuthentication after inheritance, and the object that decided (none = the mesh's default).
    fn mtls_mode(&self, dst: &Workload, port: u16) -> (MtlsMode, Option<PolicyRef>) {
        peer_auth::mode(self, dst, port)
    }
}

/// A Service's port, or the part of it that a route names.
#[derive(Clone, Copy, Debug)]
pub struct Destination<'a> {
    pub service: &'a Service,
    pub port: u16,
    pub subset: Option<&'a str>,
}

/// A route names a subset that no DestinationRule in force has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("subset `{subset}` is in no DestinationRule that holds for this client")]
pub struct NoSubset {
    pub subset: Arc<str>,
}

#[cfg(test)]
pub(crate) mod fixture;
