//! What becomes of a request's path and authority: rewrites, and the Location of redirects (VirtualService `rewrite` and
//! `redirect`, HTTPRoute `URLRewrite` and `RequestRedirect`). Owns: the texts. Never: sends any. Called by `proxy::http`
//! and `explain`.

use std::borrow::Cow;

use super::path::{BadPath, PathNormalization, normalise};
use super::route::{RequestView, host_of};
use crate::model::pattern::PathMatch;
use crate::model::route::{HttpMatch, PathRewrite, Redirect, RedirectPort, Rewrite};

/// The path (without query) that is sent on. `matched` is the match that took the request. What a rewrite makes is brought
/// into the one form again: a plain prefix `/a` that gives way to `/` makes `/../admin` of `/a../admin`.
///
/// # Errors
/// What came out has no such form.
pub fn path<'p>(
    rewrite: &Rewrite,
    matched: Option<&HttpMatch>,
    path: &'p str,
    how: PathNormalization,
) -> Result<Cow<'p, str>, BadPath> {
    let Some(rewrite) = &rewrite.path else { return Ok(Cow::Borrowed(path)) };
    let new = rewritten(rewrite, matched.and_then(|one| one.path.as_ref()), path);
    Ok(Cow::Owned(normalise(&new, how)?.into_owned()))
}

fn rewritten(rewrite: &PathRewrite, matched: Option<&PathMatch>, path: &str) -> String {
    match rewrite {
        PathRewrite::Full(new) => rooted(new.to_string()),
        PathRewrite::Regex { pattern, rewrite } => rooted(pattern.replace_all(path, rewrite)),
        PathRewrite::Prefix(new) => match matched {
            // By segments, with one slash between the two parts (the table of HTTPPathModifier in the Gateway API).
            Some(PathMatch::Segments(prefix)) => {
                let rest = path.get(prefix.len()..).unwrap_or_default();
                let new = if rest.is_empty() { new } else { new.trim_end_matches('/') };
                rooted(format!("{new}{rest}"))
            }
            // Plain text after plain text, whatever that gives: Istio's meaning, `/` for `/foo` in `/foo/baz` is `//baz`.
            Some(PathMatch::Prefix { prefix, .. }) => {
                rooted(format!("{new}{}", path.get(prefix.len()..).unwrap_or_default()))
            }
            // What matched as a whole is replaced as a whole.
            Some(PathMatch::Exact { .. } | PathMatch::Regex(_)) => rooted(new.to_string()),
            // A rule for every path is one for the prefix `/`.
            None => rooted(format!("{new}{}", path.strip_prefix('/').unwrap_or(path))),
        },
    }
}

/// A request's path begins with a slash.
fn rooted(path: String) -> String {
    if path.starts_with('/') { path } else { format!("/{path}") }
}

/// The `Location` of a redirect.
pub fn location(redirect: &Redirect, matched: Option<&HttpMatch>, request: &RequestView<'_>) -> String {
    let scheme = redirect.scheme.as_deref().unwrap_or(request.scheme);
    let asked = redirect.authority.as_deref().unwrap_or(request.authority);
    let authority = match redirect.port {
        None if redirect.scheme.is_some() && redirect.authority.is_none() => {
            // A port that only stood for the former scheme goes with it.
            let host = host_of(asked);
            let was_default = port_of(asked) == default_port(request.scheme) && scheme != request.scheme;
            if was_default { host.to_owned() } else { asked.to_owned() }
        }
        None => asked.to_owned(),
        Some(port) => {
            let port = match port {
                RedirectPort::Number(port) => Some(port),
                RedirectPort::OfScheme => default_port(scheme),
                RedirectPort::OfRequest => Some(request.port),
            };
            let host = host_of(asked);
            // The port of the scheme is never written (RFC 9110, 4.2.3).
            match port.filter(|port| Some(*port) != default_port(scheme)) {
                Some(port) => format!("{host}:{port}"),
                None => host.to_owned(),
            }
        }
    };
    let path = match &redirect.path {
        Some(rewrite) => {
            Cow::Owned(rewritten(rewrite, matched.and_then(|one| one.path.as_ref()), request.path))
        }
        None => Cow::Borrowed(request.path),
    };
    // A path that brings its own query keeps it.
    let query = request.query.filter(|_| !path.contains('?'));
    let query = query.map_or_else(String::new, |query| format!("?{query}"));
    format!("{scheme}://{authority}{path}{query}")
}

fn port_of(authority: &str) -> Option<u16> {
    authority.strip_prefix(host_of(authority))?.strip_prefix(':')?.parse().ok()
}

fn default_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
