//! The snapshot that everything is decided from: workloads, services and policies of one moment.
//! Owns: the maps, how they follow a change of one object (`apply`), and the store that publishes them.
//! A World never changes once it is published; persistent maps make the next one cheap.
//! Never: I/O, clocks, locks held across a call. Called by `source` (writes) and by everybody (reads).

use std::net::IpAddr;
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};

use crate::api::istio::mesh::{MeshConfig, Normalization};
use crate::compile::{
    DestinationRuleFacts, Diagnostic, Kind, MeshSettings, NodeFacts, RouteFacts, ServiceEntryFacts,
    ServiceFacts, SliceFacts, VirtualServiceFacts, WorkloadEntryFacts,
};
use crate::decide::path::PathNormalization;
use crate::decide::{Destination, NoSubset, Snapshot, authz, peer_auth};
use crate::model::connection::ConnRules;
use crate::model::route::HttpRule;
use crate::model::traffic::{Defaults, TrafficPolicy};
use crate::model::{
    AuthzPolicy, Endpoint, Identity, MtlsMode, PeerAuth, PolicyRef, Service, ServiceId, Workload, WorkloadId,
};

mod apply;
mod check;
mod connections;
mod entries;
mod few;
mod hosts;
mod intern;
mod routes;
mod store;
mod traffic;

pub use apply::Change;
use entries::{NameUsers, Parts, Resolved};
use few::{Few, Filed};
pub use intern::Interner;
pub use store::{OnPublish, WorldStore};
use traffic::{Rules, ServiceTraffic, TrafficIndex, plain_policies};

/// Objects of one kind: namespace, then name. Nested, so that one namespace is found by a borrowed text.
type Named<T> = OrdMap<Arc<str>, OrdMap<Arc<str>, T>>;

/// All that is known at one version.
#[derive(Clone, Debug)]
pub struct World {
    /// Grows with every published world of a store.
    pub version: u64,
    pub mesh: Arc<MeshSettings>,
    /// The mesh-wide settings as they are written; `compile::mesh_config::settings` says what of them is in force.
    pub config: Arc<MeshConfig>,
    /// Whether each known namespace is enrolled.
    namespaces: OrdMap<Arc<str>, bool>,
    nodes: OrdMap<Arc<str>, Arc<NodeFacts>>,
    pods: Named<PodEntry>,
    workloads: OrdMap<WorkloadId, Arc<Workload>>,
    /// The pods of each node.
    on_node: OrdMap<Arc<str>, OrdSet<WorkloadId>>,
    /// Who claims an address; the last claim (the newest) holds it.
    claims: OrdMap<IpAddr, Few<Claim>>,
    service_facts: Named<Arc<ServiceFacts>>,
    /// Namespace, Service, slices.
    slices: Named<Few<Filed<SliceFacts>>>,
    /// Which Service a slice was filed under, by namespace and slice name.
    slice_owner: Named<Arc<str>>,
    services: OrdMap<ServiceId, Arc<Service>>,
    vips: OrdMap<IpAddr, Few<ServiceId>>,
    /// By fully qualified name, in lower case.
    hosts: OrdMap<Arc<str>, Few<ServiceId>>,
    /// Which Services have an endpoint at an address: they are derived anew when its owner changes.
    endpoint_users: OrdMap<IpAddr, Few<ServiceId>>,
    peer_auths: Named<Arc<PeerAuth>>,
    authz: Named<Arc<AuthzPolicy>>,
    virtual_services: Named<Arc<VirtualServiceFacts>>,
    destination_rules: Named<Arc<DestinationRuleFacts>>,
    /// Routes of the Gateway API.
    routes: OrdMap<Kind, Named<Arc<RouteFacts>>>,
    service_entries: Named<Arc<ServiceEntryFacts>>,
    workload_entries: Named<Arc<WorkloadEntryFacts>>,
    /// The ServiceEntry behind each Service that is made of one.
    entries: OrdMap<ServiceId, Arc<ServiceEntryFacts>>,
    entry_parts: OrdMap<ServiceId, Arc<Parts>>,
    name_users: NameUsers,
    /// Of the names that somebody uses, those whose addresses are known.
    resolved: Resolved,
    /// ServiceEntries without an address, by the ports that clients use: whose a request is, its Host says.
    unaddressed: OrdMap<u16, Few<ServiceId>>,
    /// Endpoints of ServiceEntries that are no pods; outside the mesh, and nobody's by address.
    outsiders: OrdMap<WorkloadId, Arc<Workload>>,
    traffic_index: TrafficIndex,
    /// Services for whose traffic somebody wrote something.
    traffic: OrdMap<ServiceId, Arc<ServiceTraffic>>,
    no_rules: Rules,
    diagnostics: Arc<[Diagnostic]>,
    defaults: Arc<Defaults>,
    /// The policies where nobody wrote a DestinationRule: least request, round robin, and as the client dialled.
    plain: [Arc<TrafficPolicy>; 3],
    /// Counts address claims, so that of two pods without a creation time the later one is the newer.
    claim_count: u32,
}

