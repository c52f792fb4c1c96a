//! VirtualService (reference section 4.3).

use std::sync::Arc;

use serde_json::Value;

use super::connection;
use super::http_action::{action, cors, fault, mirrors, retries, rewrite};
use super::http_match::{for_mesh, matches};
use super::reader::ExportTo;
use super::{Reader, istio, object_ref};
use crate::api::istio::networking::{Delegate, HttpRoute, VirtualService, VirtualServiceSpec};
use crate::compile::{Compiled, Head, Kind, Object, pod};
use crate::model::PolicyRef;
use crate::model::connection::ConnRule;
use crate::model::route::{
    DirectResponse, HeaderOps, HeaderText, HttpMatch, HttpRule, Rewrite, RuleAction, RuleRef,
};

/// A VirtualService that holds for clients in the mesh.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct VirtualServiceFacts {
    pub object: PolicyRef,
    /// Seconds since 1970, 0 when unknown.
    pub created: i64,
    /// Full names, or wildcards. Empty = others delegate to it.
    pub hosts: Vec<Arc<str>>,
    pub export: ExportTo,
    pub http: Vec<HttpEntry>,
    /// For ports that say TLS, by the name in the ClientHello.
    pub tls: Vec<Arc<ConnRule>>,
    /// For ports that say neither TLS nor HTTP, where the client does not speak HTTP.
    pub tcp: Vec<Arc<ConnRule>>,
}

/// One entry of `http[]`.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub enum HttpEntry {
    Rule(Arc<HttpRule>),
    /// The rules of another VirtualService (namespace, name), narrowed to this rule's matches and with what it says
    /// where they say nothing. Its action means nothing.
    Delegate {
        namespace: Arc<str>,
        name: Arc<str>,
        rule: Box<HttpRule>,
    },
}

pub(in crate::compile) fn compile(head: &Head<'_>, value: &Value, out: &mut Compiled) {
    let compiled = istio::<VirtualService, _>(head, value, out, |reader, object| {
        let created = pod::created(&object.metadata);
        understood(reader, &object.spec, created)
    });
    if let Some(Some(facts)) = compiled {
        out.objects.push((head.key(Kind::VirtualService), Object::VirtualService(Box::new(facts))));
    }
}

/// None where the object is for gateways only.
fn understood(
    reader: &mut Reader<'_>,
    spec: &VirtualServiceSpec,
    created: i64,
) -> Option<VirtualServiceFacts> {
    let hosts = hosts(reader, spec);
    let export = reader.export_to(spec.export_to.as_ref());
    let http = spec.http.as_deref().unwrap_or_default();
    let layer4 = [spec.tls.as_ref().map(Vec::len), spec.tcp.as_ref().map(Vec::len)];
    if http.is_empty() && layer4.iter().all(|count| count.is_none_or(|count| count == 0)) {
        reader.fault("spec.http", "is missing", "give the hosts at least one route: http, tls or tcp");
    }
    let object = object_ref(reader.head, Kind::VirtualService.name());
    let (tls, tcp) = connection::rules(reader, &object, spec);
    let mut entries = Vec::with_capacity(http.len());
    let mut catch_all: Option<usize> = None;
    for (index, route) in http.iter().enumerate() {
        if let Some(before) = catch_all {
            reader.warn(
                &format!("spec.http[{index}]"),
                &format!("is never reached: http[{before}] takes every request"),
                "put it before that rule, or give that rule a match",
            );
        }
        let entry = entry(reader, &object, index, route, hosts.is_empty());
        let takes_all = |entry: &HttpEntry| {
            matches!(entry, HttpEntry::Rule(rule) if rule.matches.iter().any(|one| *one == HttpMatch::default())
                || rule.matches.is_empty())
        };
        if entry.as_ref().is_some_and(takes_all) {
            catch_all = catch_all.or(Some(index));
        }
        entries.extend(entry);
    }
    if !for_mesh(spec.gateways.as_ref()) {
        return None;
    }
    Some(VirtualServiceFacts { object, created, hosts, export, http: entries, tls, tcp })
}

