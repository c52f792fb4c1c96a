//! `routes`, and the request or connection of an `explain`: the same rules and the same matching as they meet, in words.

use std::time::Duration;

use super::connections;
use crate::admin::{ExplainError, ExplainQuery, PolicySummary, RequestStory, RoutesView, RuleView};
use crate::decide::route::{RequestView, select};
use crate::decide::{Destination, Snapshot as _};
use crate::model::pattern::{PathMatch, Pattern};
use crate::model::route::{
    Abort, Backend, HeaderOps, HeaderText, HttpMatch, HttpRule, Millionths, PathRewrite, Redirect,
    RedirectPort, RuleAction,
};
use crate::model::traffic::{ClientTls, HashAlgorithm, HashKey, LoadBalance, TrafficPolicy};
use crate::model::{Service, Workload};
use crate::world::World;

/// What a workload's requests to a Service meet.
pub(super) fn routes(world: &World, query: &ExplainQuery) -> Result<RoutesView, ExplainError> {
    let source = super::explain::find_workload(world, &query.source)
        .ok_or_else(|| ExplainError::UnknownSource(query.source.clone()))?;
    let service = super::explain::find_service(world, source, &query.destination)
        .ok_or_else(|| ExplainError::UnknownDestination(query.destination.clone()))?;
    let port = super::explain::port(query, Some(service))?;
    let rules = world.http_rules(source, service, port);
    let connections = world.conn_rules(source, service, port);
    let to = Destination { service, port, subset: None };
    let mut notes = Vec::new();
    if service.port(port).is_none() {
        notes.push(format!("{} has no port {port}", service.hostname));
    }
    if !source.enrolled {
        notes.push(format!(
            "{}/{} is not in the mesh: its requests meet none of this",
            source.namespace, source.name
        ));
    }
    if rules.last().is_some_and(|last| !last.matches.is_empty()) {
        notes.push("a request that no rule takes is answered with 404".to_owned());
    }
    if let Some(rules) = &connections {
        notes.push(connections::order(rules).to_owned());
    }
    Ok(RoutesView {
        source: format!("{}/{}", source.namespace, source.name),
        service: service.hostname.to_string(),
        port,
        rules: rules.iter().map(|rule| view(rule)).collect(),
        connections: connections
            .iter()
            .flat_map(|met| met.rules.iter().map(|rule| connections::view(rule)))
            .collect(),
        policy: world.traffic(source, &to).map(|policy| summary(&policy)).unwrap_or_default(),
        notes,
    })
}

/// What becomes of one request to a Service; none = to an address that no Service has.
pub(super) fn request(
    world: &World,
    source: &Workload,
    service: Option<&Service>,
    asked: &RequestView<'_>,
) -> RequestStory {
    let query = asked.query.map_or_else(String::new, |query| format!("?{query}"));
    let path = format!("{}{query}", asked.path);
    let mut story =
        RequestStory { method: asked.method.to_owned(), path, rule: None, outcome: String::new() };
    let by_host = world.entry_by_host(asked.authority, asked.port, &source.namespace);
    let Some(service) = service.or(by_host.map(AsRef::as_ref)) else {
        story.outcome = "no Service is meant, so no rule holds: it goes where the connection goes".to_owned();
        return story;
    };
    let rules = world.http_rules(source, service, asked.port);
    if rules.is_empty() {
        story.outcome = format!("no rule: it goes to an endpoint of {}:{}", service.hostname, asked.port);
        return story;
    }
    match select(&rules, source, asked) {
        None => story.outcome = format!("none of {} takes it: 404", count(rules.len())),
        Some((rule, _)) => {
            let shown = view(rule);
            story.outcome = shown.action.join(", ");
            story.rule = Some(shown);
        }
    }
    story
}

fn count(rules: usize) -> String {
    if rules == 1 { "1 rule".to_owned() } else { format!("{rules} rules") }
}

fn view(rule: &HttpRule) -> RuleView {
    RuleView {
        object: rule.origin.object.to_string(),
        rule: rule.origin.rule.to_string(),
        matches: rule.matches.iter().map(matched).collect(),
        action: action(&rule.action),
        options: options(rule),
    }
}