/// A pod's workload and what the world needs to derive it again.
#[derive(Clone, Debug, PartialEq)]
struct PodEntry {
    workload: Arc<Workload>,
    /// Would be enrolled if its namespace were.
    eligible: bool,
    created: Age,
}

/// Seconds since 1970, 0 when unknown: half the size of what the API uses, and good until 2106.
type Age = u32;

/// Ordered by age: creation time, then the order in which the claims came.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Claim {
    created: Age,
    count: u32,
    id: WorkloadId,
}

impl World {
    /// An empty world.
    pub fn new(mesh: MeshSettings) -> Self {
        Self {
            version: 0,
            mesh: Arc::new(mesh),
            config: Arc::default(),
            namespaces: OrdMap::new(),
            nodes: OrdMap::new(),
            pods: OrdMap::new(),
            workloads: OrdMap::new(),
            on_node: OrdMap::new(),
            claims: OrdMap::new(),
            service_facts: OrdMap::new(),
            slices: OrdMap::new(),
            slice_owner: OrdMap::new(),
            services: OrdMap::new(),
            vips: OrdMap::new(),
            hosts: OrdMap::new(),
            endpoint_users: OrdMap::new(),
            peer_auths: OrdMap::new(),
            authz: OrdMap::new(),
            virtual_services: OrdMap::new(),
            destination_rules: OrdMap::new(),
            routes: OrdMap::new(),
            service_entries: OrdMap::new(),
            workload_entries: OrdMap::new(),
            entries: OrdMap::new(),
            entry_parts: OrdMap::new(),
            name_users: OrdMap::new(),
            resolved: OrdMap::new(),
            unaddressed: OrdMap::new(),
            outsiders: OrdMap::new(),
            traffic_index: TrafficIndex::default(),
            traffic: OrdMap::new(),
            no_rules: Arc::new([]),
            diagnostics: Arc::new([]),
            plain: plain_policies(&Defaults::default()),
            defaults: Arc::default(),
            claim_count: 0,
        }
    }

    pub fn workload(&self, id: &WorkloadId) -> Option<&Arc<Workload>> {
        self.workloads.get(id).or_else(|| self.outsiders.get(id))
    }

    /// The pod that owns an address: never a host-network or ended one; the newest where several claim it.
    pub fn workload_at(&self, address: IpAddr) -> Option<&Arc<Workload>> {
        let claim = self.claims.get(&address.to_canonical())?.last()?;
        self.workloads.get(&claim.id)
    }

    pub fn service(&self, id: &ServiceId) -> Option<&Arc<Service>> {
        self.services.get(id)
    }

    /// The Service with this virtual address.
    pub fn service_at(&self, address: IpAddr) -> Option<&Arc<Service>> {
        self.services.get(self.vips.get(&address.to_canonical())?.first()?)
    }

