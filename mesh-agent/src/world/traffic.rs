//! What holds for the traffic to one Service: its HTTP rules for each client namespace and port, and its
//! DestinationRules with the endpoints of their subsets. Derived when one of the objects behind it changes, so that a
//! request costs a look-up and not a merge, and so that other hosts' routes cost it nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;

use super::few::Few;
use super::{World, connections};
use crate::compile::traffic::{ExportTo, HttpEntry, Resolved, Unsaid, delegate, resolve};
use crate::compile::{DestinationRuleFacts, Kind, VirtualServiceFacts};
use crate::decide::{Destination, NoSubset, peer_auth};
use crate::model::connection::ConnRules;
use crate::model::route::HttpRule;
use crate::model::traffic::{Defaults, LoadBalance, Locality, TrafficPolicy};
use crate::model::{Balance, Endpoint, Labels, PolicyRef, Service, ServiceId, ServicePort, Workload};

/// Rules in the order in which they are tried.
pub(super) type Rules = Arc<[Arc<HttpRule>]>;
/// Namespace and name of an object.
pub(super) type Name = (Arc<str>, Arc<str>);

/// Everything that holds for one Service. Only Services for which something does have one.
#[derive(Debug, PartialEq)]
pub(super) struct ServiceTraffic {
    ports: Vec<(u16, PortRules)>,
    /// The most specific host first.
    rules: Vec<InForce>,
}

#[derive(Debug, PartialEq)]
struct PortRules {
    /// For clients of every namespace that is not listed.
    everywhere: Met,
    by_namespace: BTreeMap<Arc<str>, Met>,
}

/// What a client meets at a port.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Met {
    pub(super) http: Rules,
    /// Of connections that are not read as HTTP.
    pub(super) connections: Option<Arc<ConnRules>>,
}

impl Met {
    pub(super) fn is_empty(&self) -> bool {
        self.http.is_empty() && self.connections.is_none()
    }
}

/// A DestinationRule, with the endpoints of its subsets.
#[derive(Debug, PartialEq)]
struct InForce {
    host: Arc<str>,
    rule: Resolved,
    /// As the rule's subsets: each port's endpoints.
    subsets: Vec<Vec<ServicePort>>,
}

/// Where traffic objects are filed, beside their own maps.
#[derive(Clone, Debug, Default)]
pub(super) struct TrafficIndex {
    /// VirtualServices by host, wildcards included.
    pub(super) virtual_hosts: OrdMap<Arc<str>, Few<Name>>,
    /// Who delegates to a VirtualService.
    pub(super) delegators: OrdMap<Name, Few<Name>>,
    /// DestinationRules by host, wildcards included.
    pub(super) rule_hosts: OrdMap<Arc<str>, Few<Name>>,
    /// Gateway API routes by the Service they are attached to.
    pub(super) parents: OrdMap<ServiceId, Few<(Kind, Name)>>,
    /// From the host of a route's backend to the Services it is attached to.
    pub(super) senders: OrdMap<Arc<str>, Few<(ServiceId, Kind, Name)>>,
}

impl TrafficIndex {
    pub(super) fn file_virtual(&mut self, facts: &VirtualServiceFacts, there: bool) {
        let name = name_of(&facts.object);
        for host in &facts.hosts {
            change(&mut self.virtual_hosts, host, &name, there);
        }
        for entry in &facts.http {
            if let HttpEntry::Delegate { namespace, name: to, .. } = entry {
                change(&mut self.delegators, &(Arc::clone(namespace), Arc::clone(to)), &name, there);
            }
        }
    }

    pub(super) fn file_rule(&mut self, facts: &DestinationRuleFacts, there: bool) {
        change(&mut self.rule_hosts, &facts.host, &name_of(&facts.object), there);
    }
}

pub(super) fn name_of(object: &PolicyRef) -> Name {
    (Arc::clone(&object.namespace), Arc::clone(&object.name))
}

pub(super) fn change<K: Ord + Clone, V: Ord + Clone>(
    map: &mut OrdMap<K, Few<V>>,
    key: &K,
    name: &V,
    there: bool,
) {
    if there {
        super::apply::file(map, key, name);
    } else {
        super::apply::unfile(map, key, name);
    }
}

