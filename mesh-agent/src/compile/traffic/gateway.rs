//! Routes attached to a Service (GEP-1294). Each match of an HTTPRoute or GRPCRoute becomes a rule of its own, with its
//! rank: the specification orders matches of all routes of a Service, not rules. The rules of a TCPRoute or TLSRoute
//! are for connections. A reference that is wrong refuses no route; requests that fall on it are answered with 500, and
//! connections are refused.

use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::connection::sni;
use super::reader::{ExportTo, Reader};
use super::{object, object_ref, refused};
use crate::api::gateway::{
    self, BackendRef, GrpcRoute, HttpRoute, ParentRef, Route, RouteSpec, Rule, TcpRoute, TlsRoute,
};
use crate::compile::{Compiled, Head, Kind, Object, pod, typed};
use crate::model::PolicyRef;
use crate::model::connection::{ConnMatch, ConnRule, SniPattern, WeightedDestination};
use crate::model::route::{Backend, HttpRule, Rewrite, RuleAction, RuleRef, WeightedBackend};

mod filter;
mod matching;

use filter::Filters;
pub use matching::Rank;

/// A route that some Service is a parent of.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct RouteFacts {
    pub object: PolicyRef,
    /// Seconds since 1970, 0 when unknown.
    pub created: i64,
    pub kind: Kind,
    pub parents: Vec<RouteParent>,
    /// Of an HTTPRoute or GRPCRoute, each with one match.
    pub rules: Vec<(Rank, Arc<HttpRule>)>,
    /// Of a TCPRoute or TLSRoute.
    pub connections: Vec<Arc<ConnRule>>,
}

/// A Service as a parent.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct RouteParent {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    /// None = every port.
    pub port: Option<u16>,
    /// `sectionName`: the port's name.
    pub section: Option<Arc<str>>,
}

impl RouteParent {
    pub fn means(&self, port: u16, name: &str) -> bool {
        self.port.is_none_or(|own| own == port) && self.section.as_ref().is_none_or(|own| **own == *name)
    }
}

impl RouteFacts {
    /// A consumer route holds for clients of its own namespace only.
    pub fn export(&self, service_namespace: &str) -> ExportTo {
        if *self.object.namespace == *service_namespace {
            ExportTo::All
        } else {
            ExportTo::Namespaces(vec![Arc::clone(&self.object.namespace)])
        }
    }
}

pub(in crate::compile) fn http(head: &Head<'_>, value: &Value, out: &mut Compiled) {
    compile::<HttpRoute>(head, value, out, Kind::HttpRoute, &gateway::HTTP_VERSIONS);
}

pub(in crate::compile) fn grpc(head: &Head<'_>, value: &Value, out: &mut Compiled) {
    compile::<GrpcRoute>(head, value, out, Kind::GrpcRoute, &gateway::GRPC_VERSIONS);
}

pub(in crate::compile) fn tcp(head: &Head<'_>, value: &Value, out: &mut Compiled) {
    compile::<TcpRoute>(head, value, out, Kind::TcpRoute, &gateway::TCP_VERSIONS);
}

pub(in crate::compile) fn tls(head: &Head<'_>, value: &Value, out: &mut Compiled) {
    // The alpha versions may leave the names out, which means all of them.
    if head.version != "v1"
        && value.pointer("/spec/hostnames").is_none()
        && let Some(mut named) = value.get("spec").is_some_and(Value::is_object).then(|| value.clone())
    {
        named["spec"]["hostnames"] = Value::Array(Vec::new());
        return compile::<TlsRoute>(head, &named, out, Kind::TlsRoute, &gateway::TLS_VERSIONS);
    }
    compile::<TlsRoute>(head, value, out, Kind::TlsRoute, &gateway::TLS_VERSIONS);
}

