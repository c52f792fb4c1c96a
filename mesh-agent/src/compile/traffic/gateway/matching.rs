//! `matches[]` of both kinds of route, and their rank among the matches of all routes of a Service.

use std::sync::Arc;

use super::Reader;
use crate::api::gateway::{Match, Method, Named, Path, Rule};
use crate::model::pattern::{PathMatch, Pattern, Regex};
use crate::model::route::HttpMatch;

/// What is more specific is greater. For HTTP: exact before pattern before prefix, the longer prefix, with a method, more
/// headers, more parameters; for gRPC: the longer service, the longer method, more headers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct Rank([u32; 5]);

pub(super) fn matches(
    reader: &mut Reader<'_>,
    field: &str,
    rule: &Rule,
    grpc: bool,
) -> Vec<(Rank, HttpMatch)> {
    // A rule without a match takes everything.
    let implied = [Match::default()];
    let listed = if rule.matches.is_empty() { implied.as_slice() } else { rule.matches.as_slice() };
    let mut compiled = Vec::with_capacity(listed.len());
    for (index, one) in listed.iter().enumerate() {
        let field = format!("{field}.matches[{index}]");
        let headers = named(reader, &format!("{field}.headers"), &one.headers, true);
        let count = |list: &[(Arc<str>, Pattern)]| u32::try_from(list.len()).unwrap_or(u32::MAX);
        if grpc {
            let (lengths, path) = grpc_path(reader, &format!("{field}.method"), one.method.as_ref());
            let rank = Rank([lengths.0, lengths.1, count(&headers), 0, 0]);
            compiled.push((rank, HttpMatch { path, headers, ..HttpMatch::default() }));
            continue;
        }
        let query = named(reader, &format!("{field}.queryParams"), &one.query_params, false);
        let (kind, length, path) = path(reader, &format!("{field}.path"), one.path.as_ref());
        let method = match &one.method {
            Some(Method::Http(method)) => Some(Pattern::Exact(method.as_str().into())),
            Some(Method::Grpc { .. }) | None => None,
        };
        let rank = Rank([kind, length, u32::from(method.is_some()), count(&headers), count(&query)]);
        compiled.push((rank, HttpMatch { path, method, headers, query, ..HttpMatch::default() }));
    }
    compiled
}

fn length(text: &str) -> u32 {
    u32::try_from(text.chars().count()).unwrap_or(u32::MAX)
}

fn path(reader: &mut Reader<'_>, field: &str, path: Option<&Path>) -> (u32, u32, Option<PathMatch>) {
    let kind = path.and_then(|path| path.r#type.as_deref()).unwrap_or("PathPrefix");
    let value = path.and_then(|path| path.value.as_deref()).unwrap_or("/");
    if kind != "RegularExpression" && !value.starts_with('/') {
        reader.fault(&format!("{field}.value"), "does not begin with a slash", "write an absolute path");
    }
    match kind {
        "Exact" => (2, length(value), Some(PathMatch::Exact { path: value.into(), ignore_case: false })),
        "RegularExpression" => {
            let regex = reader.regex(&format!("{field}.value"), value);
            (1, length(value), regex.map(PathMatch::Regex))
        }
        _ => (0, length(value), Some(PathMatch::Segments(value.trim_end_matches('/').into()))),
    }
}

/// Of two entries with one name the first counts, as the specification says.
fn named(reader: &mut Reader<'_>, field: &str, listed: &[Named], header: bool) -> Vec<(Arc<str>, Pattern)> {
    let mut read: Vec<(Arc<str>, Pattern)> = Vec::new();
    for (index, one) in listed.iter().enumerate() {
        let field = format!("{field}[{index}]");
        let name = if header {
            reader.header_name(&format!("{field}.name"), &one.name)
        } else {
            Some(one.name.as_str().into())
        };
        let pattern = match one.r#type.as_deref() {
            None | Some("Exact") => Some(Pattern::Exact(one.value.as_str().into())),
            Some(_) => reader.regex(&format!("{field}.value"), &one.value).map(Pattern::Regex),
        };
        let (Some(name), Some(pattern)) = (name, pattern) else { continue };
        if !read.iter().any(|(own, _)| *own == name) {
            read.push((name, pattern));
        }
    }
    read
}

/// A gRPC method is the path `/SERVICE/METHOD`.
fn grpc_path(
    reader: &mut Reader<'_>,
    field: &str,
    method: Option<&Method>,
) -> ((u32, u32), Option<PathMatch>) {
    let Some(Method::Grpc { r#type, service, method }) = method else { return ((0, 0), None) };
    let service = service.as_deref().filter(|text| !text.is_empty());
    let method = method.as_deref().filter(|text| !text.is_empty());
    let lengths = (service.map_or(0, length), method.map_or(0, length));
    let exact = r#type.as_deref().is_none_or(|kind| kind == "Exact");
    let path = match (service, method) {
        (None, None) => None,
        (Some(service), Some(method)) if exact => {
            Some(PathMatch::Exact { path: format!("/{service}/{method}").into(), ignore_case: false })
        }
        (Some(service), None) if exact => {
            Some(PathMatch::Prefix { prefix: format!("/{service}/").into(), ignore_case: false })
        }
        (service, method) => {
            let part = |text: Option<&str>| match text {
                None => "[^/]+".to_owned(),
                Some(text) if exact => Regex::escape(text),
                Some(text) => format!("(?:{text})"),
            };
            reader.regex(field, &format!("/{}/{}", part(service), part(method))).map(PathMatch::Regex)
        }
    };
    (lengths, path)
}
