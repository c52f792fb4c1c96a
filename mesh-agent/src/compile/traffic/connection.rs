//! `tls[]` and `tcp[]` of a VirtualService (reference section 4.3). What Istio's own validation refuses is refused here
//! too: a TLS rule names servers, and only such as the object has among its hosts.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;

use super::Reader;
use super::http_action::{backend, weight};
use super::http_match::for_mesh;
use crate::api::istio::networking::{RouteDestination, VirtualServiceSpec};
use crate::compile::values;
use crate::model::PolicyRef;
use crate::model::connection::{ConnMatch, ConnRule, SniPattern, WeightedDestination};
use crate::model::route::RuleRef;

/// The rules of both lists, TLS first.
pub(super) fn rules(
    reader: &mut Reader<'_>,
    object: &PolicyRef,
    spec: &VirtualServiceSpec,
) -> (Vec<Arc<ConnRule>>, Vec<Arc<ConnRule>>) {
    let (tls, tcp) = (spec.tls.as_deref().unwrap_or_default(), spec.tcp.as_deref().unwrap_or_default());
    if spec.hosts.as_ref().is_none_or(Vec::is_empty) {
        for (name, any) in [("tls", !tls.is_empty()), ("tcp", !tcp.is_empty())] {
            if any {
                reader.fault(
                    &format!("spec.{name}"),
                    "stands in a VirtualService without hosts, which others delegate HTTP rules to",
                    "give this object hosts, or move the rules into one that has",
                );
            }
        }
    }
    let mut read_tls = List::new(object, "tls");
    for (index, route) in tls.iter().enumerate() {
        let field = format!("spec.tls[{index}]");
        let matches = route.r#match.as_deref().unwrap_or_default();
        if matches.is_empty() {
            reader.fault(&format!("{field}.match"), "is missing", "say by sniHosts which servers are meant");
        }
        let mut compiled = Vec::new();
        for (index, one) in matches.iter().enumerate() {
            let field = format!("{field}.match[{index}]");
            let common = Common {
                subnets: one.destination_subnets.as_deref(),
                port: one.port,
                labels: one.source_labels.as_ref(),
                namespace: one.source_namespace.as_deref(),
            };
            let sni = sni_hosts(reader, &field, one.sni_hosts.as_deref(), spec);
            let one_match = ConnMatch { sni, ..common.read(reader, &field) };
            compiled.extend(for_mesh(one.gateways.as_ref()).then_some(one_match));
        }
        let gone = compiled.is_empty();
        read_tls.rule(reader, index, (!gone).then_some(compiled), route.route.as_deref());
    }
    let mut read_tcp = List::new(object, "tcp");
    for (index, route) in tcp.iter().enumerate() {
        let field = format!("spec.tcp[{index}]");
        let matches = route.r#match.as_deref().unwrap_or_default();
        let mut compiled = Vec::new();
        for (index, one) in matches.iter().enumerate() {
            let field = format!("{field}.match[{index}]");
            if one.source_subnet.as_ref().is_some_and(|text| !text.is_empty()) {
                reader.fault(
                    &format!("{field}.sourceSubnet"),
                    "is a field that Istio does not look at",
                    "say by sourceLabels or sourceNamespace which clients are meant",
                );
            }
            let common = Common {
                subnets: one.destination_subnets.as_deref(),
                port: one.port,
                labels: one.source_labels.as_ref(),
                namespace: one.source_namespace.as_deref(),
            };
            let one_match = common.read(reader, &field);
            compiled.extend(for_mesh(one.gateways.as_ref()).then_some(one_match));
        }
        let gone = compiled.is_empty() && !matches.is_empty();
        read_tcp.rule(reader, index, (!gone).then_some(compiled), route.route.as_deref());
    }
    (read_tls.rules, read_tcp.rules)
}

/// What both kinds of match have.
struct Common<'a> {
    subnets: Option<&'a [String]>,
    port: Option<u32>,
    labels: Option<&'a BTreeMap<String, String>>,
    namespace: Option<&'a str>,
}

