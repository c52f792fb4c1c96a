//! Findings about rules for connections: rules that no port has a use for, ports that no host has, backends that are not
//! there, and routes of the Gateway API that another one keeps from a port.

use std::sync::Arc;

use super::Found;
use super::traffic::{Place, Words};
use crate::compile::{Kind, RouteFacts, Severity, VirtualServiceFacts};
use crate::model::connection::{ConnMatch, ConnRule};
use crate::model::{AppProtocol, ServiceId, ServicePort};
use crate::world::World;
use crate::world::connections::takes_all;
use crate::world::routes::specificity;

impl World {
    /// The `tls` and `tcp` of a VirtualService.
    pub(super) fn check_connections(&self, facts: &VirtualServiceFacts, found: &mut Found<'_>) {
        let ids: Vec<ServiceId> = facts.hosts.iter().flat_map(|host| self.services_of(host)).collect();
        let services = ids.iter().filter_map(|id| self.services.get(id));
        let ports: Vec<&ServicePort> = services.flat_map(|service| &service.ports).collect();
        for (tls, rules) in [(true, &facts.tls), (false, &facts.tcp)] {
            for rule in rules {
                let field = format!("spec.{}", rule.origin.rule);
                let place = Place { kind: Kind::VirtualService, object: &facts.object, field: &field };
                let backends = rule.backends.iter().map(|one| ("route", &one.backend));
                self.check_lost(&place, backends, found);
                // Hosts that nobody has are told of already.
                if let Some(words) = useless(rule, tls, &field, &ports).filter(|_| !ports.is_empty()) {
                    found.add(place.kind, place.object, words);
                }
            }
        }
    }

    /// Whether another route keeps this one from a port that it is attached to.
    pub(super) fn check_rank(&self, route: &RouteFacts, index: usize, found: &mut Found<'_>) {
        let Some(parent) = route.parents.get(index) else { return };
        let id = ServiceId(format!("{}/{}", parent.namespace, parent.name).into());
        let Some(service) = self.services.get(&id) else { return };
        let age = |facts: &RouteFacts| (facts.created, Arc::clone(&facts.object.name));
        for port in service.ports.iter().filter(|port| parent.means(port.port, &port.name)) {
            // Producer's and consumers' routes do not meet.
            let beside = |other: &&Arc<RouteFacts>| {
                other.object != route.object
                    && other.object.namespace == route.object.namespace
                    && other.parents.iter().any(|one| {
                        (&one.namespace, &one.name) == (&parent.namespace, &parent.name)
                            && one.means(port.port, &port.name)
                    })
            };
            let over = self.routes_at(&id).filter(beside).find(|other| {
                let older = other.kind == route.kind && age(other) < age(route);
                let first = older && other.connections.iter().any(|rule| takes_all(rule));
                first || specificity(other.kind) > specificity(route.kind)
            });
            let Some(over) = over else { continue };
            let message =
                format!("{} has port {} of {id}, so this route does not hold there", over.object, port.port);
            return found.add(
                route.kind,
                &route.object,
                Words {
                    severity: Severity::Warning,
                    field: format!("spec.parentRefs[{index}]"),
                    message,
                    remedy: "attach each port to routes of one kind, and to one TCPRoute",
                },
            );
        }
    }
}

/// Why no connection can ever come to a rule.
fn useless(rule: &ConnRule, tls: bool, field: &str, ports: &[&ServicePort]) -> Option<Words> {
    let warning = |field: String, message: String, remedy: &'static str| {
        Some(Words { severity: Severity::Warning, field, message, remedy })
    };
    let wanted = rule.matches.iter().filter_map(|one| one.port);
    if let Some(lost) = wanted.into_iter().find(|wanted| ports.iter().all(|port| port.port != *wanted)) {
        return warning(
            format!("{field}.match.port"),
            format!("no host of the object has a port {lost}"),
            "write the port of the Service, not that of its pods",
        );
    }
    let meant = |port: &ServicePort| {
        let here = |one: &ConnMatch| one.port.is_none_or(|own| own == port.port);
        rule.matches.is_empty() || rule.matches.iter().any(here)
    };
    let spoken = |port: &ServicePort| match port.protocol {
        AppProtocol::Tls => tls,
        AppProtocol::Tcp | AppProtocol::Auto => !tls,
        AppProtocol::Http | AppProtocol::Http2 | AppProtocol::Grpc => false,
    };
    if ports.iter().any(|port| meant(port) && spoken(port)) {
        return None;
    }
    let (says, remedy) = if tls {
        ("says TLS", "call the port tls or https, or give it such an appProtocol")
    } else {
        ("says neither HTTP nor TLS", "call the port tcp, or write the rule under http or tls")
    };
    warning(field.to_owned(), format!("is never reached: no port that it is for {says}"), remedy)
}
