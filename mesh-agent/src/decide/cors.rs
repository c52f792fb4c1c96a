//! Cross-origin requests (VirtualService `corsPolicy`; the Fetch standard, section 3.2). Owns: what a browser is told.
//! Never: authorization: a browser keeps to the answer, nobody else does. Called by `proxy::http`.

use std::sync::Arc;

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::model::pattern::Pattern;
use crate::model::route::CorsPolicy;

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cors {
    /// No cross-origin request, or from an origin of which the policy says nothing: sent on, the answer is not touched.
    Pass,
    /// Answered here with status 200, these fields and no body.
    Answer(HeaderMap),
    /// Sent on; these fields take the place of the application's ([`decorate`]).
    Decorate(HeaderMap),
}

/// Writes the fields of [`Cors::Decorate`] into an answer. What the application varies its answers by stays.
pub fn decorate(fields: HeaderMap, answer: &mut HeaderMap) {
    let mut name = None;
    for (next, value) in fields {
        // Only the first value of a field comes with its name.
        name = next.or(name);
        match &name {
            Some(name) if *name == VARY => drop(answer.append(name, value)),
            Some(name) => drop(answer.insert(name, value)),
            None => {}
        }
    }
}

/// Decides by the request's method and header fields.
pub fn decide(policy: &CorsPolicy, method: &str, headers: &HeaderMap) -> Cors {
    let Some(origin) = headers.get(ORIGIN) else { return Cors::Pass };
    let preflight = method == "OPTIONS" && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD);
    if !allowed(policy, origin) {
        // By default the application may have an opinion of its own.
        let ignored = preflight && policy.ignore_unmatched_preflights;
        return if ignored { Cors::Answer(HeaderMap::new()) } else { Cors::Pass };
    }
    let mut out = HeaderMap::new();
    put_origin(policy, origin, &mut out);
    if !preflight {
        put_list(policy, ACCESS_CONTROL_EXPOSE_HEADERS, &policy.expose_headers, None, &mut out);
        return Cors::Decorate(out);
    }
    let asked = |name: &HeaderName| headers.get(name).cloned();
    put_list(
        policy,
        ACCESS_CONTROL_ALLOW_METHODS,
        &policy.allow_methods,
        asked(&ACCESS_CONTROL_REQUEST_METHOD),
        &mut out,
    );
    put_list(
        policy,
        ACCESS_CONTROL_ALLOW_HEADERS,
        &policy.allow_headers,
        asked(&ACCESS_CONTROL_REQUEST_HEADERS),
        &mut out,
    );
    if let Some(age) = policy.max_age {
        out.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from(age.as_secs()));
    }
    Cors::Answer(out)
}

fn allowed(policy: &CorsPolicy, origin: &HeaderValue) -> bool {
    let Ok(origin) = origin.to_str() else { return false };
    policy.allow_origins.iter().any(|pattern| is_any(pattern) || pattern.matches(origin))
}

fn is_any(pattern: &Pattern) -> bool {
    match pattern {
        Pattern::Present => true,
        Pattern::Exact(text) => &**text == "*",
        Pattern::Prefix(_) | Pattern::Regex(_) => false,
    }
}

/// The origin itself, so that the answer is right with credentials too; caches must keep the answers apart.
fn put_origin(policy: &CorsPolicy, origin: &HeaderValue, out: &mut HeaderMap) {
    out.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    out.insert(VARY, HeaderValue::from_static("origin"));
    if policy.allow_credentials {
        out.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    }
}

/// A list, if it says anything. `*` has no special meaning with credentials: then what was asked for is allowed by name.
fn put_list(
    policy: &CorsPolicy,
    name: HeaderName,
    list: &[Arc<str>],
    asked: Option<HeaderValue>,
    out: &mut HeaderMap,
) {
    let any = list.iter().any(|one| &**one == "*");
    let value = match asked {
        Some(asked) if any && policy.allow_credentials => Some(asked),
        _ => HeaderValue::from_str(&list.join(",")).ok(),
    };
    if let Some(value) = value.filter(|value| !value.is_empty()) {
        out.insert(name, value);
    }
}

#[cfg(test)]
mod tests;