impl Common<'_> {
    fn read(&self, reader: &mut Reader<'_>, field: &str) -> ConnMatch {
        let mut subnets: Vec<IpNet> = Vec::new();
        for (index, text) in self.subnets.unwrap_or_default().iter().enumerate() {
            match values::block(text) {
                Ok(subnet) => subnets.push(subnet),
                Err((message, remedy)) => {
                    reader.fault(&format!("{field}.destinationSubnets[{index}]"), &message, &remedy);
                }
            }
        }
        ConnMatch {
            sni: Vec::new(),
            subnets,
            port: reader.port(&format!("{field}.port"), self.port.filter(|port| *port != 0)),
            source_labels: self.labels.cloned().unwrap_or_default(),
            source_namespace: self.namespace.filter(|name| !name.is_empty()).map(Arc::from),
        }
    }
}

/// Every name must lie within one of the object's hosts, as they are written or by their full names.
fn sni_hosts(
    reader: &mut Reader<'_>,
    field: &str,
    listed: Option<&[String]>,
    spec: &VirtualServiceSpec,
) -> Vec<SniPattern> {
    let listed = listed.unwrap_or_default();
    if listed.is_empty() {
        reader.fault(&format!("{field}.sniHosts"), "is missing", "name the servers as clients ask for them");
    }
    let mut hosts: Vec<String> = Vec::new();
    for host in spec.hosts.iter().flatten() {
        let lower = host.to_ascii_lowercase();
        // Its own fault, if it has one, is told with the hosts.
        let domain = &reader.head.context.mesh.cluster_domain;
        if !lower.contains(['.', '*']) {
            hosts.push(format!("{lower}.{}.svc.{domain}", reader.head.namespace));
        }
        hosts.push(lower);
    }
    let mut read = Vec::new();
    for (index, text) in listed.iter().enumerate() {
        let field = format!("{field}.sniHosts[{index}]");
        let Some(pattern) = sni(reader, &field, text) else { continue };
        if !hosts.iter().any(|host| within(&pattern, host)) {
            reader.fault(
                &field,
                &format!("`{text}` lies within none of the object's hosts"),
                "add it to spec.hosts, or correct one of the two",
            );
        } else if !read.contains(&pattern) {
            read.push(pattern);
        }
    }
    read
}

/// Whether everything that the pattern means, the host means as well.
fn within(pattern: &SniPattern, host: &str) -> bool {
    match (pattern, host.strip_prefix('*')) {
        (_, Some("")) => true,
        (SniPattern::Any, _) => false,
        (SniPattern::Exact(name), None) => **name == *host,
        (SniPattern::Under(_), None) => false,
        (SniPattern::Exact(name), Some(suffix)) => name.len() > suffix.len() && name.ends_with(suffix),
        (SniPattern::Under(own), Some(suffix)) => own.ends_with(suffix),
    }
}

/// A server's name, or a wildcard for those under one.
pub(super) fn sni(reader: &mut Reader<'_>, field: &str, text: &str) -> Option<SniPattern> {
    let lower = text.to_ascii_lowercase();
    let label = |label: &str| {
        !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    if lower.parse::<std::net::IpAddr>().is_ok() {
        reader.warn(
            field,
            &format!("`{text}` is an address, and clients send none as a server's name (RFC 6066, 3)"),
            "name the server, or match it by destinationSubnets",
        );
        return Some(SniPattern::Exact(lower.into()));
    }
    if lower == "*" {
        return Some(SniPattern::Any);
    }
    let bare = lower.strip_prefix("*.").unwrap_or(&lower);
    if !bare.split('.').all(label) {
        reader.fault(
            field,
            &format!("`{text}` is not a server's name"),
            "write a name such as shop.example.com, or *.example.com",
        );
        return None;
    }
    Some(match lower.strip_prefix('*') {
        Some(suffix) => SniPattern::Under(suffix.into()),
        None => SniPattern::Exact(lower.into()),
    })
}

/// One of the two lists as it is read.
struct List<'a> {
    object: &'a PolicyRef,
    name: &'static str,
    rules: Vec<Arc<ConnRule>>,
    /// Every match so far with the place of its rule.
    before: Vec<(usize, ConnMatch)>,
}