fn compile<T: DeserializeOwned>(
    head: &Head<'_>,
    value: &Value,
    out: &mut Compiled,
    kind: Kind,
    versions: &[&str],
) {
    let parents = value.pointer("/spec/parentRefs").cloned().unwrap_or_default();
    let parents: Vec<ParentRef> = serde_json::from_value(parents).unwrap_or_default();
    // A gateway's route is the business of its own controller, whatever is written in it.
    if !parents.is_empty() && !parents.iter().any(ParentRef::is_service) {
        return;
    }
    if !versions.contains(&head.version.as_str()) {
        return out.diagnostics.push(refused(head.error(
            "apiVersion",
            &format!("`{}` is not known for this kind", head.api_version),
            &format!("use {}/{}", gateway::GROUP, versions.join(" or ")),
        )));
    }
    let facts = object::<T, _>(head, value, out, |reader, _| {
        let created = value
            .get("metadata")
            .and_then(|metadata| serde_json::from_value(metadata.clone()).ok())
            .map_or(0, |metadata| pod::created(&metadata));
        // The same text again: what is read here has passed the schema.
        match typed::read::<Route>(head, value) {
            Ok(route) => Some(understood(reader, &route, kind, created)),
            Err(found) => {
                reader.fault(&found.field, &found.message, &found.remedy);
                None
            }
        }
    });
    if let Some(Some(facts)) = facts {
        out.objects.push((head.key(kind), Object::Route(Box::new(facts))));
    }
}

fn understood(reader: &mut Reader<'_>, route: &Route, kind: Kind, created: i64) -> RouteFacts {
    let object = object_ref(reader.head, kind.name());
    let grpc = kind == Kind::GrpcRoute;
    let mut parents = Vec::new();
    for (index, parent) in route.spec.parent_refs.iter().enumerate().filter(|(_, one)| one.is_service()) {
        let port = reader.port(&format!("spec.parentRefs[{index}].port"), parent.port);
        let namespace = parent.namespace.as_deref().filter(|name| !name.is_empty());
        parents.push(RouteParent {
            namespace: namespace.map_or_else(|| Arc::clone(&reader.head.namespace), Arc::from),
            name: parent.name.as_str().into(),
            port,
            section: parent.section_name.as_deref().filter(|name| !name.is_empty()).map(Arc::from),
        });
    }
    if matches!(kind, Kind::TcpRoute | Kind::TlsRoute) {
        let connections = connections(reader, &route.spec, &object, kind);
        return RouteFacts { object, created, kind, parents, rules: Vec::new(), connections };
    }
    let mut rules = Vec::new();
    // A route without rules has one that says nothing.
    let implied = [Rule::default()];
    let listed = if route.spec.rules.is_empty() && grpc { &[] } else { route.spec.rules.as_slice() };
    let listed = if route.spec.rules.is_empty() && !grpc { implied.as_slice() } else { listed };
    for (index, rule) in listed.iter().enumerate() {
        let field = format!("spec.rules[{index}]");
        let named = rule.name.as_deref().filter(|name| !name.is_empty());
        let name = named.map_or_else(|| format!("rules[{index}]").into(), Arc::from);
        let origin = RuleRef { object: object.clone(), rule: name };
        let template = template(reader, &field, rule, origin);
        for (rank, one) in matching::matches(reader, &field, rule, grpc) {
            rules.push((rank, Arc::new(HttpRule { matches: vec![one], ..template.clone() })));
        }
    }
    RouteFacts { object, created, kind, parents, rules, connections: Vec::new() }
}

/// The rules of a TCPRoute or TLSRoute. The latter's names are those of the ClientHello: nothing else tells its rules
/// from a TCPRoute's.
fn connections(
    reader: &mut Reader<'_>,
    spec: &RouteSpec,
    object: &PolicyRef,
    kind: Kind,
) -> Vec<Arc<ConnRule>> {
    let mut names = Vec::new();
    for (index, text) in spec.hostnames.iter().enumerate() {
        let field = format!("spec.hostnames[{index}]");
        names.extend(sni(reader, &field, text));
    }
    let matches = match kind {
        Kind::TlsRoute if spec.hostnames.is_empty() => {
            vec![ConnMatch { sni: vec![SniPattern::Any], ..ConnMatch::default() }]
        }
        Kind::TlsRoute => vec![ConnMatch { sni: names, ..ConnMatch::default() }],
        _ => Vec::new(),
    };
    if spec.rules.is_empty() {
        reader.fault("spec.rules", "are missing", "give the route one rule with its backendRefs");
    }
    let mut rules = Vec::new();
    for (index, rule) in spec.rules.iter().enumerate() {
        let field = format!("spec.rules[{index}]");
        if index > 0 {
            reader.warn(
                &field,
                "is never reached: rules[0] takes every connection of the route",
                "put its backendRefs into that rule, with weights",
            );
        }
        let named = rule.name.as_deref().filter(|name| !name.is_empty());
        let name = named.map_or_else(|| format!("rules[{index}]").into(), Arc::from);
        let origin = RuleRef { object: object.clone(), rule: name };
        let backends = backends(reader, &field, &rule.backend_refs, None);
        let backends = backends
            .into_iter()
            .map(|one| WeightedDestination { weight: one.weight, backend: one.backend })
            .collect();
        rules.push(Arc::new(ConnRule { origin, matches: matches.clone(), backends }));
    }
    rules
}