    /// Every pod, enrolled or not, by id.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.values()
    }

    pub fn workload_count(&self) -> usize {
        self.workloads.len()
    }

    pub fn service_count(&self) -> usize {
        self.services.len()
    }

    /// The pods of a node, enrolled or not, by id.
    pub fn workloads_on(&self, node: &str) -> impl Iterator<Item = &Arc<Workload>> {
        let ids = self.on_node.get(node).into_iter().flat_map(OrdSet::iter);
        ids.filter_map(|id| self.workloads.get(id))
    }

    /// Every namespace that is known, and whether it is enrolled.
    pub fn namespaces(&self) -> impl Iterator<Item = (&Arc<str>, bool)> {
        self.namespaces.iter().map(|(name, enrolled)| (name, *enrolled))
    }

    /// The pod of this namespace and name.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<&Arc<Workload>> {
        Some(&self.pods.get(namespace)?.get(name)?.workload)
    }

    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    pub fn nodes(&self) -> impl Iterator<Item = &Arc<NodeFacts>> {
        self.nodes.values()
    }

    /// Every AuthorizationPolicy.
    pub fn all_authz(&self) -> impl Iterator<Item = &Arc<AuthzPolicy>> {
        self.authz.values().flat_map(OrdMap::values)
    }

    /// Every PeerAuthentication.
    pub fn all_peer_auths(&self) -> impl Iterator<Item = &Arc<PeerAuth>> {
        self.peer_auths.values().flat_map(OrdMap::values)
    }

    /// The AuthorizationPolicies in whose scope a workload is.
    pub fn authz_for<'a>(&'a self, dst: &'a Workload) -> impl Iterator<Item = &'a AuthzPolicy> {
        authz::in_scope(self, dst)
    }

    /// PeerAuthentication of a container port after inheritance, and the object it comes from.
    pub fn mtls_mode(&self, dst: &Workload, port: u16) -> (MtlsMode, Option<PolicyRef>) {
        peer_auth::mode(self, dst, port)
    }

    /// Whether a Service has this workload as an endpoint. Most are ruled out by the address alone.
    fn has_endpoint(&self, namespace: &str, service: &str, workload: &Workload) -> bool {
        let users = workload.addresses.iter().filter_map(|address| self.endpoint_users.get(address));
        let id = users.flat_map(Few::iter).find(|id| id.0.split_once('/') == Some((namespace, service)));
        id.and_then(|id| self.services.get(id)).is_some_and(|service| {
            let mut endpoints = service.ports.iter().flat_map(|port| port.endpoints.iter());
            endpoints.any(|endpoint| endpoint.workload.as_ref() == Some(&workload.id))
        })
    }

    /// What was found wrong in the last load.
    pub fn diagnostics(&self) -> &[Diagnostic] {
        &self.diagnostics
    }

    /// Replaces the findings, as a source does after a load.
    pub fn set_diagnostics(&mut self, diagnostics: Vec<Diagnostic>) {
        self.diagnostics = diagnostics.into();
    }
}

impl Snapshot for World {
    fn denied(&self, identity: &Identity) -> bool {
        self.mesh.denied.contains(identity)
    }

    fn root_namespace(&self) -> &str {
        &self.mesh.root_namespace
    }

    fn workload(&self, id: &WorkloadId) -> Option<&Arc<Workload>> {
        Self::workload(self, id)
    }

    fn workload_at(&self, address: IpAddr) -> Option<&Arc<Workload>> {
        Self::workload_at(self, address)
    }

    fn service_at(&self, address: IpAddr) -> Option<&Arc<Service>> {
        Self::service_at(self, address)
    }

    fn path_normalization(&self) -> PathNormalization {
        match self.config.path_normalization.unwrap_or_default().normalization {
            Normalization::None => PathNormalization::None,
            Normalization::Default | Normalization::Base => PathNormalization::Base,
            Normalization::MergeSlashes => PathNormalization::MergeSlashes,
            Normalization::DecodeAndMergeSlashes => PathNormalization::DecodeAndMergeSlashes,
        }
    }

    fn locality(&self, node: &str) -> &str {
        self.nodes.get(node).map_or("", |facts| &*facts.locality)
    }

    fn peer_auths(&self, namespace: &str) -> impl Iterator<Item = &Arc<PeerAuth>> {
        self.peer_auths.get(namespace).into_iter().flat_map(OrdMap::values)
    }

    fn authz_policies(&self, namespace: &str) -> impl Iterator<Item = &Arc<AuthzPolicy>> {
        self.authz.get(namespace).into_iter().flat_map(OrdMap::values)
    }

    /// By endpoint or by selector: a pod that left the slices (terminating, not yet listed) is still the Service's.
    fn serves(&self, namespace: &str, service: &str, workload: &Workload) -> bool {
        if namespace != &*workload.namespace {
            return false;
        }
        let selected =
            self.service_facts.get(namespace).and_then(|all| all.get(service)).is_some_and(|facts| {
                !facts.selector.is_empty() && peer_auth::selects(&facts.selector, &workload.labels)
            });
        selected || self.has_endpoint(namespace, service, workload)
    }

    fn http_rules(&self, source: &Workload, service: &Service, port: u16) -> Arc<[Arc<HttpRule>]> {
        self.rules_of(source, service, port)
    }

    fn has_http_rules(&self, service: &Service) -> bool {
        self.has_rules(service)
    }

    fn conn_rules(&self, source: &Workload, service: &Service, port: u16) -> Option<Arc<ConnRules>> {
        self.connections_of(source, service, port)
    }

    fn service_by_host(&self, host: &str, from_namespace: &str) -> Option<&Arc<Service>> {
        self.find_host(host, from_namespace)
    }

    fn traffic(&self, source: &Workload, to: &Destination<'_>) -> Result<Arc<TrafficPolicy>, NoSubset> {
        self.policy_of(source, to)
    }

    fn endpoints(
        &self,
        source: &Workload,
        to: &Destination<'_>,
        vip: IpAddr,
    ) -> Result<Arc<[Endpoint]>, NoSubset> {
        self.endpoints_of(source, to, vip)
    }
}

#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod tests;
