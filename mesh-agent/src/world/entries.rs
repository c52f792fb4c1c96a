//! ServiceEntries as Services: one for each of their hosts, found by its address or its host like any other. An
//! endpoint that is no pod is a workload outside the mesh. The addresses of names come from outside (`resolve`) and
//! stay until others come.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;

use super::World;
use super::few::Few;
use super::traffic::Name;
use crate::compile::traffic::{EntryAddress, EntryEndpoints, NameUse};
use crate::compile::{ServiceEntryFacts, WorkloadEntryFacts};
use crate::decide::peer_auth;
use crate::model::{
    Balance, Endpoint, Identity, Labels, Service, ServiceId, ServicePort, Workload, WorkloadId,
};

/// The addresses of names, in the order of the name server's answer.
pub(super) type Resolved = OrdMap<Arc<str>, Arc<[IpAddr]>>;

/// What the Service of an entry's host was made of, beside the entry itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Parts {
    /// Whose addresses are among its endpoints, or would be.
    names: Vec<Arc<str>>,
    outsiders: BTreeMap<WorkloadId, Arc<Workload>>,
}

/// An endpoint before its port is known.
struct Place<'a> {
    address: IpAddr,
    workload: Option<WorkloadId>,
    node: Arc<str>,
    ports: Option<&'a BTreeMap<String, u16>>,
    weight: u32,
}

impl World {
    /// Replaces a ServiceEntry, or takes it away; says whether that changed anything.
    pub(super) fn put_service_entry(&mut self, name: &Name, facts: Option<ServiceEntryFacts>) -> bool {
        let old = self.service_entries.get(&name.0).and_then(|all| all.get(&name.1)).cloned();
        if old.as_deref() == facts.as_ref() {
            return false;
        }
        let new = facts.map(Arc::new);
        super::apply::replace(&mut self.service_entries, name, new.clone());
        for host in old.iter().chain(&new).flat_map(|facts| &facts.hosts) {
            let id = entry_id(&name.0, host);
            match self.owner(&name.0, host) {
                Some(owner) => drop(self.entries.insert(id.clone(), owner)),
                None => drop(self.entries.remove(&id)),
            }
            self.derive_entry(&id);
        }
        true
    }

    /// The entry that a host of a namespace belongs to: the oldest.
    fn owner(&self, namespace: &str, host: &Arc<str>) -> Option<Arc<ServiceEntryFacts>> {
        let all = self.service_entries.get(namespace)?.values();
        let of_host = all.filter(|facts| facts.hosts.contains(host));
        of_host.min_by_key(|facts| (facts.created, &facts.object.name)).cloned()
    }

    /// The same for a WorkloadEntry.
    pub(super) fn put_workload_entry(&mut self, name: &Name, facts: Option<WorkloadEntryFacts>) -> bool {
        let old = self.workload_entries.get(&name.0).and_then(|all| all.get(&name.1)).cloned();
        if old.as_deref() == facts.as_ref() {
            return false;
        }
        super::apply::replace(&mut self.workload_entries, name, facts.map(Arc::new));
        self.derive_selecting(&name.0);
        true
    }

    /// Derives every ServiceEntry of a namespace again that selects workloads by their labels.
    pub(super) fn derive_selecting(&mut self, namespace: &str) {
        let Some(all) = self.service_entries.get(namespace) else { return };
        let selecting = all.values().filter(|facts| matches!(facts.endpoints, EntryEndpoints::Selected(_)));
        let hosts: Vec<_> = selecting.flat_map(|facts| facts.hosts.iter().cloned()).collect();
        for host in hosts {
            self.derive_entry(&entry_id(namespace, &host));
        }
    }

