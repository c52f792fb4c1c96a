//! How one value is held against AuthorizationPolicy's `values` and `notValues`.
//! Owns: exact, prefix, suffix and presence matching, path templates, hosts and headers, without building a string. Called by `authz` only.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::model::policy::{PathPattern, PathTemplate, StringMatch, Values};

/// A text in pieces, as an identity holds its principal: `[trust domain, "/ns/", namespace, ...]`.
pub type Pieces<'a> = &'a [&'a str];

/// Holds one pattern against a text given in pieces. `*` is only ever a wildcard at the pattern's edge, which
/// `compile` has already turned into the variant; everything else is literal (CVE-2026-39350's class).
pub fn matches(pattern: &StringMatch, text: Pieces<'_>) -> bool {
    let length: usize = text.iter().map(|piece| piece.len()).sum();
    match pattern {
        StringMatch::Present => length > 0,
        StringMatch::Exact(want) => length == want.len() && starts(text, want),
        StringMatch::Prefix(want) => length >= want.len() && starts(text, want),
        StringMatch::Suffix(want) => length >= want.len() && ends(text, want),
    }
}

fn starts(text: Pieces<'_>, want: &str) -> bool {
    let mut rest = want.as_bytes();
    for piece in text {
        let piece = piece.as_bytes();
        let take = piece.len().min(rest.len());
        if piece.get(..take) != rest.get(..take) {
            return false;
        }
        rest = rest.get(take..).unwrap_or_default();
    }
    rest.is_empty()
}

fn ends(text: Pieces<'_>, want: &str) -> bool {
    let mut rest = want.as_bytes();
    for piece in text.iter().rev() {
        let piece = piece.as_bytes();
        let take = piece.len().min(rest.len());
        let (head, tail) = rest.split_at(rest.len() - take);
        if piece.get(piece.len() - take..) != Some(tail) {
            return false;
        }
        rest = head;
    }
    rest.is_empty()
}

/// `values` and `notValues` of one field: any of the first (where given) and none of the second. `one` says
/// whether a single pattern matches; where the connection has no such attribute it says no, so that positive
/// values fail and `not` values pass, as Istio does for a plaintext peer.
pub fn field<T>(values: &Values<T>, one: impl Fn(&T) -> bool) -> bool {
    (values.any.is_empty() || values.any.iter().any(&one)) && !values.none.iter().any(&one)
}

/// Text values against an attribute that may be absent.
pub fn text(values: &Values<StringMatch>, attribute: Option<Pieces<'_>>) -> bool {
    field(values, |pattern| attribute.is_some_and(|text| matches(pattern, text)))
}

/// Address blocks. An IPv4 client seen through an IPv6 socket is still the IPv4 client.
pub fn address(values: &Values<IpNet>, address: IpAddr) -> bool {
    let address = address.to_canonical();
    field(values, |block| block.contains(&address))
}

/// Service accounts: exact, never a pattern.
pub fn account(values: &Values<(Arc<str>, Arc<str>)>, peer: Option<(&str, &str)>) -> bool {
    field(values, |(namespace, account)| peer == Some((namespace, account)))
}

/// Paths: texts and templates.
pub fn path(values: &Values<PathPattern>, path: &str) -> bool {
    field(values, |pattern| match pattern {
        PathPattern::Text(pattern) => matches(pattern, &[path]),
        PathPattern::Template(template) => template_matches(template, path),
    })
}

fn template_matches(template: &PathTemplate, path: &str) -> bool {
    let Some(mut left) = path.strip_prefix('/') else { return false };
    let mut wanted = template.segments.iter().peekable();
    while let Some(one) = wanted.next() {
        // Only the last segment of a template without `{**}` has no slash after it.
        let last = wanted.peek().is_none() && template.rest.is_none();
        let (segment, after) = match left.split_once('/') {
            Some(parts) => parts,
            None if last => (left, ""),
            None => return false,
        };
        let fits = one.as_ref().map_or(!segment.is_empty(), |literal| **literal == *segment);
        if !fits || last && left.len() != segment.len() {
            return false;
        }
        left = after;
    }
    template.rest.as_ref().is_none_or(|rest| left.ends_with(&**rest))
}

/// Host names, whose patterns are in lower case. `hosts` are those under which the request may be understood to ask
/// for the same host: one that matches is enough.
pub fn host(values: &Values<StringMatch>, hosts: &[&str]) -> bool {
    field(values, |pattern| hosts.iter().any(|host| host_matches(pattern, host)))
}

fn host_matches(pattern: &StringMatch, host: &str) -> bool {
    let same =
        |part: Option<&[u8]>, want: &str| part.is_some_and(|part| part.eq_ignore_ascii_case(want.as_bytes()));
    let bytes = host.as_bytes();
    match pattern {
        StringMatch::Present => !host.is_empty(),
        StringMatch::Exact(want) => same(Some(bytes), want),
        StringMatch::Prefix(want) => same(bytes.get(..want.len()), want),
        StringMatch::Suffix(want) => {
            same(bytes.len().checked_sub(want.len()).and_then(|at| bytes.get(at..)), want)
        }
    }
}

/// A header's value, the values of one that was sent several times joined by commas. Who reads it may take the whole or
/// one member of the list, so a rule that denies (`wide`) matches if any reading does, and a rule that allows only if the
/// whole does and no member is one of its `notValues` (CVE-2026-26308: only the first value was judged).
pub fn header(values: &Values<StringMatch>, value: Option<&str>, wide: bool) -> bool {
    let Some(whole) = value else { return text(values, None) };
    let readings = || std::iter::once(whole).chain(whole.split(',').map(str::trim));
    let is_any =
        |reading: &str, patterns: &[StringMatch]| patterns.iter().any(|one| matches(one, &[reading]));
    let listed = match wide {
        _ if values.any.is_empty() => true,
        true => readings().any(|reading| is_any(reading, &values.any)),
        false => is_any(whole, &values.any),
    };
    let excluded = match wide {
        true => readings().all(|reading| is_any(reading, &values.none)),
        false => readings().any(|reading| is_any(reading, &values.none)),
    };
    listed && !excluded
}

#[cfg(test)]
mod tests;
