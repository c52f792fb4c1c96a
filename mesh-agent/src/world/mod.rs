//! The snapshot that everything is decided from: workloads, services and policies of one moment.
//! Owns: the maps, how they follow a change of one object (`apply`), and the store that publishes them.
//! A World never changes once it is published; persistent maps make the next one cheap.
//! Never: I/O, clocks, locks held across a call. Called by `source` (writes) and by everybody (reads).

use std::net::IpAddr;
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};

use crate::compile::{Diagnostic, MeshSettings, NodeFacts, ServiceFacts, SliceFacts};
use crate::decide::{Snapshot, authz, peer_auth};
use crate::model::{AuthzPolicy, MtlsMode, PeerAuth, PolicyRef, Service, ServiceId, Workload, WorkloadId};

mod apply;
mod check;
mod store;

pub use apply::Change;
pub use store::{OnPublish, WorldStore};

/// Objects of one kind: namespace, then name. Nested, so that one namespace is found by a borrowed text.
type Named<T> = OrdMap<Arc<str>, OrdMap<Arc<str>, T>>;

/// All that is known at one version.
#[derive(Clone, Debug)]
pub struct World {
    /// Grows with every published world of a store.
    pub version: u64,
    pub mesh: Arc<MeshSettings>,
    /// Whether each known namespace is enrolled.
    namespaces: OrdMap<Arc<str>, bool>,
    nodes: OrdMap<Arc<str>, Arc<NodeFacts>>,
    pods: Named<PodEntry>,
    workloads: OrdMap<WorkloadId, Arc<Workload>>,
    /// Who claims an address; the last claim (the newest) holds it.
    claims: OrdMap<IpAddr, OrdSet<Claim>>,
    service_facts: Named<Arc<ServiceFacts>>,
    /// Namespace, Service, slice.
    slices: OrdMap<Arc<str>, Named<Arc<SliceFacts>>>,
    /// Which Service a slice was filed under, by namespace and slice name.
    slice_owner: Named<Arc<str>>,
    services: OrdMap<ServiceId, Arc<Service>>,
    vips: OrdMap<IpAddr, OrdSet<ServiceId>>,
    /// Which Services have an endpoint at an address: they are derived anew when its owner changes.
    endpoint_users: OrdMap<IpAddr, OrdSet<ServiceId>>,
    /// The Services that a workload is an endpoint of.
    serving: OrdMap<WorkloadId, OrdSet<ServiceId>>,
    peer_auths: Named<Arc<PeerAuth>>,
    authz: Named<Arc<AuthzPolicy>>,
    diagnostics: Arc<[Diagnostic]>,
    /// Counts address claims, so that of two pods without a creation time the later one is the newer.
    claim_count: u64,
}

/// A pod's workload and what the world needs to derive it again.
#[derive(Clone, Debug, PartialEq)]
struct PodEntry {
    workload: Arc<Workload>,
    /// Would be enrolled if its namespace were.
    eligible: bool,
    created: i64,
}

/// Ordered by age: creation time, then the order in which the claims came.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Claim {
    created: i64,
    count: u64,
    id: WorkloadId,
}

impl World {
    /// An empty world.
    pub fn new(mesh: MeshSettings) -> Self {
        Self {
            version: 0,
            mesh: Arc::new(mesh),
            namespaces: OrdMap::new(),
            nodes: OrdMap::new(),
            pods: OrdMap::new(),
            workloads: OrdMap::new(),
            claims: OrdMap::new(),
            service_facts: OrdMap::new(),
            slices: OrdMap::new(),
            slice_owner: OrdMap::new(),
            services: OrdMap::new(),
            vips: OrdMap::new(),
            endpoint_users: OrdMap::new(),
            serving: OrdMap::new(),
            peer_auths: OrdMap::new(),
            authz: OrdMap::new(),
            diagnostics: Arc::new([]),
            claim_count: 0,
        }
    }

    pub fn workload(&self, id: &WorkloadId) -> Option<&Arc<Workload>> {
        self.workloads.get(id)
    }

    /// The pod that owns an address: never a host-network or ended one; the newest where several claim it.
    pub fn workload_at(&self, address: IpAddr) -> Option<&Arc<Workload>> {
        let claim = self.claims.get(&address.to_canonical())?.get_max()?;
        self.workloads.get(&claim.id)
    }

    pub fn service(&self, id: &ServiceId) -> Option<&Arc<Service>> {
        self.services.get(id)
    }

    /// The Service with this virtual address.
    pub fn service_at(&self, address: IpAddr) -> Option<&Arc<Service>> {
        self.services.get(self.vips.get(&address.to_canonical())?.get_min()?)
    }

    /// Every pod, enrolled or not, by id.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.values()
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
        selected
            || self.serving.get(&workload.id).is_some_and(|services| {
                services.iter().any(|id| id.0.split_once('/') == Some((namespace, service)))
            })
    }
}

#[cfg(test)]
mod tests;