    /// Every name that is to be resolved.
    pub fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.name_users.keys()
    }

    /// The addresses of a name, as far as they are known.
    pub fn addresses_of(&self, name: &str) -> Option<&Arc<[IpAddr]>> {
        self.resolved.get(name)
    }

    /// Takes the addresses of a name in, in the order of the answer; says whether any endpoint is another now.
    pub fn resolve(&mut self, name: &Arc<str>, addresses: &Arc<[IpAddr]>) -> bool {
        let Some(users) = self.name_users.get(name).cloned() else { return false };
        if self.resolved.get(name) == Some(addresses) {
            return false;
        }
        self.resolved.insert(Arc::clone(name), Arc::clone(addresses));
        users.iter().fold(false, |changed, id| self.derive_entry(id) | changed)
    }

    /// Takes over what another world knows of names: whoever resolves them is not who makes the worlds.
    pub(super) fn adopt(&mut self, resolved: &Resolved) {
        for (name, addresses) in resolved {
            self.resolve(name, addresses);
        }
    }

    /// Derives the Service of an entry's host as entries, pods and names are now; says whether it is another.
    pub(super) fn derive_entry(&mut self, id: &ServiceId) -> bool {
        let made = self.entries.get(id).cloned().and_then(|facts| self.of_entry(id, &facts));
        let (service, parts) = made.map_or_else(|| (None, Parts::default()), |(s, p)| (Some(s), p));
        let old = self.entry_parts.get(id).cloned().unwrap_or_default();
        let other = *old != parts || self.services.get(id).map(AsRef::as_ref) != service.as_ref();
        for name in parts.names.iter().filter(|name| !old.names.contains(name)) {
            super::apply::file(&mut self.name_users, name, id);
        }
        for name in old.names.iter().filter(|name| !parts.names.contains(name)) {
            super::apply::unfile(&mut self.name_users, name, id);
            if !self.name_users.contains_key(name) {
                self.resolved.remove(name);
            }
        }
        for gone in old.outsiders.keys() {
            self.outsiders.remove(gone);
        }
        for (id, outsider) in &parts.outsiders {
            self.outsiders.insert(id.clone(), Arc::clone(outsider));
        }
        match service {
            Some(_) => drop(self.entry_parts.insert(id.clone(), Arc::new(parts))),
            None => drop(self.entry_parts.remove(id)),
        }
        self.place_service(id, service);
        other
    }

    fn of_entry(&self, id: &ServiceId, facts: &ServiceEntryFacts) -> Option<(Service, Parts)> {
        let host = facts.hosts.iter().find(|host| entry_id(&facts.object.namespace, host) == *id)?;
        let mut parts = Parts::default();
        let itself;
        let places = match &facts.endpoints {
            EntryEndpoints::AsDialled => Vec::new(),
            EntryEndpoints::Host => {
                itself = [WorkloadEntryFacts::at(EntryAddress::Name(Arc::clone(host)))];
                self.listed(host, facts, &itself, &mut parts)
            }
            EntryEndpoints::Listed(listed) => self.listed(host, facts, listed, &mut parts),
            EntryEndpoints::Selected(labels) => {
                let mut places = self.pods_with(&facts.object.namespace, labels);
                let all = self.workload_entries.get(&facts.object.namespace);
                let entries = all.into_iter().flat_map(OrdMap::values);
                for entry in entries.filter(|entry| peer_auth::selects(labels, &entry.labels)) {
                    places.extend(self.listed(host, facts, std::slice::from_ref(&**entry), &mut parts));
                }
                places
            }
        };
        let ports = facts.ports.iter().map(|(port, target)| {
            let endpoint = |place: &Place<'_>| {
                let own = place.ports.and_then(|ports| ports.get(&*port.name)).copied();
                Endpoint {
                    address: (place.address, own.unwrap_or(*target)).into(),
                    workload: place.workload.clone(),
                    ready: true,
                    node: Arc::clone(&place.node),
                    weight: place.weight,
                }
            };
            // Where the client meant to go is, for an address of the entry, that address.
            let endpoints = match &facts.endpoints {
                EntryEndpoints::AsDialled => {
                    facts.vips.iter().map(|vip| Endpoint::outside((*vip, port.port).into())).collect()
                }
                _ => places.iter().map(endpoint).collect(),
            };
            ServicePort::new(Arc::clone(&port.name), port.port, port.protocol, endpoints)
        });
        let service = Service {
            id: id.clone(),
            name: Arc::clone(host),
            namespace: Arc::clone(&facts.object.namespace),
            hostname: Arc::clone(host),
            vips: facts.vips.clone(),
            ports: ports.collect(),
            balance: Balance::LeastRequest,
        };
        Some((service, parts))
    }

    fn pods_with(&self, namespace: &str, labels: &Labels) -> Vec<Place<'static>> {
        let pods = self.pods.get(namespace).into_iter().flat_map(OrdMap::values);
        let pods =
            pods.map(|pod| &pod.workload).filter(|pod| !pod.ended && peer_auth::selects(labels, &pod.labels));
        let places = pods.flat_map(|pod| {
            pod.addresses.iter().map(|address| Place {
                address: *address,
                workload: Some(pod.id.clone()),
                node: Arc::clone(&pod.node),
                ports: None,
                weight: 1,
            })
        });
        places.collect()
    }

    /// The places of listed endpoints: a pod where one has the address, else a workload that stands for the endpoint.
    fn listed<'a>(
        &self,
        host: &Arc<str>,
        facts: &ServiceEntryFacts,
        listed: &'a [WorkloadEntryFacts],
        parts: &mut Parts,
    ) -> Vec<Place<'a>> {
        let mut places: Vec<Place<'a>> = Vec::with_capacity(listed.len());
        for entry in listed {
            for address in self.addresses(&entry.address, facts.names, parts) {
                let pod = self.workload_at(address);
                let workload = match pod {
                    Some(pod) => Some(pod.id.clone()),
                    None => self.outsider(host, facts, (entry, address), parts),
                };
                places.push(Place {
                    address,
                    workload,
                    node: pod.map_or_else(|| Arc::from(""), |pod| Arc::clone(&pod.node)),
                    ports: Some(&entry.ports),
                    weight: entry.weight,
                });
            }
        }
        places
    }

    fn addresses(&self, of: &EntryAddress, names: Option<NameUse>, parts: &mut Parts) -> Vec<IpAddr> {
        let (name, names) = match (of, names) {
            (EntryAddress::Ip(address), _) => return vec![*address],
            (EntryAddress::Name(_), None) => return Vec::new(),
            (EntryAddress::Name(name), Some(names)) => (name, names),
        };
        if !parts.names.contains(name) {
            parts.names.push(Arc::clone(name));
        }
        let known = self.resolved.get(name).map(|all| &all[..]).unwrap_or_default();
        match names {
            // Name servers turn their answers: the order means nothing and must not look like a change.
            NameUse::All => {
                let mut all = known.to_vec();
                all.sort_unstable();
                all.dedup();
                all
            }
            NameUse::First => {
                let first = |v4: bool| known.iter().copied().find(|address| address.is_ipv4() == v4);
                [first(true), first(false)].into_iter().flatten().collect()
            }
        }
    }

    fn outsider(
        &self,
        host: &Arc<str>,
        facts: &ServiceEntryFacts,
        (entry, address): (&WorkloadEntryFacts, IpAddr),
        parts: &mut Parts,
    ) -> Option<WorkloadId> {
        let namespace = &facts.object.namespace;
        let identity = Identity::new(&self.mesh.trust_domain, namespace, &entry.service_account).ok()?;
        let plain = format!("{namespace}/{host}/{address}");
        // One address may be listed with several ports.
        let taken = parts.outsiders.contains_key(&WorkloadId(plain.as_str().into()));
        let id = if taken { format!("{plain}/{}", parts.outsiders.len()) } else { plain };
        let id = WorkloadId(id.into());
        let workload = Workload {
            id: id.clone(),
            name: Arc::clone(host),
            namespace: Arc::clone(namespace),
            identity,
            addresses: vec![address],
            node: "".into(),
            labels: Arc::new(Labels::clone(&entry.labels)),
            locality: Arc::clone(&entry.locality),
            enrolled: false,
            netns: None,
            containers: Box::default(),
            workload_name: Arc::clone(host),
            canonical_service: Arc::clone(host),
            canonical_revision: "latest".into(),
            ended: false,
            host_network: false,
        };
        parts.outsiders.insert(id.clone(), Arc::new(workload));
        Some(id)
    }

    /// The names that a Service's endpoints come from.
    pub fn names_of(&self, id: &ServiceId) -> &[Arc<str>] {
        self.entry_parts.get(id).map(|parts| &parts.names[..]).unwrap_or_default()
    }
}

/// No Service of the cluster has a slash in its name.
fn entry_id(namespace: &str, host: &str) -> ServiceId {
    ServiceId(format!("{namespace}/ServiceEntry/{host}").into())
}

pub(super) fn is_entry(id: &ServiceId) -> bool {
    id.0.contains("/ServiceEntry/")
}

/// Which Services' endpoints come from a name.
pub(super) type NameUsers = OrdMap<Arc<str>, Few<ServiceId>>;
