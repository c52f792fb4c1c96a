//! Which rule of a host's routes takes a request (reference section 4.3; Gateway API HTTPRouteMatch).
//! Owns: matching, in the order that `compile` and `world` gave the rules. Never: what becomes of the request then
//! (`rewrite`, `fault`, `balance`, the pipeline in `proxy`), or which rules a host has (`Snapshot::http_rules`).
//! Called by `proxy::http` and `explain`. The cost of one call is the host's own rules.

use std::borrow::Cow;
use std::sync::Arc;

use http::HeaderMap;

use super::peer_auth::selects;
use crate::model::Workload;
use crate::model::pattern::{PathMatch, Pattern};
use crate::model::route::{HttpMatch, HttpRule};

/// A request as routes and policies see it.
#[derive(Clone, Copy, Debug)]
pub struct RequestView<'a> {
    pub method: &'a str,
    pub scheme: &'a str,
    /// `:authority`, or Host; with its port if it has one.
    pub authority: &'a str,
    /// Normalised, without the query.
    pub path: &'a str,
    /// As it came, without the question mark.
    pub query: Option<&'a str>,
    pub headers: &'a HeaderMap,
    /// The port that the client dialled: the Service's at the client, the workload's at the destination.
    pub port: u16,
}

/// The first rule that takes the request, and which of its matches did; none for the match where the rule takes all.
pub fn select<'r>(
    rules: &'r [Arc<HttpRule>],
    source: &Workload,
    request: &RequestView<'_>,
) -> Option<(&'r Arc<HttpRule>, Option<&'r HttpMatch>)> {
    rules.iter().find_map(|rule| {
        if rule.matches.is_empty() {
            return Some((rule, None));
        }
        let found = rule.matches.iter().find(|one| matches(one, source, request))?;
        Some((rule, Some(found)))
    })
}

/// Whether everything in one match holds. What is cheap comes first.
pub fn matches(one: &HttpMatch, source: &Workload, request: &RequestView<'_>) -> bool {
    one.port.is_none_or(|port| port == request.port)
        && one.source_namespace.as_ref().is_none_or(|namespace| *namespace == source.namespace)
        && one.method.as_ref().is_none_or(|pattern| pattern.matches(request.method))
        && one.path.as_ref().is_none_or(|wanted| path(wanted, request.path))
        && one.scheme.as_ref().is_none_or(|pattern| pattern.matches(request.scheme))
        && one.authority.as_ref().is_none_or(|pattern| authority(pattern, request.authority))
        && one.headers.iter().all(|(name, pattern)| header(request, name, pattern))
        && !one.without_headers.iter().any(|(name, pattern)| without(request, name, pattern))
        && one.query.iter().all(|(name, pattern)| parameter(request.query, name, pattern))
        && (one.source_labels.is_empty() || selects(&one.source_labels, &source.labels))
}

/// Whether a path is the one wanted.
pub fn path(wanted: &PathMatch, path: &str) -> bool {
    match wanted {
        PathMatch::Exact { path: exact, ignore_case: false } => **exact == *path,
        PathMatch::Exact { path: exact, ignore_case: true } => exact.eq_ignore_ascii_case(path),
        PathMatch::Prefix { prefix, ignore_case: false } => path.starts_with(&**prefix),
        PathMatch::Prefix { prefix, ignore_case: true } => {
            path.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
        }
        PathMatch::Segments(prefix) => {
            path.strip_prefix(&**prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        }
        PathMatch::Regex(regex) => regex.matches(path),
    }
}

/// As it is, or without its port: whoever writes a host name means it on any port.
fn authority(pattern: &Pattern, authority: &str) -> bool {
    let is = |text: &str| match pattern {
        // Host names have no case (RFC 9110, 4.2.3).
        Pattern::Exact(wanted) => wanted.eq_ignore_ascii_case(text),
        Pattern::Prefix(wanted) => {
            text.get(..wanted.len()).is_some_and(|start| start.eq_ignore_ascii_case(wanted))
        }
        Pattern::Regex(_) | Pattern::Present => pattern.matches(text),
    };
    is(authority) || host_of(authority) != authority && is(host_of(authority))
}

/// An authority's host, without its port. An IPv6 address keeps its brackets.
pub fn host_of(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
            let bare_v6 = host.contains(':') && !host.ends_with(']');
            if bare_v6 { authority } else { host }
        }
        _ => authority,
    }
}

fn header(request: &RequestView<'_>, name: &str, pattern: &Pattern) -> bool {
    named(request, name).is_some_and(|value| pattern.matches(&value))
}

/// Whether the header excludes the request. Envoy's `treat_missing_header_as_empty`: a value that is asked for is
/// compared with an empty one where the header is missing.
fn without(request: &RequestView<'_>, name: &str, pattern: &Pattern) -> bool {
    match named(request, name) {
        Some(value) => pattern.matches(&value),
        None => *pattern != Pattern::Present && pattern.matches(""),
    }
}

/// HTTP/2 says `:authority` where HTTP/1 says Host; a rule that names the one means both.
fn named<'a>(request: &RequestView<'a>, name: &str) -> Option<Cow<'a, str>> {
    if name == "host" { Some(Cow::Borrowed(request.authority)) } else { value(request.headers, name) }
}

/// A header's value; the values of one that was sent several times, joined by a comma (RFC 9110, 5.3).
pub fn value<'h>(headers: &'h HeaderMap, name: &str) -> Option<Cow<'h, str>> {
    let mut all = headers.get_all(name).iter();
    let first = String::from_utf8_lossy(all.next()?.as_bytes());
    Some(all.fold(first, |mut joined, value| {
        let text = joined.to_mut();
        text.push(',');
        text.push_str(&String::from_utf8_lossy(value.as_bytes()));
        joined
    }))
}

/// The parameter's first value counts, as it is written; one without `=` has an empty value.
fn parameter(query: Option<&str>, name: &str, pattern: &Pattern) -> bool {
    let mut pairs =
        query.unwrap_or_default().split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.find(|(key, _)| *key == name).is_some_and(|(_, value)| pattern.matches(value))
}

#[cfg(test)]
mod tests;