fn matched(one: &HttpMatch) -> String {
    let mut parts = Vec::new();
    if let Some(path) = &one.path {
        parts.push(match path {
            PathMatch::Exact { path, .. } => format!("path = {path}"),
            PathMatch::Prefix { prefix, .. } => format!("path {prefix}*"),
            PathMatch::Segments(prefix) => format!("path under {prefix}/"),
            PathMatch::Regex(regex) => format!("path ~ {}", regex.source()),
        });
    }
    let fields = [("method", &one.method), ("scheme", &one.scheme), ("authority", &one.authority)];
    let given = fields.into_iter().filter_map(|(name, pattern)| Some(named(name, pattern.as_ref()?)));
    parts.extend(given);
    parts.extend(one.headers.iter().map(|(name, pattern)| named(&format!("header {name}"), pattern)));
    let without = one.without_headers.iter();
    parts.extend(without.map(|(name, pattern)| format!("not {}", named(&format!("header {name}"), pattern))));
    parts.extend(one.query.iter().map(|(name, pattern)| named(&format!("parameter {name}"), pattern)));
    parts.extend(one.port.map(|port| format!("port = {port}")));
    parts.extend(one.source_namespace.as_ref().map(|name| format!("source namespace = {name}")));
    parts.extend(one.source_labels.iter().map(|(key, value)| format!("source label {key} = {value}")));
    if parts.is_empty() { "everything".to_owned() } else { parts.join(" and ") }
}

fn named(name: &str, pattern: &Pattern) -> String {
    match pattern {
        Pattern::Exact(text) => format!("{name} = {text}"),
        Pattern::Prefix(text) => format!("{name} = {text}*"),
        Pattern::Regex(regex) => format!("{name} ~ {}", regex.source()),
        Pattern::Present => format!("{name} present"),
    }
}

fn action(action: &RuleAction) -> Vec<String> {
    match action {
        RuleAction::Forward(backends) => {
            let weighted: Vec<_> = backends.iter().map(|one| (one.weight, &one.backend)).collect();
            shares(&weighted, "500")
        }
        RuleAction::Redirect(found) => vec![redirect(found)],
        RuleAction::Respond(response) => {
            vec![format!("answered with {}, {} bytes", response.status, response.body.len())]
        }
    }
}

/// Who gets which share; `otherwise` is what becomes of those that fall on a backend that cannot be.
pub(super) fn shares(weighted: &[(u32, &Backend)], otherwise: &str) -> Vec<String> {
    let sum: u64 = weighted.iter().map(|(weight, _)| u64::from(*weight)).sum();
    let share = |weight: u32| match weighted.len() {
        1 => String::new(),
        _ => {
            format!("{:.4}", f64::from(weight) * 100.0 / sum.max(1) as f64)
                .trim_end_matches('0')
                .trim_end_matches('.')
                .to_owned()
                + "% "
        }
    };
    weighted.iter().map(|(weight, to)| format!("{}to {}", share(*weight), backend(to, otherwise))).collect()
}

fn backend(backend: &Backend, otherwise: &str) -> String {
    match backend {
        Backend::Host { host, port, subset, .. } => {
            let port = port.map_or_else(String::new, |port| format!(":{port}"));
            let subset = subset.as_ref().map_or_else(String::new, |subset| format!(" subset {subset}"));
            format!("{host}{port}{subset}")
        }
        Backend::Invalid(cause) => format!("nowhere ({cause}): {otherwise}"),
    }
}

fn redirect(redirect: &Redirect) -> String {
    let path = match &redirect.path {
        None => "same path".to_owned(),
        Some(path) => rewritten(path),
    };
    let port = match redirect.port {
        Some(RedirectPort::Number(port)) => format!(":{port}"),
        Some(RedirectPort::OfScheme) => " on the scheme's port".to_owned(),
        Some(RedirectPort::OfRequest) | None => String::new(),
    };
    let scheme = redirect.scheme.as_ref().map_or_else(String::new, |scheme| format!("{scheme}://"));
    let host = redirect.authority.as_deref().unwrap_or("the same host");
    format!("redirected by {} to {scheme}{host}{port}, {path}", redirect.status)
}

fn rewritten(path: &PathRewrite) -> String {
    match path {
        PathRewrite::Full(path) => format!("path {path}"),
        PathRewrite::Prefix(prefix) => format!("prefix {prefix}"),
        PathRewrite::Regex { pattern, rewrite } => format!("path {} -> {rewrite}", pattern.source()),
    }
}

fn percent(share: Millionths) -> String {
    format!("{}%", f64::from(share.0) / 10_000.0)
}

