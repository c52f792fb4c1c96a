//! One change at a time: what it touches is derived again, and nothing else. A pod touches its own workload and
//! the Services with an endpoint at its addresses; a slice its Service; a Namespace its pods, if its word changed.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};

use super::few::{Few, Filed};
use super::{Age, Claim, Named, PodEntry, World};
use crate::compile::{EndpointFacts, Kind, MeshSettings, Object, ObjectKey, PodFacts, PortFacts, SliceFacts};
use crate::model::{Endpoint, Identity, Service, ServiceId, ServicePort, Workload, WorkloadId};

/// A change of one object.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// Made or changed.
    Put(ObjectKey, Box<Object>),
    Removed(ObjectKey),
}

impl World {
    /// Takes one change in. Returns whether the world says something else now.
    pub fn apply(&mut self, change: Change) -> bool {
        match change {
            Change::Put(key, object) => self.put(&key, *object),
            Change::Removed(key) => self.remove(&key),
        }
    }

    fn put(&mut self, key: &ObjectKey, object: Object) -> bool {
        match object {
            Object::Namespace(facts) => self.namespace(&key.name, Some(facts.enrolled)),
            Object::Node(facts) => {
                let old = self.nodes.get(&key.name);
                let changed = old.is_none_or(|old| **old != facts);
                if changed {
                    self.nodes.insert(Arc::clone(&key.name), Arc::new(facts));
                }
                changed
            }
            Object::Pod(facts) => self.put_pod(key, facts),
            Object::Service(facts) => {
                let changed = insert(&mut self.service_facts, key, facts);
                if changed {
                    self.derive_service(&service_id(&key.namespace, &key.name));
                }
                changed
            }
            Object::EndpointSlice(facts) => self.put_slice(key, facts),
            Object::PeerAuthentication(policy) => insert(&mut self.peer_auths, key, policy),
            Object::AuthorizationPolicy(policy) => insert(&mut self.authz, key, policy),
            Object::VirtualService(facts) => self.put_virtual_service(&name(key), Some(*facts)),
            Object::DestinationRule(facts) => self.put_destination_rule(&name(key), Some(*facts)),
            Object::ServiceEntry(facts) => self.put_service_entry(&name(key), Some(*facts)),
            Object::WorkloadEntry(facts) => self.put_workload_entry(&name(key), Some(*facts)),
            Object::Route(facts) => self.put_route(key.kind, &name(key), Some(*facts)),
            Object::MeshConfig(facts) => {
                let mut changed = self.deny(facts.denied);
                if let Some(config) = facts.config
                    && *self.config != config
                {
                    self.config = Arc::new(config);
                    self.set_defaults(facts.defaults);
                    changed = true;
                }
                changed
            }
        }
    }

    fn remove(&mut self, key: &ObjectKey) -> bool {
        match key.kind {
            Kind::Namespace => self.namespace(&key.name, None),
            Kind::Node => self.nodes.remove(&key.name).is_some(),
            Kind::Pod => self.remove_pod(key),
            Kind::Service => {
                let removed = remove(&mut self.service_facts, key).is_some();
                self.derive_service(&service_id(&key.namespace, &key.name));
                removed
            }
            Kind::EndpointSlice => self.remove_slice(key),
            Kind::PeerAuthentication => remove(&mut self.peer_auths, key).is_some(),
            Kind::AuthorizationPolicy => remove(&mut self.authz, key).is_some(),
            Kind::VirtualService => self.put_virtual_service(&name(key), None),
            Kind::DestinationRule => self.put_destination_rule(&name(key), None),
            Kind::ServiceEntry => self.put_service_entry(&name(key), None),
            Kind::WorkloadEntry => self.put_workload_entry(&name(key), None),
            Kind::HttpRoute | Kind::GrpcRoute | Kind::TcpRoute | Kind::TlsRoute => {
                self.put_route(key.kind, &name(key), None)
            }
            Kind::MeshConfig => {
                self.config = Arc::default();
                self.set_defaults(Arc::default());
                self.deny(Arc::default());
                true
            }
        }
    }