/// The host itself, then the wildcards that cover it, the narrowest first.
pub(super) fn patterns(host: &str) -> impl Iterator<Item = String> + '_ {
    let wild = host.match_indices('.').map(move |(at, _)| format!("*{}", &host[at..]));
    std::iter::once(host.to_owned()).chain(wild).chain(std::iter::once("*".to_owned()))
}

/// Whether a host, which may be a wildcard, covers this full name.
fn covers(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix('*') {
        Some(suffix) => host.len() > suffix.len() && host.ends_with(suffix),
        None => pattern == host,
    }
}

impl World {
    /// The Services that a host, which may be a wildcard, means.
    pub(super) fn services_of(&self, host: &str) -> Vec<ServiceId> {
        if host.starts_with('*') {
            let covered = self.hosts.iter().filter(|(name, _)| covers(host, name));
            return covered.flat_map(|(_, ids)| ids.iter().cloned()).collect();
        }
        self.hosts.get(host).into_iter().flat_map(Few::iter).cloned().collect()
    }

    /// Derives the traffic of every Service that these hosts mean.
    pub(super) fn derive_hosts<'a>(&mut self, hosts: impl Iterator<Item = &'a Arc<str>>) {
        let touched: BTreeSet<ServiceId> = hosts.flat_map(|host| self.services_of(host)).collect();
        touched.iter().for_each(|id| self.derive_traffic(id));
    }

    /// Replaces a VirtualService, or takes it away; says whether that changed anything.
    pub(super) fn put_virtual_service(&mut self, name: &Name, facts: Option<VirtualServiceFacts>) -> bool {
        let old = self.virtual_services.get(&name.0).and_then(|all| all.get(&name.1)).cloned();
        if old.as_deref() == facts.as_ref() {
            return false;
        }
        if let Some(old) = &old {
            self.traffic_index.file_virtual(old, false);
        }
        let new = facts.map(Arc::new);
        if let Some(new) = &new {
            self.traffic_index.file_virtual(new, true);
        }
        super::apply::replace(&mut self.virtual_services, name, new.clone());
        let roots = self.traffic_index.delegators.get(name).cloned().unwrap_or_default();
        let roots =
            roots.iter().filter_map(|(namespace, name)| self.virtual_services.get(namespace)?.get(name));
        let roots: Vec<Arc<VirtualServiceFacts>> = roots.cloned().collect();
        let all = old.iter().chain(&new).chain(&roots);
        self.derive_hosts(all.flat_map(|facts| facts.hosts.iter()));
        true
    }

    /// The same for a DestinationRule.
    pub(super) fn put_destination_rule(&mut self, name: &Name, facts: Option<DestinationRuleFacts>) -> bool {
        let old = self.destination_rules.get(&name.0).and_then(|all| all.get(&name.1)).cloned();
        if old.as_deref() == facts.as_ref() {
            return false;
        }
        if let Some(old) = &old {
            self.traffic_index.file_rule(old, false);
        }
        let new = facts.map(Arc::new);
        if let Some(new) = &new {
            self.traffic_index.file_rule(new, true);
        }
        super::apply::replace(&mut self.destination_rules, name, new.clone());
        self.derive_hosts(old.iter().chain(&new).map(|facts| &facts.host));
        true
    }

    /// Derives a Service's traffic again.
    pub(super) fn derive_traffic(&mut self, id: &ServiceId) {
        let derived = self.services.get(id).map(|service| self.traffic_of(service));
        match derived.filter(|traffic| !traffic.ports.is_empty() || !traffic.rules.is_empty()) {
            Some(traffic) => drop(self.traffic.insert(id.clone(), Arc::new(traffic))),
            None => drop(self.traffic.remove(id)),
        }
    }

    fn traffic_of(&self, service: &Service) -> ServiceTraffic {
        let mut ports = Vec::new();
        let virtual_services = self.virtual_services_for(&service.hostname);
        for port in &service.ports {
            let (producer, consumers) = self.attached(service, port);
            let met = |namespace: Option<&str>| Met {
                http: port_rules(self, &virtual_services, port.port, namespace),
                connections: connections::at_port(&virtual_services, port, namespace),
            };
            let mut by_namespace: BTreeMap<Arc<str>, Met> = BTreeMap::new();
            // A route of the Gateway API beats the VirtualServices of its Service.
            let everywhere = producer.unwrap_or_else(|| {
                let namespaces = virtual_services.iter().flat_map(|facts| match &facts.export {
                    ExportTo::All => [].iter(),
                    ExportTo::Namespaces(listed) => listed.iter(),
                });
                let namespaces: BTreeSet<&Arc<str>> = namespaces.collect();
                let own = namespaces.into_iter().map(|name| (Arc::clone(name), met(Some(name))));
                by_namespace.extend(own);
                met(None)
            });
            by_namespace.extend(consumers);
            if !everywhere.is_empty() || by_namespace.values().any(|met| !met.is_empty()) {
                ports.push((port.port, PortRules { everywhere, by_namespace }));
            }
        }
        ServiceTraffic { ports, rules: self.rules_for(service) }
    }

    /// The VirtualServices for a host, the narrowest host first, of one host the oldest.
    fn virtual_services_for(&self, host: &str) -> Vec<&Arc<VirtualServiceFacts>> {
        let mut found: Vec<&Arc<VirtualServiceFacts>> = Vec::new();
        for pattern in patterns(host) {
            let names = self.traffic_index.virtual_hosts.get(&*pattern).into_iter().flat_map(Few::iter);
            let mut here: Vec<_> = names
                .filter_map(|(namespace, name)| self.virtual_services.get(namespace)?.get(name))
                .filter(|facts| !found.iter().any(|other| other.object == facts.object))
                .collect();
            here.sort_by(|a, b| age(a.created, &a.object).cmp(&age(b.created, &b.object)));
            found.extend(here);
        }
        found
    }

    /// A VirtualService's rules with those it delegates.
    fn expanded(&self, facts: &VirtualServiceFacts) -> Vec<Arc<HttpRule>> {
        let mut rules = Vec::with_capacity(facts.http.len());
        for entry in &facts.http {
            match entry {
                HttpEntry::Rule(rule) => rules.push(Arc::clone(rule)),
                HttpEntry::Delegate { namespace, name, rule } => {
                    let delegate = self.delegate(facts, namespace, name);
                    let inner = delegate.into_iter().flat_map(plain);
                    rules.extend(delegate::merge(rule, inner).0);
                }
            }
        }
        rules
    }

    /// The VirtualService that another may delegate to: one without hosts that is exported to it.
    pub(super) fn delegate(
        &self,
        root: &VirtualServiceFacts,
        namespace: &str,
        name: &str,
    ) -> Option<&Arc<VirtualServiceFacts>> {
        let found = self.virtual_services.get(namespace)?.get(name)?;
        (found.hosts.is_empty() && found.export.includes(&root.object.namespace)).then_some(found)
    }

    /// The DestinationRules for a Service, joined where they are of one namespace, host, selector and export.
    fn rules_for(&self, service: &Service) -> Vec<InForce> {
        let balance = &self.plain_for(service).balance;
        let names = self.entries.get(&service.id).map(|entry| &entry.subject_alt_names[..]);
        let unsaid = Unsaid {
            balance,
            locality: &self.defaults.locality,
            subject_alt_names: names.unwrap_or_default(),
        };
        let mut found = Vec::new();
        for pattern in patterns(&service.hostname) {
            let names = self.traffic_index.rule_hosts.get(&*pattern).into_iter().flat_map(Few::iter);
            let mut here: Vec<&Arc<DestinationRuleFacts>> = names
                .filter_map(|(namespace, name)| self.destination_rules.get(namespace)?.get(name))
                .collect();
            here.sort_by(|a, b| age(a.created, &a.object).cmp(&age(b.created, &b.object)));
            while let Some(first) = here.first().copied() {
                let (group, rest): (Vec<_>, Vec<_>) = here.into_iter().partition(|rule| {
                    rule.object.namespace == first.object.namespace
                        && rule.selector == first.selector
                        && rule.export == first.export
                });
                here = rest;
                let group: Vec<&DestinationRuleFacts> = group.into_iter().map(|rule| &**rule).collect();
                found.extend(resolve(&group, unsaid).map(|rule| InForce {
                    host: Arc::clone(&first.host),
                    subsets: rule.subsets.iter().map(|(_, labels, _)| self.part(service, labels)).collect(),
                    rule,
                }));
            }
        }
        found
    }

    /// Takes in what holds where no object says otherwise; says whether that is something else now.
    pub(super) fn set_defaults(&mut self, defaults: Arc<Defaults>) -> bool {
        if self.defaults == defaults {
            return false;
        }
        self.plain = plain_policies(&defaults);
        self.defaults = defaults;
        let ids: Vec<ServiceId> = self.traffic.keys().cloned().collect();
        ids.iter().for_each(|id| self.derive_traffic(id));
        true
    }

    /// What holds where no object says otherwise.
    pub fn defaults(&self) -> Arc<Defaults> {
        Arc::clone(&self.defaults)
    }

    /// The policy where nobody wrote one.
    fn plain_for(&self, service: &Service) -> &Arc<TrafficPolicy> {
        let [least, turns, passthrough] = &self.plain;
        match service.balance {
            _ if self.goes_as_dialled(service) => passthrough,
            Balance::RoundRobin => turns,
            Balance::LeastRequest => least,
        }
    }

    /// The ports of a Service with the endpoints that carry these labels.
    fn part(&self, service: &Service, labels: &Labels) -> Vec<ServicePort> {
        let port = |port: &ServicePort| {
            let carries = |endpoint: &&Endpoint| {
                let workload = endpoint.workload.as_ref().and_then(|id| self.workload(id));
                workload.map_or(labels.is_empty(), |workload| peer_auth::selects(labels, &workload.labels))
            };
            let endpoints = port.endpoints.iter().filter(carries).cloned().collect();
            ServicePort::new(Arc::clone(&port.name), port.port, port.protocol, endpoints)
        };
        service.ports.iter().map(port).collect()
    }

    /// The DestinationRule in force for a client: that of the client's namespace, else of the Service's, else of the
    /// root namespace; the first namespace that has one decides alone.
    fn rule_in_force(&self, source: &Workload, service: &Service) -> Option<&InForce> {
        let rules = &self.traffic.get(&service.id)?.rules;
        let namespaces = [&source.namespace, &service.namespace, &self.mesh.root_namespace];
        namespaces.into_iter().find_map(|namespace| {
            let visible = |one: &&InForce| {
                one.rule.object.namespace == *namespace && one.rule.export.includes(&source.namespace)
            };
            let host = &rules.iter().find(visible)?.host;
            let here = || rules.iter().filter(visible).filter(|one| one.host == *host);
            // A selector means clients of the rule's own namespace.
            let selected = here().find(|one| {
                *namespace == source.namespace
                    && one
                        .rule
                        .selector
                        .as_ref()
                        .is_some_and(|selector| peer_auth::selects(selector, &source.labels))
            });
            selected.or_else(|| here().find(|one| one.rule.selector.is_none()))
        })
    }

    pub(super) fn rules_of(&self, source: &Workload, service: &Service, port: u16) -> Rules {
        Arc::clone(self.met(source, service, port).map_or(&self.no_rules, |met| &met.http))
    }

    pub(super) fn met(&self, source: &Workload, service: &Service, port: u16) -> Option<&Met> {
        let (_, rules) = self.traffic.get(&service.id)?.ports.iter().find(|(own, _)| *own == port)?;
        Some(rules.by_namespace.get(&source.namespace).unwrap_or(&rules.everywhere))
    }

    pub(super) fn has_rules(&self, service: &Service) -> bool {
        let any = |rules: &PortRules| {
            !rules.everywhere.http.is_empty() || rules.by_namespace.values().any(|met| !met.http.is_empty())
        };
        self.traffic.get(&service.id).is_some_and(|traffic| traffic.ports.iter().any(|(_, rules)| any(rules)))
    }

    /// Whether any DestinationRule gives the Service a subset of this name.
    pub(super) fn has_subset(&self, id: &ServiceId, subset: &str) -> bool {
        self.traffic.get(id).is_some_and(|traffic| {
            traffic.rules.iter().any(|one| one.rule.subsets.iter().any(|(name, ..)| **name == *subset))
        })
    }

    pub(super) fn policy_of(
        &self,
        source: &Workload,
        to: &Destination<'_>,
    ) -> Result<Arc<TrafficPolicy>, NoSubset> {
        let rule = self.rule_in_force(source, to.service);
        let policy = match (to.subset, rule) {
            (None, None) => self.plain_for(to.service),
            (None, Some(one)) => one.rule.policy.for_port(to.port),
            (Some(subset), one) => {
                let found = one.and_then(|one| one.rule.subsets.iter().find(|(name, ..)| **name == *subset));
                found.ok_or_else(|| NoSubset { subset: subset.into() })?.2.for_port(to.port)
            }
        };
        Ok(Arc::clone(policy))
    }

    pub(super) fn endpoints_of(
        &self,
        source: &Workload,
        to: &Destination<'_>,
        vip: IpAddr,
    ) -> Result<Arc<[Endpoint]>, NoSubset> {
        let ports = match to.subset {
            None => &to.service.ports,
            Some(subset) => self
                .rule_in_force(source, to.service)
                .and_then(|one| {
                    let mut subsets = one.rule.subsets.iter().zip(&one.subsets);
                    subsets.find(|((name, ..), _)| **name == *subset).map(|(_, ports)| ports)
                })
                .ok_or_else(|| NoSubset { subset: subset.into() })?,
        };
        let port = ports.iter().find(|port| port.port == to.port);
        Ok(port.map(|port| Arc::clone(port.endpoints_for(vip))).unwrap_or_default())
    }
}