fn options(rule: &HttpRule) -> Vec<String> {
    let mut options = Vec::new();
    options.extend(rule.timeout.map(|time| format!("timeout {}", time_text(time))));
    if let Some(retry) = &rule.retry {
        let each =
            retry.per_try_timeout.map_or_else(String::new, |time| format!(" of {} each", time_text(time)));
        options.push(match retry.attempts {
            0 => "no retries".to_owned(),
            attempts => format!("up to {attempts} retries{each}"),
        });
    }
    if let Some((share, time)) = rule.fault.delay {
        options.push(format!("{} delayed by {}", percent(share), time_text(time)));
    }
    if let Some((share, abort)) = rule.fault.abort {
        let status = match abort {
            Abort::Http(status) => format!("status {status}"),
            Abort::Grpc(code) => format!("gRPC status {code}"),
        };
        options.push(format!("{} aborted with {status}", percent(share)));
    }
    options.extend(
        rule.mirrors
            .iter()
            .map(|one| format!("{} mirrored to {}", percent(one.share), backend(&one.backend, "500"))),
    );
    options.extend(rule.rewrite.path.as_ref().map(|path| format!("rewritten to {}", rewritten(path))));
    options.extend(rule.rewrite.authority.as_ref().map(|host| format!("host rewritten to {host}")));
    let headers = [("request", &rule.request_headers), ("response", &rule.response_headers)];
    options.extend(headers.into_iter().filter_map(|(name, ops)| header_ops(name, ops)));
    options.extend(rule.cors.as_ref().map(|_| "CORS".to_owned()));
    options
}

fn header_ops(direction: &str, ops: &HeaderOps) -> Option<String> {
    let pairs = |word: &str, listed: &[(std::sync::Arc<str>, HeaderText)]| {
        listed.iter().map(|(name, value)| format!("{word} {name}: {value}")).collect::<Vec<_>>()
    };
    let mut all = pairs("set", &ops.set);
    all.extend(pairs("add", &ops.add));
    all.extend(ops.remove.iter().map(|name| format!("remove {name}")));
    (!all.is_empty()).then(|| format!("{direction} headers: {}", all.join(", ")))
}

fn time_text(time: Duration) -> String {
    humantime::format_duration(time).to_string()
}

fn summary(policy: &TrafficPolicy) -> PolicySummary {
    let balance = match &policy.balance {
        LoadBalance::RoundRobin => "each endpoint in turn".to_owned(),
        LoadBalance::Random => "at random".to_owned(),
        LoadBalance::LeastRequest => "the less busy of two endpoints".to_owned(),
        LoadBalance::Passthrough => "the address that the client dialled".to_owned(),
        LoadBalance::Hash { key, algorithm } => {
            let key = match key {
                HashKey::Header(name) => format!("header {name}"),
                HashKey::Cookie { name, .. } => format!("cookie {name}"),
                HashKey::SourceAddress => "source address".to_owned(),
                HashKey::QueryParameter(name) => format!("parameter {name}"),
            };
            let algorithm = match algorithm {
                HashAlgorithm::RingHash { .. } => "ring hash",
                HashAlgorithm::Maglev { .. } => "maglev",
            };
            format!("by {key} ({algorithm})")
        }
    };
    let pool = &policy.pool;
    let limits = [
        ("connections", pool.max_connections),
        ("pending requests", pool.max_pending),
        ("requests", pool.max_requests),
        ("retries", pool.max_retries),
        ("requests per connection", pool.max_requests_per_connection),
    ];
    let mut settings: Vec<String> =
        limits.into_iter().filter_map(|(name, limit)| Some(format!("at most {} {name}", limit?))).collect();
    if let Some(outlier) = &policy.outlier {
        settings.push(format!(
            "ejected for {} after {} answers of 5xx, at most {}% of the endpoints",
            time_text(outlier.base_ejection),
            outlier.consecutive_5xx,
            outlier.max_ejection_percent
        ));
    }
    if policy.locality.enabled {
        settings.push("near endpoints first".to_owned());
    }
    settings.extend(
        policy.warmup.as_ref().map(|one| format!("new endpoints warm up for {}", time_text(one.duration))),
    );
    match &policy.tls {
        ClientTls::Mesh => {}
        ClientTls::Mutual => settings.push("mutual TLS of the mesh or nothing".to_owned()),
        ClientTls::Disable => settings.push("without mutual TLS".to_owned()),
        ClientTls::Originate(rule) => {
            let who = if rule.client.is_some() { ", with a certificate" } else { "" };
            let sure = if rule.skip_verify { ", the server is not verified" } else { "" };
            settings.push(format!("TLS by the agent{who}{sure}"));
        }
    }
    PolicySummary { object: policy.origin.as_ref().map(ToString::to_string), balance, settings }
}

#[cfg(test)]
mod tests;