    /// The identities that may not talk to anybody; says whether they are others than before.
    fn deny(&mut self, denied: Arc<BTreeSet<Identity>>) -> bool {
        let changed = self.mesh.denied != denied;
        if changed {
            self.mesh = Arc::new(MeshSettings { denied, ..(*self.mesh).clone() });
        }
        changed
    }

    /// `enrolled` is none for a namespace that is gone.
    fn namespace(&mut self, name: &Arc<str>, enrolled: Option<bool>) -> bool {
        let before = match enrolled {
            Some(enrolled) => self.namespaces.insert(Arc::clone(name), enrolled),
            None => self.namespaces.remove(name),
        };
        let known = before.is_some() != enrolled.is_some();
        let enrolled = enrolled.unwrap_or(false);
        if before.unwrap_or(false) == enrolled {
            return known;
        }
        let pods: Vec<(Arc<str>, PodEntry)> = self
            .pods
            .get(name)
            .into_iter()
            .flat_map(OrdMap::iter)
            .filter(|(_, pod)| pod.eligible && pod.workload.enrolled != enrolled)
            .map(|(pod, entry)| (Arc::clone(pod), entry.clone()))
            .collect();
        for (pod, mut entry) in pods {
            Arc::make_mut(&mut entry.workload).enrolled = enrolled;
            self.workloads.insert(entry.workload.id.clone(), Arc::clone(&entry.workload));
            let key = ObjectKey { kind: Kind::Pod, namespace: Arc::clone(name), name: pod };
            file_named(&mut self.pods, &key, entry);
        }
        true
    }

    fn put_pod(&mut self, key: &ObjectKey, facts: PodFacts) -> bool {
        let PodFacts { mut workload, created } = facts;
        let created = Age::try_from(created.max(0)).unwrap_or(Age::MAX);
        let eligible = workload.enrolled;
        workload.enrolled = eligible && self.namespaces.get(&key.namespace).copied().unwrap_or(false);
        let entry = PodEntry { workload: Arc::new(workload), eligible, created };
        let old = self.pods.get(&key.namespace).and_then(|pods| pods.get(&key.name)).cloned();
        if old.as_ref() == Some(&entry) {
            return false;
        }
        let now = &entry.workload;
        // An address that stays keeps its place among the claims: a changed label makes no pod newer.
        if let Some(old) = &old {
            let same = old.workload.id == now.id && old.created == created;
            for address in
                claimed(&old.workload).filter(|address| !(same && claimed(now).any(|a| a == *address)))
            {
                self.unclaim(address, &old.workload.id);
            }
            if old.workload.id != now.id {
                self.workloads.remove(&old.workload.id);
            }
            if old.workload.id != now.id || old.workload.node != now.node {
                displace(&mut self.on_node, &old.workload.node, &old.workload.id);
            }
        }
        if !now.node.is_empty() {
            place(&mut self.on_node, &now.node, &now.id);
        }
        for address in claimed(now) {
            self.claim(address, created, &now.id);
        }
        self.workloads.insert(now.id.clone(), Arc::clone(now));
        let mut touched: BTreeSet<ServiceId> = BTreeSet::new();
        for workload in old.iter().map(|old| &old.workload).chain([now]) {
            touched.extend(self.users_of(&workload.addresses));
        }
        file_named(&mut self.pods, key, entry);
        touched.iter().for_each(|service| self.derive_service(service));
        self.derive_selecting(&key.namespace);
        true
    }

    fn remove_pod(&mut self, key: &ObjectKey) -> bool {
        let Some(old) = remove(&mut self.pods, key) else { return false };
        for address in claimed(&old.workload) {
            self.unclaim(address, &old.workload.id);
        }
        self.workloads.remove(&old.workload.id);
        displace(&mut self.on_node, &old.workload.node, &old.workload.id);
        let touched = self.users_of(&old.workload.addresses);
        touched.iter().for_each(|service| self.derive_service(service));
        self.derive_selecting(&key.namespace);
        true
    }

