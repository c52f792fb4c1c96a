//! Routes of the Gateway API that are attached to Services: which of them a client meets, in the specification's
//! order, and what their backends are now.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::World;
use super::few::Few;
use super::traffic::{Name, Rules, change, name_of};
use crate::compile::{Kind, RouteFacts};
use crate::model::route::{Backend, HttpRule, RuleAction};
use crate::model::{Service, ServiceId, ServicePort};

impl World {
    /// Replaces a route, or takes it away; says whether that changed anything.
    pub(super) fn put_route(&mut self, kind: Kind, name: &Name, facts: Option<RouteFacts>) -> bool {
        let grpc = kind == Kind::GrpcRoute;
        let old = self.route_map(grpc).get(&name.0).and_then(|all| all.get(&name.1)).cloned();
        if old.as_deref() == facts.as_ref() {
            return false;
        }
        let new = facts.map(Arc::new);
        for (facts, there) in old.iter().map(|old| (old, false)).chain(new.iter().map(|new| (new, true))) {
            self.file_route(facts, there);
        }
        let map = if grpc { &mut self.grpc_routes } else { &mut self.http_routes };
        super::apply::replace(map, name, new.clone());
        let touched: BTreeSet<ServiceId> = old.iter().chain(&new).flat_map(|facts| parents(facts)).collect();
        touched.iter().for_each(|id| self.derive_traffic(id));
        true
    }

    fn route_map(&self, grpc: bool) -> &super::Named<Arc<RouteFacts>> {
        if grpc { &self.grpc_routes } else { &self.http_routes }
    }

    fn file_route(&mut self, facts: &RouteFacts, there: bool) {
        let name = name_of(&facts.object);
        for parent in parents(facts) {
            change(&mut self.traffic_index.parents, &parent, &(facts.grpc, name.clone()), there);
            for host in hosts(facts) {
                let sender = (parent.clone(), facts.grpc, name.clone());
                change(&mut self.traffic_index.senders, &host, &sender, there);
            }
        }
    }

    /// A Service came, went or has other ports: routes that send to it are derived again.
    pub(super) fn derive_senders(&mut self, hostname: &Arc<str>) {
        let senders = self.traffic_index.senders.get(hostname).cloned().unwrap_or_default();
        let parents: BTreeSet<ServiceId> = senders.iter().map(|(id, ..)| id.clone()).collect();
        parents.iter().for_each(|id| self.derive_traffic(id));
    }

    /// Every route of the Gateway API that is attached to a Service.
    pub(super) fn routes_at(&self, id: &ServiceId) -> impl Iterator<Item = &Arc<RouteFacts>> {
        let names = self.traffic_index.parents.get(id).into_iter().flat_map(Few::iter);
        names.filter_map(|(grpc, (namespace, name))| self.route_map(*grpc).get(namespace)?.get(name))
    }

    /// The rules of a Service's port from routes: the producer's, for every client, and the consumers', each for the
    /// clients of its own namespace, which then meet no others.
    pub(super) fn attached(
        &self,
        service: &Service,
        port: &ServicePort,
    ) -> (Option<Rules>, BTreeMap<Arc<str>, Rules>) {
        let mut groups: BTreeMap<Arc<str>, Vec<&Arc<RouteFacts>>> = BTreeMap::new();
        for facts in self.routes_at(&service.id) {
            let here = |parent: &&crate::compile::traffic::gateway::RouteParent| {
                parent.namespace == service.namespace
                    && parent.name == service.name
                    && parent.means(port.port, &port.name)
            };
            if facts.parents.iter().any(|parent| here(&parent)) {
                groups.entry(Arc::clone(&facts.object.namespace)).or_default().push(facts);
            }
        }
        let mut rules: BTreeMap<Arc<str>, Rules> =
            groups.into_iter().map(|(namespace, routes)| (namespace, self.merged(routes))).collect();
        rules.retain(|_, rules| !rules.is_empty());
        let producer = rules.remove(&service.namespace);
        (producer, rules)
    }

    /// The rules of routes of one kind: where a GRPCRoute is among them, HTTPRoutes give way (GEP-1294).
    fn merged(&self, mut routes: Vec<&Arc<RouteFacts>>) -> Rules {
        if routes.iter().any(|route| route.grpc) {
            routes.retain(|route| route.grpc);
        }
        routes.sort_by_key(|route| {
            (route.created, Arc::clone(&route.object.namespace), Arc::clone(&route.object.name))
        });
        let mut ranked: Vec<_> = routes.into_iter().flat_map(|route| route.rules.iter()).collect();
        // Stable: of equal rank the older route's, then the earlier rule's.
        ranked.sort_by_key(|(rank, _)| Reverse(*rank));
        ranked.into_iter().map(|(_, rule)| self.resolved(rule)).collect()
    }

    /// The rule with the backends that exist; one that does not is answered for with 500.
    fn resolved(&self, rule: &Arc<HttpRule>) -> Arc<HttpRule> {
        let wrong: Vec<Option<Arc<str>>> = match &rule.action {
            RuleAction::Forward(backends) => backends.iter().map(|one| self.wrong(&one.backend)).collect(),
            RuleAction::Redirect(_) | RuleAction::Respond(_) => Vec::new(),
        };
        let lost = rule.mirrors.iter().any(|mirror| self.wrong(&mirror.backend).is_some());
        if wrong.iter().all(Option::is_none) && !lost {
            return Arc::clone(rule);
        }
        let mut rule = HttpRule::clone(rule);
        if let RuleAction::Forward(backends) = &mut rule.action {
            for (one, cause) in backends.iter_mut().zip(wrong) {
                if let Some(cause) = cause {
                    one.backend = Backend::Invalid(cause);
                }
            }
        }
        rule.mirrors.retain(|mirror| self.wrong(&mirror.backend).is_none());
        Arc::new(rule)
    }

    /// Why requests cannot go to a backend, whatever its endpoints.
    pub(super) fn wrong(&self, backend: &Backend) -> Option<Arc<str>> {
        let Backend::Host { host, port, .. } = backend else { return None };
        let Some(id) = self.hosts.get(host).and_then(Few::first) else {
            return Some(format!("{host} does not exist").into());
        };
        let service = self.services.get(id)?;
        let port = (*port)?;
        service.port(port).is_none().then(|| format!("{host} has no port {port}").into())
    }
}

fn parents(facts: &RouteFacts) -> BTreeSet<ServiceId> {
    let id = |namespace: &str, name: &str| ServiceId(format!("{namespace}/{name}").into());
    facts.parents.iter().map(|parent| id(&parent.namespace, &parent.name)).collect()
}

fn hosts(facts: &RouteFacts) -> BTreeSet<Arc<str>> {
    let rules = facts.rules.iter().map(|(_, rule)| rule);
    let backends = rules.flat_map(|rule| {
        let forwarded = match &rule.action {
            RuleAction::Forward(backends) => backends.as_slice(),
            RuleAction::Redirect(_) | RuleAction::Respond(_) => &[],
        };
        let mirrors = rule.mirrors.iter().map(|mirror| &mirror.backend);
        forwarded.iter().map(|one| &one.backend).chain(mirrors)
    });
    let hosts = backends.filter_map(|backend| match backend {
        Backend::Host { host, .. } => Some(Arc::clone(host)),
        Backend::Invalid(_) => None,
    });
    hosts.collect()
}
