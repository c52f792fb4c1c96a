//! HTTPRoute and GRPCRoute attached to a Service (GEP-1294). Each of a route's matches becomes a rule of its own, with
//! its rank: the specification orders matches of all routes of a Service, not rules. A reference that is wrong refuses
//! no route; requests that fall on it are answered with 500.

use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::reader::{ExportTo, Reader};
use super::{object, object_ref, refused};
use crate::api::gateway::{self, BackendRef, GrpcRoute, HttpRoute, ParentRef, Route, Rule};
use crate::compile::{Compiled, Head, Kind, Object, pod, typed};
use crate::model::PolicyRef;
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
    pub grpc: bool,
    pub parents: Vec<RouteParent>,
    /// Each with one match.
    pub rules: Vec<(Rank, Arc<HttpRule>)>,
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
    RouteFacts { object, created, grpc, parents, rules }
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