    fn claim(&mut self, address: IpAddr, created: Age, id: &WorkloadId) {
        let mut claims = self.claims.get(&address).cloned().unwrap_or_default();
        if claims.iter().any(|claim| claim.id == *id) {
            return;
        }
        // After four thousand million claims two pods of one second may change places: nothing depends on it.
        self.claim_count = self.claim_count.wrapping_add(1);
        claims.insert(Claim { created, count: self.claim_count, id: id.clone() });
        self.claims.insert(address, claims);
    }

    fn unclaim(&mut self, address: IpAddr, id: &WorkloadId) {
        let Some(mut claims) = self.claims.get(&address).cloned() else { return };
        if let Some(claim) = claims.iter().find(|claim| claim.id == *id).cloned() {
            claims.remove(&claim);
        }
        if claims.is_empty() {
            self.claims.remove(&address);
        } else {
            self.claims.insert(address, claims);
        }
    }

    fn users_of(&self, addresses: &[IpAddr]) -> BTreeSet<ServiceId> {
        let all = addresses.iter().filter_map(|address| self.endpoint_users.get(address));
        all.flat_map(Few::iter).cloned().collect()
    }

    fn put_slice(&mut self, key: &ObjectKey, mut facts: SliceFacts) -> bool {
        let filed = self.slices.get(&key.namespace).and_then(|all| all.get(&facts.service)?.named(&key.name));
        if filed.is_some_and(|filed| **filed == facts) {
            return false;
        }
        let owner = self.slice_owner.get(&key.namespace).and_then(|all| all.get(&key.name));
        if owner.is_some_and(|owner| *owner != facts.service) {
            self.remove_slice(key);
        }
        // The pods' own names where they are known: they are half of what an endpoint costs.
        if let Some(pods) = self.pods.get(&key.namespace) {
            for pod in facts.endpoints.iter_mut().filter_map(|endpoint| endpoint.pod.as_mut()) {
                if let Some(known) = pods.get(&**pod) {
                    *pod = Arc::clone(&known.workload.name);
                }
            }
        }
        let service = Arc::clone(&facts.service);
        file_named(&mut self.slice_owner, key, Arc::clone(&service));
        let slices = self.slices.entry(Arc::clone(&key.namespace)).or_default();
        let filed = Filed { name: Arc::clone(&key.name), object: Arc::new(facts) };
        slices.entry(Arc::clone(&service)).or_default().put(filed);
        self.derive_service(&service_id(&key.namespace, &service));
        true
    }

    fn remove_slice(&mut self, key: &ObjectKey) -> bool {
        let Some(service) = remove(&mut self.slice_owner, key) else { return false };
        if let Some(services) = self.slices.get_mut(&key.namespace)
            && let Some(slices) = services.get_mut(&service)
        {
            slices.remove_named(&key.name);
            if slices.is_empty() {
                services.remove(&service);
            }
            if services.is_empty() {
                self.slices.remove(&key.namespace);
            }
        }
        self.derive_service(&service_id(&key.namespace, &service));
        true
    }

    /// Crosses a Service with its slices again and refiles it under its addresses and endpoints.
    fn derive_service(&mut self, id: &ServiceId) {
        if self.entries.contains_key(id) {
            self.derive_entry(id);
            return;
        }
        let service = self.cross(id);
        self.place_service(id, service);
    }

