//! Findings between routes, DestinationRules and the hosts they name.

use std::collections::BTreeSet;
use std::sync::Arc;

use imbl::OrdMap;

use super::Found;
use crate::compile::traffic::HttpEntry;
use crate::compile::{Kind, RouteFacts, Severity, VirtualServiceFacts};
use crate::model::PolicyRef;
use crate::model::route::{Backend, HttpRule, RuleAction};
use crate::world::World;

/// A finding before its source is known.
pub(super) struct Words {
    pub(super) severity: Severity,
    pub(super) field: String,
    pub(super) message: String,
    pub(super) remedy: &'static str,
}

/// Where in an object a rule stands.
pub(super) struct Place<'a> {
    pub(super) kind: Kind,
    pub(super) object: &'a PolicyRef,
    pub(super) field: &'a str,
}

impl World {
    pub(super) fn check_traffic(&self, found: &mut Found<'_>) {
        let virtual_services: Vec<&Arc<VirtualServiceFacts>> =
            self.virtual_services.values().flat_map(OrdMap::values).collect();
        for facts in &virtual_services {
            self.check_virtual_service(facts, found);
        }
        for rule in self.destination_rules.values().flat_map(OrdMap::values) {
            if self.services_of(&rule.host).is_empty() {
                found.add(Kind::DestinationRule, &rule.object, nobody("spec.host", &rule.host));
            }
        }
        let routes = self.routes.values().flat_map(OrdMap::values).flat_map(OrdMap::values);
        for route in routes {
            self.check_route(route, found);
        }
    }

    fn check_virtual_service(&self, facts: &VirtualServiceFacts, found: &mut Found<'_>) {
        let kind = Kind::VirtualService;
        for (index, host) in facts.hosts.iter().enumerate() {
            let services = self.services_of(host);
            if services.is_empty() {
                found.add(kind, &facts.object, nobody(&format!("spec.hosts[{index}]"), host));
            }
            if services.iter().any(|id| self.routes_at(id).any(|route| takes(route, id))) {
                found.add(
                    kind,
                    &facts.object,
                    Words {
                        severity: Severity::Warning,
                        field: format!("spec.hosts[{index}]"),
                        message: format!("{host} has routes of the Gateway API too, which hold instead"),
                        remedy: "keep one of the two for a host",
                    },
                );
            }
            let older = self.older(facts, host);
            if let Some(older) = older {
                found.add(
                    kind,
                    &facts.object,
                    Words {
                        severity: Severity::Warning,
                        field: format!("spec.hosts[{index}]"),
                        message: format!("{host} is also a host of {older}, whose rules come first"),
                        remedy: "keep the rules of one host in one object",
                    },
                );
            }
        }
        self.check_connections(facts, found);
        for (index, entry) in facts.http.iter().enumerate() {
            let field = format!("spec.http[{index}]");
            match entry {
                HttpEntry::Rule(rule) => {
                    self.check_backends(&Place { kind, object: &facts.object, field: &field }, rule, found)
                }
                HttpEntry::Delegate { namespace, name, rule } => {
                    let Some(delegate) = self.delegate(facts, namespace, name) else {
                        found.add(kind, &facts.object, Words {
                            severity: Severity::Warning,
                            field: format!("{field}.delegate"),
                            message: format!("VirtualService {namespace}/{name} is no delegate: it does not exist, has hosts, or is not exported here"),
                            remedy: "make a VirtualService without hosts, or correct the name",
                        });
                        continue;
                    };
                    let inner = delegate.http.iter().filter_map(|entry| match entry {
                        HttpEntry::Rule(rule) => Some(rule),
                        HttpEntry::Delegate { .. } => None,
                    });
                    for dropped in crate::compile::traffic::delegate::merge(rule, inner).1 {
                        found.add(
                            kind,
                            &facts.object,
                            Words {
                                severity: Severity::Warning,
                                field: format!("{field}.delegate"),
                                message: format!(
                                    "{dropped} matches what this rule does not, and is left out"
                                ),
                                remedy: "make its match lie within this rule's",
                            },
                        );
                    }
                }
            }
        }
    }