impl<'a> List<'a> {
    fn new(object: &'a PolicyRef, name: &'static str) -> Self {
        Self { object, name, rules: Vec::new(), before: Vec::new() }
    }

    /// `matches` is none for a rule that is for gateways only. All of it is read: every fault is told.
    fn rule(
        &mut self,
        reader: &mut Reader<'_>,
        index: usize,
        matches: Option<Vec<ConnMatch>>,
        route: Option<&[RouteDestination]>,
    ) {
        let field = format!("spec.{}[{index}]", self.name);
        let backends = destinations(reader, &format!("{field}.route"), route.unwrap_or_default());
        let Some(matches) = matches else { return };
        // What takes everything is a match without conditions.
        let everything = [ConnMatch::default()];
        let asked = if matches.is_empty() { everything.as_slice() } else { matches.as_slice() };
        let shadows: Vec<usize> = asked.iter().filter_map(|one| self.shadow(one)).collect();
        if let (true, Some(first)) = (shadows.len() == asked.len(), shadows.first()) {
            reader.warn(
                &field,
                &format!("is never reached: {}[{first}] takes its connections", self.name),
                "put it before that rule, or give it another match",
            );
        }
        self.before.extend(asked.iter().map(|one| (index, one.clone())));
        if let Some(backends) = backends {
            let origin =
                RuleRef { object: self.object.clone(), rule: format!("{}[{index}]", self.name).into() };
            self.rules.push(Arc::new(ConnRule { origin, matches, backends }));
        }
    }

    /// The rule before it that takes everything this match could.
    fn shadow(&self, one: &ConnMatch) -> Option<usize> {
        let covers = |before: &ConnMatch| {
            let sni = before.sni.is_empty() || one.sni.iter().all(|name| before.sni.contains(name));
            let subnets =
                before.subnets.is_empty() || one.subnets.iter().all(|net| before.subnets.contains(net));
            // A narrower subnet or name would be tried first, wherever it stands; only a rule without any ends the list.
            let ends = before.sni.is_empty() && before.subnets.is_empty();
            let equal = before.sni.is_empty() == one.sni.is_empty()
                && before.subnets.is_empty() == one.subnets.is_empty();
            (ends || equal)
                && sni
                && subnets
                && before.port.is_none_or(|port| one.port == Some(port))
                && before
                    .source_namespace
                    .as_ref()
                    .is_none_or(|own| one.source_namespace.as_ref() == Some(own))
                && before.source_labels.iter().all(|(key, value)| one.source_labels.get(key) == Some(value))
        };
        self.before.iter().find(|(_, before)| covers(before)).map(|(index, _)| *index)
    }
}

/// None where something is wrong with one of them.
fn destinations(
    reader: &mut Reader<'_>,
    field: &str,
    listed: &[RouteDestination],
) -> Option<Vec<WeightedDestination>> {
    if listed.is_empty() {
        reader.fault(field, "is missing", "name at least one destination");
        return None;
    }
    let mut read = Vec::with_capacity(listed.len());
    for (index, one) in listed.iter().enumerate() {
        let field = format!("{field}[{index}]");
        let backend = backend(reader, &format!("{field}.destination"), one.destination.as_ref());
        // A single destination takes everything, whatever its weight says.
        let weight = weight(reader, &field, one.weight);
        let weight = if listed.len() == 1 { 1 } else { weight };
        read.extend(backend.map(|backend| WeightedDestination { weight, backend }));
    }
    if read.len() != listed.len() {
        return None;
    }
    read.retain(|one| one.weight > 0);
    if read.is_empty() {
        reader.fault(field, "has weights that are all 0", "give at least one destination a weight");
        return None;
    }
    Some(read)
}