    /// Puts a Service in the place of the one before it; none = there is none any more.
    pub(super) fn place_service(&mut self, id: &ServiceId, service: Option<Service>) {
        let old = self.services.remove(id);
        if let Some(old) = &old {
            self.unfile(id, old);
        }
        let ports = |service: &Service| service.ports.iter().map(|port| port.port).collect::<Vec<_>>();
        // Routes look at what there is to go to, not at its endpoints.
        let other = old.as_deref().map(ports) != service.as_ref().map(ports);
        let hostname = old.as_deref().or(service.as_ref()).map(|service| Arc::clone(&service.hostname));
        match service {
            Some(service) => self.file_service(id, service),
            None => drop(self.traffic.remove(id)),
        }
        if let Some(hostname) = hostname.filter(|_| other) {
            self.derive_senders(&hostname);
        }
    }

    fn file_service(&mut self, id: &ServiceId, service: Service) {
        for vip in &service.vips {
            file(&mut self.vips, vip, id);
        }
        file(&mut self.hosts, &service.hostname, id);
        for port in unaddressed(id, &service) {
            file(&mut self.unaddressed, &port, id);
        }
        for endpoint in service.ports.iter().flat_map(|port| port.endpoints.iter()) {
            file(&mut self.endpoint_users, &endpoint.address.ip(), id);
        }
        self.services.insert(id.clone(), Arc::new(service));
        self.derive_traffic(id);
    }

    fn unfile(&mut self, id: &ServiceId, old: &Service) {
        for vip in &old.vips {
            unfile(&mut self.vips, vip, id);
        }
        unfile(&mut self.hosts, &old.hostname, id);
        for port in unaddressed(id, old) {
            unfile(&mut self.unaddressed, &port, id);
        }
        for endpoint in old.ports.iter().flat_map(|port| port.endpoints.iter()) {
            unfile(&mut self.endpoint_users, &endpoint.address.ip(), id);
        }
    }

    fn cross(&self, id: &ServiceId) -> Option<Service> {
        let (namespace, name) = id.0.split_once('/')?;
        let (namespace_name, facts) = self.service_facts.get_key_value(namespace)?;
        let (own_name, facts) = facts.get_key_value(name)?;
        let slices = self.slices.get(namespace).and_then(|all| all.get(name));
        let slices: Vec<&Arc<SliceFacts>> =
            slices.into_iter().flat_map(Few::iter).map(|filed| &filed.object).collect();
        let port = |port: &PortFacts| {
            let endpoints = self.endpoints(namespace, port, &slices);
            ServicePort::new(Arc::clone(&port.name), port.port, port.protocol, endpoints)
        };
        Some(Service {
            id: id.clone(),
            name: Arc::clone(own_name),
            namespace: Arc::clone(namespace_name),
            hostname: format!("{name}.{namespace}.svc.{}", self.mesh.cluster_domain).into(),
            vips: facts.vips.clone(),
            ports: facts.ports.iter().map(port).collect(),
            balance: facts.balance,
        })
    }

    fn endpoints(&self, namespace: &str, port: &PortFacts, slices: &[&Arc<SliceFacts>]) -> Arc<[Endpoint]> {
        let mut listed: Vec<(&EndpointFacts, u16)> = Vec::new();
        // One endpoint may be in two slices while the controller moves it.
        let mut seen = BTreeSet::new();
        for slice in slices {
            for (_, number) in slice.ports.iter().filter(|(name, _)| *name == port.name) {
                let fresh = slice.endpoints.iter().filter(|one| seen.insert((one.address, *number)));
                listed.extend(fresh.map(|endpoint| (endpoint, *number)));
            }
        }
        // As kube-proxy: endpoints that go away but still answer are used when their family has no others.
        let some_ready = [true, false]
            .map(|v4| listed.iter().any(|(endpoint, _)| endpoint.ready && endpoint.address.is_ipv4() == v4));
        let none_ready = |family: IpAddr| !some_ready[usize::from(!family.is_ipv4())];
        let endpoint = |(facts, number): &(&EndpointFacts, u16)| Endpoint {
            address: (facts.address, *number).into(),
            workload: self.behind(namespace, facts).map(|workload| workload.id.clone()),
            ready: facts.ready || (none_ready(facts.address) && facts.serving_terminating),
            node: Arc::clone(&facts.node),
            weight: 1,
        };
        listed.iter().map(endpoint).collect()
    }