/// A rule without its matches.
fn template(reader: &mut Reader<'_>, field: &str, rule: &Rule, origin: RuleRef) -> HttpRule {
    let filters = Filters::read(reader, field, &rule.filters, true);
    let timeouts = rule.timeouts.clone().unwrap_or_default();
    let request = reader.duration(&format!("{field}.timeouts.request"), timeouts.request.as_ref());
    let request = request.filter(|time| !time.is_zero());
    let backend_field = format!("{field}.timeouts.backendRequest");
    let backend = reader.duration(&backend_field, timeouts.backend_request.as_ref());
    let backend = backend.filter(|time| !time.is_zero());
    if request.zip(backend).is_some_and(|(request, backend)| backend > request) {
        reader.fault(&backend_field, "is longer than the whole request's", "make it the shorter one");
    }
    let action = match filters.redirect {
        Some(redirect) => {
            if !rule.backend_refs.is_empty() {
                reader.fault(
                    &format!("{field}.backendRefs"),
                    "stand beside a redirect",
                    "remove one of them",
                );
            }
            RuleAction::Redirect(redirect)
        }
        None => RuleAction::Forward(backends(reader, field, &rule.backend_refs, backend)),
    };
    HttpRule {
        origin,
        matches: Vec::new(),
        action,
        request_headers: filters.request_headers,
        response_headers: filters.response_headers,
        rewrite: Rewrite { path: filters.path, authority: filters.authority },
        timeout: request,
        retry: None,
        fault: crate::model::route::Fault::default(),
        mirrors: filters.mirrors,
        cors: filters.cors,
    }
}

fn backends(
    reader: &mut Reader<'_>,
    field: &str,
    listed: &[BackendRef],
    timeout: Option<std::time::Duration>,
) -> Vec<WeightedBackend> {
    let mut backends = Vec::with_capacity(listed.len());
    for (index, one) in listed.iter().enumerate() {
        let field = format!("{field}.backendRefs[{index}]");
        let filters = Filters::read(reader, &field, &one.filters, false);
        backends.push(WeightedBackend {
            weight: one.weight.unwrap_or(1),
            backend: backend(reader, one, timeout),
            request_headers: filters.request_headers,
            response_headers: filters.response_headers,
        });
    }
    backends.retain(|one| one.weight > 0);
    if backends.is_empty() {
        let cause = "the rule has no backend with a weight";
        backends.push(WeightedBackend {
            weight: 1,
            backend: Backend::Invalid(cause.into()),
            request_headers: Default::default(),
            response_headers: Default::default(),
        });
    }
    backends
}

/// A mesh's route may name a Service of any namespace (GEP-1294): it exposes nothing that could not be reached.
fn backend(reader: &Reader<'_>, one: &BackendRef, timeout: Option<std::time::Duration>) -> Backend {
    let group = one.group.as_deref().unwrap_or_default();
    let kind = one.kind.as_deref().unwrap_or("Service");
    if !matches!(group, "" | "core") || kind != "Service" {
        return Backend::Invalid(format!("{kind} {} is not a kind that requests can go to", one.name).into());
    }
    let Some(port) = one.port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0) else {
        return Backend::Invalid(format!("Service {} is named without a port", one.name).into());
    };
    let namespace = one.namespace.as_deref().filter(|name| !name.is_empty());
    let namespace = namespace.unwrap_or(&reader.head.namespace);
    let domain = &reader.head.context.mesh.cluster_domain;
    let host = format!("{}.{namespace}.svc.{domain}", one.name).into();
    Backend::Host { host, port: Some(port), subset: None, timeout }
}

#[cfg(test)]
mod tests;
