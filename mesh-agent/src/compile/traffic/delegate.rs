//! The rules of a VirtualService together with those that it delegates (Istio's `mergeHTTPRoutes`): a delegate's match
//! must lie within one of the root's, and what the delegate leaves unsaid is the root's. Called by `world`.

use std::sync::Arc;

use crate::model::pattern::{PathMatch, Pattern};
use crate::model::route::{HttpMatch, HttpRule, Rewrite, RuleRef};

/// The delegate's rules as they hold under `root`; those that do not lie within its matches are left out.
pub fn merge<'a>(
    root: &HttpRule,
    rules: impl Iterator<Item = &'a Arc<HttpRule>>,
) -> (Vec<Arc<HttpRule>>, Vec<RuleRef>) {
    let (mut merged, mut dropped) = (Vec::new(), Vec::new());
    for rule in rules {
        match within(&root.matches, &rule.matches) {
            Some(matches) => merged.push(Arc::new(inherit(root, rule, matches))),
            None => dropped.push(rule.origin.clone()),
        }
    }
    (merged, dropped)
}

fn inherit(root: &HttpRule, rule: &HttpRule, matches: Vec<HttpMatch>) -> HttpRule {
    let mut merged = HttpRule { matches, ..rule.clone() };
    if merged.rewrite == Rewrite::default() {
        merged.rewrite = root.rewrite.clone();
    }
    if merged.request_headers.is_empty() && merged.response_headers.is_empty() {
        merged.request_headers = root.request_headers.clone();
        merged.response_headers = root.response_headers.clone();
    }
    if merged.fault.is_empty() {
        merged.fault = root.fault.clone();
    }
    if merged.mirrors.is_empty() {
        merged.mirrors.clone_from(&root.mirrors);
    }
    merged.timeout = merged.timeout.or(root.timeout);
    merged.retry = merged.retry.or_else(|| root.retry.clone());
    merged.cors = merged.cors.or_else(|| root.cors.clone());
    merged
}

/// Each of the delegate's matches joined with those of the root's that it does not contradict; none if one of them
/// contradicts all.
fn within(root: &[HttpMatch], rule: &[HttpMatch]) -> Option<Vec<HttpMatch>> {
    if root.is_empty() {
        return Some(rule.to_vec());
    }
    if rule.is_empty() {
        return Some(root.to_vec());
    }
    let mut joined = Vec::new();
    for one in rule {
        let before = joined.len();
        joined.extend(root.iter().filter_map(|outer| join(outer, one)));
        if joined.len() == before {
            return None;
        }
    }
    Some(joined)
}

fn join(root: &HttpMatch, rule: &HttpMatch) -> Option<HttpMatch> {
    let inside = paths(root.path.as_ref(), rule.path.as_ref())
        && texts(root.scheme.as_ref(), rule.scheme.as_ref())
        && texts(root.method.as_ref(), rule.method.as_ref())
        && texts(root.authority.as_ref(), rule.authority.as_ref())
        && named(&root.headers, &rule.headers)
        && named(&root.without_headers, &rule.without_headers)
        && named(&root.query, &rule.query)
        && agree(root.port, rule.port)
        && agree(root.source_namespace.as_ref(), rule.source_namespace.as_ref())
        && rule
            .source_labels
            .iter()
            .all(|(key, value)| root.source_labels.get(key).is_none_or(|v| v == value));
    let or = |rule: &Option<Pattern>, root: &Option<Pattern>| rule.clone().or_else(|| root.clone());
    let union = |rule: &[(Arc<str>, Pattern)], root: &[(Arc<str>, Pattern)]| {
        let mut all = rule.to_vec();
        all.extend(root.iter().filter(|(name, _)| !rule.iter().any(|(own, _)| own == name)).cloned());
        all
    };
    let mut source_labels = root.source_labels.clone();
    source_labels.extend(rule.source_labels.clone());
    inside.then(|| HttpMatch {
        path: rule.path.clone().or_else(|| root.path.clone()),
        scheme: or(&rule.scheme, &root.scheme),
        method: or(&rule.method, &root.method),
        authority: or(&rule.authority, &root.authority),
        headers: union(&rule.headers, &root.headers),
        without_headers: union(&rule.without_headers, &root.without_headers),
        query: union(&rule.query, &root.query),
        port: rule.port.or(root.port),
        source_labels,
        source_namespace: rule.source_namespace.clone().or_else(|| root.source_namespace.clone()),
    })
}

fn agree<T: PartialEq>(root: Option<T>, rule: Option<T>) -> bool {
    root.is_none() || rule.is_none() || root == rule
}

fn named(root: &[(Arc<str>, Pattern)], rule: &[(Arc<str>, Pattern)]) -> bool {
    rule.iter().all(|(name, pattern)| {
        let outer = root.iter().find(|(own, _)| own == name);
        texts(outer.map(|(_, pattern)| pattern), Some(pattern))
    })
}

/// Whether what the inner one takes, the outer one takes too. Two patterns cannot be compared; Istio takes them for a
/// contradiction unless they are the same.
fn texts(root: Option<&Pattern>, rule: Option<&Pattern>) -> bool {
    let (Some(root), Some(rule)) = (root, rule) else { return true };
    match (root, rule) {
        (Pattern::Present, _) => true,
        (Pattern::Prefix(outer), Pattern::Exact(inner) | Pattern::Prefix(inner)) => {
            inner.starts_with(&**outer)
        }
        (outer, inner) => outer == inner,
    }
}

fn paths(root: Option<&PathMatch>, rule: Option<&PathMatch>) -> bool {
    let (Some(root), Some(rule)) = (root, rule) else { return true };
    match (root, rule) {
        (
            PathMatch::Prefix { prefix, ignore_case },
            PathMatch::Exact { path: inner, .. } | PathMatch::Prefix { prefix: inner, .. },
        ) => {
            inner.starts_with(&**prefix)
                || (*ignore_case && inner.to_lowercase().starts_with(&prefix.to_lowercase()))
        }
        (outer, inner) => outer == inner,
    }
}

#[cfg(test)]
mod tests;