fn hosts(reader: &mut Reader<'_>, spec: &VirtualServiceSpec) -> Vec<Arc<str>> {
    let mut hosts: Vec<Arc<str>> = Vec::new();
    for (index, host) in spec.hosts.iter().flatten().enumerate() {
        let field = format!("spec.hosts[{index}]");
        let Some(host) = reader.host(&field, host, true) else { continue };
        if hosts.contains(&host) {
            reader.fault(&field, &format!("`{host}` is listed twice"), "keep one of the two");
        } else {
            hosts.push(host);
        }
    }
    hosts
}

fn entry(
    reader: &mut Reader<'_>,
    object: &PolicyRef,
    index: usize,
    route: &HttpRoute,
    is_delegate: bool,
) -> Option<HttpEntry> {
    let field = format!("spec.http[{index}]");
    let matches = matches(reader, &field, route.r#match.as_ref());
    let delegate = delegate(reader, &field, route, is_delegate);
    let action = match &delegate {
        Some(_) => Some(RuleAction::Respond(DirectResponse { status: 500, body: Arc::new([]) })),
        None => action(reader, &field, route),
    };
    let (mut request_headers, response_headers) =
        reader.headers(&format!("{field}.headers"), route.headers.as_ref());
    let mut rewrite = rewrite(reader, &format!("{field}.rewrite"), route.rewrite.as_ref());
    authority(&mut request_headers, &mut rewrite);
    let fault = fault(reader, &format!("{field}.fault"), route.fault.as_ref());
    let timeout = reader.duration(&format!("{field}.timeout"), route.timeout.as_ref());
    let retry = retries(reader, &format!("{field}.retries"), route.retries.as_ref());
    if fault.may_happen() {
        for (name, said) in [("timeout", route.timeout.is_some()), ("retries", route.retries.is_some())] {
            if said {
                let message = "has no effect beside a fault, as in Istio";
                reader.warn(&format!("{field}.{name}"), message, "remove it, or the fault");
            }
        }
    }
    let mirrors = mirrors(reader, &field, route);
    let cors = cors(reader, &format!("{field}.corsPolicy"), route.cors_policy.as_ref());
    let name = route.name.as_deref().filter(|name| !name.is_empty());
    let rule = HttpRule {
        origin: RuleRef {
            object: object.clone(),
            rule: name.map_or_else(|| format!("http[{index}]").into(), Arc::from),
        },
        // Nothing is left of a rule that is for gateways only. All of it has been read before: every fault is told.
        matches: matches?,
        action: action?,
        request_headers,
        response_headers,
        rewrite,
        timeout: timeout.filter(|timeout| !timeout.is_zero()),
        retry,
        fault,
        mirrors,
        cors,
    };
    Some(match delegate {
        Some((namespace, name)) => HttpEntry::Delegate { namespace, name, rule: Box::new(rule) },
        None => HttpEntry::Rule(Arc::new(rule)),
    })
}

/// A Host that is set among the headers is a rewrite of the authority, as in Istio.
fn authority(headers: &mut HeaderOps, rewrite: &mut Rewrite) {
    headers.set.retain(|(name, value)| {
        // One with variables is filled in with the other fields.
        let HeaderText::Plain(value) = value else { return true };
        let host = **name == *"host";
        if host && rewrite.authority.is_none() {
            rewrite.authority = Some(Arc::clone(value));
        }
        !host
    });
}

fn delegate(
    reader: &mut Reader<'_>,
    field: &str,
    route: &HttpRoute,
    is_delegate: bool,
) -> Option<(Arc<str>, Arc<str>)> {
    let Delegate { name, namespace } = route.delegate.as_ref()?;
    let field = format!("{field}.delegate");
    if is_delegate {
        reader.fault(
            &field,
            "stands in a VirtualService without hosts, which is a delegate itself",
            "delegate once only: give this object hosts, or write its routes here",
        );
    }
    if route.route.is_some() || route.redirect.is_some() || route.direct_response.is_some() {
        reader.fault(
            &field,
            "stands beside an action of its own",
            "remove route, redirect and directResponse",
        );
    }
    let Some(name) = name.as_deref().filter(|name| !name.is_empty()) else {
        reader.fault(&format!("{field}.name"), "is missing", "name the VirtualService that has the routes");
        return None;
    };
    let namespace = namespace.as_deref().filter(|namespace| !namespace.is_empty());
    let namespace = namespace.map_or_else(|| Arc::clone(&reader.head.namespace), Arc::from);
    Some((namespace, name.into()))
}
