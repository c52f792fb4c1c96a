//! ServiceEntries as Services: one for each of their hosts, found by its address or its host like any other. An
//! endpoint that is no pod is a workload outside the mesh.

use std::net::IpAddr;
use std::sync::Arc;

use super::World;
use super::traffic::Name;
use crate::compile::traffic::EntryEndpoints;
use crate::compile::{ServiceEntryFacts, WorkloadEntryFacts};
use crate::decide::peer_auth;
use crate::model::{
    Balance, Endpoint, Identity, Labels, Service, ServiceId, ServicePort, Workload, WorkloadId,
};

/// An endpoint before its port is known.
struct Place<'a> {
    address: IpAddr,
    workload: Option<WorkloadId>,
    node: Arc<str>,
    entry: Option<&'a WorkloadEntryFacts>,
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
        for facts in old.iter().chain(&new) {
            self.derive_entry(facts, new.as_ref());
        }
        true
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
        let selecting: Vec<_> = selecting.cloned().collect();
        for facts in &selecting {
            self.derive_entry(facts, Some(facts));
        }
    }

    /// Derives the Services of an entry's hosts; `now` is what the entry says now.
    fn derive_entry(&mut self, facts: &Arc<ServiceEntryFacts>, now: Option<&Arc<ServiceEntryFacts>>) {
        for host in &facts.hosts {
            let id = entry_id(&facts.object.namespace, host);
            if let EntryEndpoints::Static(listed) = &facts.endpoints {
                for one in listed {
                    self.outsiders.remove(&outsider_id(&facts.object.namespace, host, one.address));
                }
            }
            let there = now.filter(|now| now.hosts.contains(host));
            if let Some(EntryEndpoints::Static(listed)) = there.map(|now| &now.endpoints) {
                for one in listed {
                    let id = outsider_id(&facts.object.namespace, host, one.address);
                    let workload = self.outsider(&id, &facts.object.namespace, host, one);
                    if let Some(workload) = workload {
                        self.outsiders.insert(id, Arc::new(workload));
                    }
                }
            }
            match there {
                Some(now) => drop(self.entries.insert(id.clone(), Arc::clone(now))),
                None => drop(self.entries.remove(&id)),
            }
            let service = there.map(|now| self.service_of_entry(&id, host, now));
            self.place_service(&id, service);
        }
    }

    /// The Service of an entry as the pods are now.
    pub(super) fn again(&self, id: &ServiceId, facts: &Arc<ServiceEntryFacts>) -> Option<Service> {
        let host = facts.hosts.iter().find(|host| entry_id(&facts.object.namespace, host) == *id)?;
        Some(self.service_of_entry(id, host, facts))
    }

    fn service_of_entry(&self, id: &ServiceId, host: &Arc<str>, facts: &ServiceEntryFacts) -> Service {
        let places = self.places(host, facts);
        let ports = facts.ports.iter().map(|(port, target)| {
            let endpoint = |place: &Place<'_>| {
                let own = place.entry.and_then(|entry| entry.ports.get(&*port.name)).copied();
                Endpoint {
                    address: (place.address, own.unwrap_or(*target)).into(),
                    workload: place.workload.clone(),
                    ready: true,
                    node: Arc::clone(&place.node),
                }
            };
            // Where the client meant to go is, for an address of the entry, that address.
            let endpoints = match &facts.endpoints {
                EntryEndpoints::AsDialled => facts
                    .vips
                    .iter()
                    .map(|vip| Endpoint {
                        address: (*vip, port.port).into(),
                        workload: None,
                        ready: true,
                        node: "".into(),
                    })
                    .collect(),
                EntryEndpoints::Static(_) | EntryEndpoints::Selected(_) => {
                    places.iter().map(endpoint).collect()
                }
            };
            ServicePort::new(Arc::clone(&port.name), port.port, port.protocol, endpoints)
        });
        Service {
            id: id.clone(),
            name: Arc::clone(host),
            namespace: Arc::clone(&facts.object.namespace),
            hostname: Arc::clone(host),
            vips: facts.vips.clone(),
            ports: ports.collect(),
            balance: Balance::LeastRequest,
        }
    }

    fn places<'a>(&'a self, host: &str, facts: &'a ServiceEntryFacts) -> Vec<Place<'a>> {
        let namespace = &facts.object.namespace;
        match &facts.endpoints {
            EntryEndpoints::AsDialled => Vec::new(),
            EntryEndpoints::Static(listed) => {
                listed.iter().map(|one| self.place(namespace, host, one)).collect()
            }
            EntryEndpoints::Selected(labels) => {
                let pods = self.pods.get(namespace).into_iter().flat_map(imbl::OrdMap::values);
                let pods = pods
                    .map(|pod| &pod.workload)
                    .filter(|pod| !pod.ended && peer_auth::selects(labels, &pod.labels));
                let pods = pods.flat_map(|pod| {
                    pod.addresses.iter().map(|address| Place {
                        address: *address,
                        workload: Some(pod.id.clone()),
                        node: Arc::clone(&pod.node),
                        entry: None,
                    })
                });
                let entries = self.workload_entries.get(namespace).into_iter().flat_map(imbl::OrdMap::values);
                let entries = entries.filter(|entry| peer_auth::selects(labels, &entry.labels));
                pods.chain(entries.map(|entry| self.place(namespace, host, entry))).collect()
            }
        }
    }

    /// The pod that has the address, else the workload that stands for the entry.
    fn place<'a>(&self, namespace: &str, host: &str, entry: &'a WorkloadEntryFacts) -> Place<'a> {
        let pod = self.workload_at(entry.address);
        let outsider = outsider_id(namespace, host, entry.address);
        let workload = match pod {
            Some(pod) => Some(pod.id.clone()),
            None => self.outsiders.contains_key(&outsider).then_some(outsider),
        };
        let node = pod.map_or_else(|| Arc::from(""), |pod| Arc::clone(&pod.node));
        Place { address: entry.address, workload, node, entry: Some(entry) }
    }

    fn outsider(
        &self,
        id: &WorkloadId,
        namespace: &Arc<str>,
        host: &Arc<str>,
        entry: &WorkloadEntryFacts,
    ) -> Option<Workload> {
        let identity = Identity::new(&self.mesh.trust_domain, namespace, &entry.service_account).ok()?;
        Some(Workload {
            id: id.clone(),
            name: Arc::clone(host),
            namespace: Arc::clone(namespace),
            identity,
            addresses: vec![entry.address],
            node: "".into(),
            labels: Arc::new(Labels::clone(&entry.labels)),
            enrolled: false,
            netns: None,
            containers: Box::default(),
            workload_name: Arc::clone(host),
            canonical_service: Arc::clone(host),
            canonical_revision: "latest".into(),
            ended: false,
            host_network: false,
        })
    }
}

/// No Service of the cluster has a slash in its name.
fn entry_id(namespace: &str, host: &str) -> ServiceId {
    ServiceId(format!("{namespace}/ServiceEntry/{host}").into())
}

fn outsider_id(namespace: &str, host: &str, address: IpAddr) -> WorkloadId {
    WorkloadId(format!("{namespace}/{host}/{address}").into())
}