/// The policies where nobody wrote a DestinationRule: least request, round robin, and as the client dialled. Nothing says
/// then which endpoints are ill, so of what is said of localities only shares count.
pub(super) fn plain_policies(defaults: &Defaults) -> [Arc<TrafficPolicy>; 3] {
    let enabled = defaults.locality.enabled && !defaults.locality.distribute.is_empty();
    let locality = Locality { enabled, ..defaults.locality.clone() };
    [LoadBalance::LeastRequest, LoadBalance::RoundRobin, LoadBalance::Passthrough].map(|balance| {
        Arc::new(TrafficPolicy { balance, locality: locality.clone(), ..TrafficPolicy::default() })
    })
}

/// Objects of one host count from the oldest; without a time they are ordered by name.
fn age(created: i64, object: &PolicyRef) -> (i64, &str, &str) {
    (created, &object.namespace, &object.name)
}

/// A delegate's own rules; what it delegates itself is not followed.
fn plain(facts: &Arc<VirtualServiceFacts>) -> impl Iterator<Item = &Arc<HttpRule>> {
    facts.http.iter().filter_map(|entry| match entry {
        HttpEntry::Rule(rule) => Some(rule),
        HttpEntry::Delegate { .. } => None,
    })
}

/// Whether clients of a namespace (none = of one that nobody names) see an object.
pub(super) fn visible(facts: &VirtualServiceFacts, namespace: Option<&str>) -> bool {
    match namespace {
        Some(namespace) => facts.export.includes(namespace),
        None => facts.export == ExportTo::All,
    }
}

