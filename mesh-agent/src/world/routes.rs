//! Routes of the Gateway API that are attached to Services: which of them a client meets, in the specification's
//! order, and what their backends are now.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::World;
use super::connections::of_routes;
use super::few::Few;
use super::traffic::{Met, Name, Rules, change, name_of};
use crate::compile::{Kind, RouteFacts};
use crate::model::route::{Backend, HttpRule, RuleAction};
use crate::model::{Service, ServiceId, ServicePort};

impl World {
    /// Replaces a route, or takes it away; says whether that changed anything.
    pub(super) fn put_route(&mut self, kind: Kind, name: &Name, facts: Option<RouteFacts>) -> bool {
        let old = self.route(kind, name).cloned();
        if old.as_deref() == facts.as_ref() {
            return false;
        }
        let new = facts.map(Arc::new);
        for (facts, there) in old.iter().map(|old| (old, false)).chain(new.iter().map(|new| (new, true))) {
            self.file_route(facts, there);
        }
        super::apply::replace(self.routes.entry(kind).or_default(), name, new.clone());
        let touched: BTreeSet<ServiceId> = old.iter().chain(&new).flat_map(|facts| parents(facts)).collect();
        touched.iter().for_each(|id| self.derive_traffic(id));
        true
    }

    fn route(&self, kind: Kind, (namespace, name): &Name) -> Option<&Arc<RouteFacts>> {
        self.routes.get(&kind)?.get(namespace)?.get(name)
    }

    fn file_route(&mut self, facts: &RouteFacts, there: bool) {
        let name = name_of(&facts.object);
        for parent in parents(facts) {
            change(&mut self.traffic_index.parents, &parent, &(facts.kind, name.clone()), there);
            for host in hosts(facts) {
                let sender = (parent.clone(), facts.kind, name.clone());
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
        names.filter_map(|(kind, name)| self.route(*kind, name))
    }

    /// What a Service's port gets from routes: the producer's, for every client, and the consumers', each for the
    /// clients of its own namespace, which then meet no others.
    pub(super) fn attached(
        &self,
        service: &Service,
        port: &ServicePort,
    ) -> (Option<Met>, BTreeMap<Arc<str>, Met>) {
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
        let mut met: BTreeMap<Arc<str>, Met> =
            groups.into_iter().map(|(namespace, routes)| (namespace, self.merged(routes))).collect();
        met.retain(|_, met| !met.is_empty());
        let producer = met.remove(&service.namespace);
        (producer, met)
    }

    /// The rules of routes of one kind, the most specific that there is; the others give way (GEP-1294).
    fn merged(&self, mut routes: Vec<&Arc<RouteFacts>>) -> Met {
        let kind = routes.iter().map(|route| route.kind).max_by_key(|kind| specificity(*kind));
        let kind = kind.unwrap_or(Kind::HttpRoute);
        routes.retain(|route| route.kind == kind);
        routes.sort_by_key(|route| {
            (route.created, Arc::clone(&route.object.namespace), Arc::clone(&route.object.name))
        });
        if matches!(kind, Kind::TcpRoute | Kind::TlsRoute) {
            return of_routes(kind, &routes);
        }
        let mut ranked: Vec<_> = routes.into_iter().flat_map(|route| route.rules.iter()).collect();
        // Stable: of equal rank the older route's, then the earlier rule's.
        ranked.sort_by_key(|(rank, _)| Reverse(*rank));
        let http: Rules = ranked.into_iter().map(|(_, rule)| self.resolved(rule)).collect();
        Met { http, ..Met::default() }
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

/// Which kind takes a port that several are attached to (GEP-1294, "Route types").
pub(super) fn specificity(kind: Kind) -> u8 {
    match kind {
        Kind::GrpcRoute => 3,
        Kind::HttpRoute => 2,
        Kind::TlsRoute => 1,
        _ => 0,
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
