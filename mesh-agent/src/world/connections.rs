//! Rules for connections: what of VirtualServices holds at a port, and what of TCPRoutes and TLSRoutes.

use std::sync::Arc;

use super::World;
use super::traffic::{Met, visible};
use crate::compile::{Kind, RouteFacts, VirtualServiceFacts};
use crate::model::connection::{ConnMatch, ConnRule, ConnRules};
use crate::model::{AppProtocol, Service, ServicePort, Workload};

/// The rules of VirtualServices (the narrowest host first) that clients of a namespace (none = of one that nobody
/// names) meet at a port: `tls` where the port says TLS, `tcp` where it says neither TLS nor HTTP. Unlike HTTP rules,
/// those of wider hosts follow: what no rule takes goes on to the next object, as in Istio.
pub(super) fn at_port(
    virtual_services: &[&Arc<VirtualServiceFacts>],
    port: &ServicePort,
    namespace: Option<&str>,
) -> Option<Arc<ConnRules>> {
    let by_sni = match port.protocol {
        AppProtocol::Tls => true,
        AppProtocol::Tcp | AppProtocol::Auto => false,
        AppProtocol::Http | AppProtocol::Http2 | AppProtocol::Grpc => return None,
    };
    let mut rules: Vec<Arc<ConnRule>> = Vec::new();
    for facts in virtual_services.iter().filter(|facts| visible(facts, namespace)) {
        for rule in if by_sni { &facts.tls } else { &facts.tcp } {
            rules.extend(kept(rule, port.port));
            if rules.last().is_some_and(|last| takes_all(last)) {
                return Some(Arc::new(ConnRules { by_sni, exclusive: false, rules }));
            }
        }
    }
    (!rules.is_empty()).then(|| Arc::new(ConnRules { by_sni, exclusive: false, rules }))
}

/// The rule with the matches that are for this port; none where it has none.
fn kept(rule: &Arc<ConnRule>, port: u16) -> Option<Arc<ConnRule>> {
    let here = |one: &&ConnMatch| one.port.is_none_or(|own| own == port);
    let count = rule.matches.iter().filter(here).count();
    if count == rule.matches.len() {
        return Some(Arc::clone(rule));
    }
    let matches: Vec<ConnMatch> = rule.matches.iter().filter(here).cloned().collect();
    (count > 0).then(|| Arc::new(ConnRule { matches, ..ConnRule::clone(rule) }))
}

/// Whether no connection passes the rule by, whoever the client is.
pub(super) fn takes_all(rule: &ConnRule) -> bool {
    let free = |one: &ConnMatch| *one == ConnMatch { port: one.port, ..ConnMatch::default() };
    rule.matches.is_empty() || rule.matches.iter().any(free)
}

/// What TCPRoutes or TLSRoutes (of one kind, the oldest first) make of a port.
pub(super) fn of_routes(kind: Kind, routes: &[&Arc<RouteFacts>]) -> Met {
    let rules: Vec<Arc<ConnRule>> =
        routes.iter().flat_map(|route| route.connections.iter().map(Arc::clone)).collect();
    let by_sni = kind == Kind::TlsRoute;
    let connections = (!rules.is_empty()).then(|| Arc::new(ConnRules { by_sni, exclusive: true, rules }));
    Met { connections, ..Met::default() }
}

impl World {
    pub(super) fn connections_of(
        &self,
        source: &Workload,
        service: &Service,
        port: u16,
    ) -> Option<Arc<ConnRules>> {
        self.met(source, service, port)?.connections.as_ref().map(Arc::clone)
    }
}