/// The rules that clients of a namespace (none = of one that nobody names) meet at a port. Of the hosts that cover the
/// Service, only the narrowest that such a client may see counts.
fn port_rules(
    world: &World,
    virtual_services: &[&Arc<VirtualServiceFacts>],
    port: u16,
    namespace: Option<&str>,
) -> Rules {
    // One that has only rules for connections hides nobody's HTTP rules.
    let visible = |facts: &&&Arc<VirtualServiceFacts>| !facts.http.is_empty() && visible(facts, namespace);
    let Some(first) = virtual_services.iter().find(visible) else { return Arc::clone(&world.no_rules) };
    // The list is ordered by host: whoever shares a host with the first is merged with it.
    let merged = virtual_services
        .iter()
        .filter(visible)
        .filter(|facts| facts.hosts.iter().any(|host| first.hosts.contains(host)));
    let mut rules: Vec<Arc<HttpRule>> = Vec::new();
    for rule in merged.flat_map(|facts| world.expanded(facts)) {
        let here = |one: &crate::model::route::HttpMatch| one.port.is_none_or(|own| own == port);
        let kept = rule.matches.iter().filter(|one| here(one)).count();
        if kept == rule.matches.len() {
            rules.push(rule);
        } else if kept > 0 {
            let matches = rule.matches.iter().filter(|one| here(one)).cloned().collect();
            rules.push(Arc::new(HttpRule { matches, ..HttpRule::clone(&rule) }));
        }
        if rules.last().is_some_and(|last| last.matches.is_empty()) {
            break;
        }
    }
    rules.into()
}
