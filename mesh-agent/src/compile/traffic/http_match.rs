//! `http[].match[]` of a VirtualService.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Reader;
use crate::api::istio::networking::{HttpMatchRequest, StringMatch};
use crate::model::pattern::{PathMatch, Pattern};
use crate::model::route::HttpMatch;

/// The gateway that stands for clients inside the mesh.
const MESH: &str = "mesh";

/// Whether clients in the mesh are meant; absent = they are.
pub(super) fn for_mesh(gateways: Option<&Vec<String>>) -> bool {
    gateways.is_none_or(|listed| listed.is_empty() || listed.iter().any(|one| one == MESH))
}

/// The matches of one rule; none where none of them is for clients in the mesh, and so the rule is not either.
pub(super) fn matches(
    reader: &mut Reader<'_>,
    field: &str,
    listed: Option<&Vec<HttpMatchRequest>>,
) -> Option<Vec<HttpMatch>> {
    let Some(listed) = listed.filter(|listed| !listed.is_empty()) else { return Some(Vec::new()) };
    let mut compiled = Vec::with_capacity(listed.len());
    for (index, request) in listed.iter().enumerate() {
        let one = one(reader, &format!("{field}.match[{index}]"), request);
        if for_mesh(request.gateways.as_ref()) {
            compiled.push(one);
        }
    }
    (!compiled.is_empty()).then_some(compiled)
}

fn one(reader: &mut Reader<'_>, field: &str, request: &HttpMatchRequest) -> HttpMatch {
    let named_only =
        HttpMatchRequest { name: None, stat_prefix: None, ignore_uri_case: None, ..request.clone() };
    if named_only == HttpMatchRequest::default() {
        reader.fault(field, "says nothing", "give it a condition, or remove `match` to match everything");
    }
    let ignore_case = request.ignore_uri_case.unwrap_or(false);
    let mut part = |name: &str, value: &Option<StringMatch>| {
        let value = value.as_ref()?;
        reader.valued(&format!("{field}.{name}"), value)
    };
    let uri = part("uri", &request.uri);
    let scheme = part("scheme", &request.scheme);
    let method = part("method", &request.method);
    let authority = part("authority", &request.authority);
    let headers = headers(reader, &format!("{field}.headers"), request.headers.as_ref());
    let without_headers =
        headers_of(reader, &format!("{field}.withoutHeaders"), request.without_headers.as_ref());
    let query = query(reader, &format!("{field}.queryParams"), request.query_params.as_ref());
    // Where gateways are named, Istio does not look at the source.
    let any_source = request.gateways.as_ref().is_some_and(|gateways| !gateways.is_empty());
    let source_labels = request.source_labels.clone().filter(|_| !any_source).unwrap_or_default();
    let source_namespace = request.source_namespace.as_deref().filter(|name| !any_source && !name.is_empty());
    HttpMatch {
        path: uri.and_then(|pattern| path(pattern, ignore_case)),
        scheme,
        method,
        authority,
        headers,
        without_headers,
        query,
        port: reader.port(&format!("{field}.port"), request.port),
        source_labels,
        source_namespace: source_namespace.map(Arc::from),
    }
}

/// Istio's prefix is a plain text, not a number of segments; case is never ignored in patterns.
fn path(pattern: Pattern, ignore_case: bool) -> Option<PathMatch> {
    match pattern {
        Pattern::Exact(path) => Some(PathMatch::Exact { path, ignore_case }),
        Pattern::Prefix(prefix) => Some(PathMatch::Prefix { prefix, ignore_case }),
        Pattern::Regex(regex) => Some(PathMatch::Regex(regex)),
        Pattern::Present => None,
    }
}

/// Parts of the request that have a field of their own; Istio passes them over among the headers.
const PSEUDO: [&str; 4] = ["uri", "scheme", "method", "authority"];

type Named = Vec<(Arc<str>, Pattern)>;

fn headers(reader: &mut Reader<'_>, field: &str, listed: Option<&BTreeMap<String, StringMatch>>) -> Named {
    for name in listed.into_iter().flatten().map(|(name, _)| name) {
        if PSEUDO.contains(&name.to_ascii_lowercase().as_str()) {
            reader.warn(
                &format!("{field}.{name}"),
                "is not looked at among the headers",
                "use the field of that name in the match itself",
            );
        }
    }
    headers_of(reader, field, listed)
}

fn headers_of(reader: &mut Reader<'_>, field: &str, listed: Option<&BTreeMap<String, StringMatch>>) -> Named {
    let mut read = Vec::new();
    for (name, value) in listed.into_iter().flatten() {
        if PSEUDO.contains(&name.to_ascii_lowercase().as_str()) {
            continue;
        }
        let field = format!("{field}.{name}");
        let name = reader.header_name(&field, name);
        let pattern = reader.string(&field, value);
        read.extend(name.zip(pattern));
    }
    read
}

fn query(reader: &mut Reader<'_>, field: &str, listed: Option<&BTreeMap<String, StringMatch>>) -> Named {
    let mut read = Vec::new();
    for (name, value) in listed.into_iter().flatten() {
        let field = format!("{field}.{name}");
        if name.is_empty() {
            reader.fault(&field, "has no name", "name the parameter");
        }
        read.extend(reader.string(&field, value).map(|pattern| (Arc::from(name.as_str()), pattern)));
    }
    read
}