    /// The VirtualService before this one for the same host, where some client sees both.
    fn older(&self, facts: &VirtualServiceFacts, host: &str) -> Option<String> {
        let names = self.traffic_index.virtual_hosts.get(host)?;
        let age = |facts: &VirtualServiceFacts| {
            (facts.created, Arc::clone(&facts.object.namespace), Arc::clone(&facts.object.name))
        };
        let mut others =
            names.iter().filter_map(|(namespace, name)| self.virtual_services.get(namespace)?.get(name));
        let older = others.find(|other| other.object != facts.object && age(other) < age(facts))?;
        Some(older.object.to_string())
    }

    fn check_backends(&self, place: &Place<'_>, rule: &HttpRule, found: &mut Found<'_>) {
        let backends = match &rule.action {
            RuleAction::Forward(backends) => backends.as_slice(),
            RuleAction::Redirect(_) | RuleAction::Respond(_) => &[],
        };
        let route = backends.iter().map(|one| ("route", &one.backend));
        let mirrors = rule.mirrors.iter().map(|mirror| ("mirror", &mirror.backend));
        self.check_lost(place, route.chain(mirrors), found);
    }

    /// Backends (with the field's name) that nothing can be sent to.
    pub(super) fn check_lost<'a>(
        &self,
        place: &Place<'_>,
        backends: impl Iterator<Item = (&'static str, &'a Backend)>,
        found: &mut Found<'_>,
    ) {
        let mut told: BTreeSet<String> = BTreeSet::new();
        for (part, backend) in backends {
            let Some(message) = self.lost(backend) else { continue };
            if told.insert(message.clone()) {
                found.add(
                    place.kind,
                    place.object,
                    Words {
                        severity: Severity::Warning,
                        field: format!("{}.{part}", place.field),
                        message,
                        remedy: "make what is missing, or correct the name",
                    },
                );
            }
        }
    }

    /// Why requests to a backend fail, whoever sends them.
    fn lost(&self, backend: &Backend) -> Option<String> {
        match backend {
            Backend::Invalid(cause) => Some(cause.to_string()),
            Backend::Host { host, subset, .. } => {
                if let Some(wrong) = self.wrong(backend) {
                    return Some(wrong.to_string());
                }
                let subset = subset.as_ref()?;
                let known = self.services_of(host).iter().any(|id| self.has_subset(id, subset));
                (!known).then(|| format!("no DestinationRule gives {host} a subset `{subset}`"))
            }
        }
    }

    fn check_route(&self, route: &RouteFacts, found: &mut Found<'_>) {
        let kind = route.kind;
        for (index, parent) in route.parents.iter().enumerate() {
            let id = crate::model::ServiceId(format!("{}/{}", parent.namespace, parent.name).into());
            let service = self.services.get(&id);
            let here = service
                .is_some_and(|service| service.ports.iter().any(|port| parent.means(port.port, &port.name)));
            if here {
                self.check_rank(route, index, found);
            } else {
                found.add(
                    kind,
                    &route.object,
                    Words {
                        severity: Severity::Warning,
                        field: format!("spec.parentRefs[{index}]"),
                        message: format!("Service {id} does not exist, or has no such port"),
                        remedy: "make the Service, or correct the reference",
                    },
                );
            }
        }
        for (_, rule) in &route.rules {
            let field = format!("spec.{}", rule.origin.rule);
            self.check_backends(&Place { kind, object: &route.object, field: &field }, rule, found);
        }
        for rule in &route.connections {
            let field = format!("spec.{}", rule.origin.rule);
            let backends = rule.backends.iter().map(|one| ("backendRefs", &one.backend));
            self.check_lost(&Place { kind, object: &route.object, field: &field }, backends, found);
        }
    }
}

/// A route of the Service's own namespace replaces what VirtualServices say.
fn takes(route: &RouteFacts, id: &crate::model::ServiceId) -> bool {
    id.0.split_once('/').is_some_and(|(namespace, _)| *route.object.namespace == *namespace)
}

fn nobody(field: &str, host: &str) -> Words {
    Words {
        severity: Severity::Warning,
        field: field.to_owned(),
        message: format!(
            "`{host}` is the host of no Service and of no ServiceEntry, so nothing meets the rules"
        ),
        remedy: "write a Service's name, or its full name NAME.NAMESPACE.svc.cluster.local",
    }
}