    /// The pod that an endpoint means: the named one while it has the address, else the address's owner.
    fn behind(&self, namespace: &str, facts: &EndpointFacts) -> Option<&Arc<Workload>> {
        let named = facts.pod.as_ref().and_then(|pod| self.pod(namespace, pod));
        named
            .filter(|pod| !pod.ended && pod.addresses.contains(&facts.address))
            .or_else(|| self.workload_at(facts.address))
    }
}

/// The addresses under which a pod may be looked up.
fn claimed(workload: &Workload) -> impl Iterator<Item = IpAddr> + '_ {
    let by_address = !workload.host_network && !workload.ended;
    workload.addresses.iter().copied().filter(move |_| by_address)
}

fn name(key: &ObjectKey) -> (Arc<str>, Arc<str>) {
    (Arc::clone(&key.namespace), Arc::clone(&key.name))
}

fn service_id(namespace: &str, name: &str) -> ServiceId {
    ServiceId(format!("{namespace}/{name}").into())
}

/// The ports under which a ServiceEntry without addresses is looked for.
fn unaddressed(id: &ServiceId, service: &Service) -> Vec<u16> {
    if !service.vips.is_empty() || !super::entries::is_entry(id) {
        return Vec::new();
    }
    service.ports.iter().map(|port| port.port).collect()
}

/// Files a value unless it is there already; true if it was not.
fn insert<T: PartialEq>(map: &mut Named<Arc<T>>, key: &ObjectKey, value: T) -> bool {
    let old = map.get(&key.namespace).and_then(|inner| inner.get(&key.name));
    if old.is_some_and(|old| **old == value) {
        return false;
    }
    file_named(map, key, Arc::new(value));
    true
}

fn file_named<T: Clone>(map: &mut Named<T>, key: &ObjectKey, value: T) {
    map.entry(Arc::clone(&key.namespace)).or_default().insert(Arc::clone(&key.name), value);
}

fn remove<T: Clone>(map: &mut Named<T>, key: &ObjectKey) -> Option<T> {
    let inner = map.get_mut(&key.namespace)?;
    let old = inner.remove(&key.name);
    if inner.is_empty() {
        map.remove(&key.namespace);
    }
    old
}

/// Puts a value in its place, or takes it away.
pub(super) fn replace<T: Clone>(
    map: &mut Named<T>,
    (namespace, name): &(Arc<str>, Arc<str>),
    value: Option<T>,
) {
    match value {
        Some(value) => {
            map.entry(Arc::clone(namespace)).or_default().insert(Arc::clone(name), value);
        }
        None => {
            let Some(inner) = map.get_mut(namespace) else { return };
            inner.remove(name);
            if inner.is_empty() {
                map.remove(namespace);
            }
        }
    }
}

pub(super) fn file<K: Ord + Clone, V: Ord + Clone>(map: &mut OrdMap<K, Few<V>>, key: &K, value: &V) {
    map.entry(key.clone()).or_default().insert(value.clone());
}

pub(super) fn unfile<K: Ord + Clone, V: Ord + Clone>(map: &mut OrdMap<K, Few<V>>, key: &K, value: &V) {
    let Some(set) = map.get_mut(key) else { return };
    set.remove(value);
    if set.is_empty() {
        map.remove(key);
    }
}

/// The same for the pods of a node, of which there may be many.
fn place(map: &mut OrdMap<Arc<str>, OrdSet<WorkloadId>>, node: &Arc<str>, id: &WorkloadId) {
    map.entry(Arc::clone(node)).or_default().insert(id.clone());
}

fn displace(map: &mut OrdMap<Arc<str>, OrdSet<WorkloadId>>, node: &Arc<str>, id: &WorkloadId) {
    let Some(set) = map.get_mut(node) else { return };
    set.remove(id);
    if set.is_empty() {
        map.remove(node);
    }
}
