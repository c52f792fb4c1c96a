//! `filters[]` of rules and of backends.

use std::sync::Arc;
use std::time::Duration;

use super::{Reader, backend};
use crate::api::gateway::{
    Cors, Filter, Fraction, HeaderModifier, Named, PathModifier, RequestMirror, RequestRedirect, UrlRewrite,
};
use crate::model::pattern::{Pattern, Regex};
use crate::model::route::{
    Backend, CorsPolicy, HeaderOps, Millionths, Mirror, PathRewrite, Redirect, RedirectPort,
};

/// What all filters of one list come to.
#[derive(Default)]
pub(super) struct Filters {
    pub(super) request_headers: HeaderOps,
    pub(super) response_headers: HeaderOps,
    pub(super) mirrors: Vec<Mirror>,
    pub(super) redirect: Option<Redirect>,
    pub(super) path: Option<PathRewrite>,
    pub(super) authority: Option<Arc<str>>,
    pub(super) cors: Option<CorsPolicy>,
}

impl Filters {
    /// `whole`: filters of a rule; those of a backend can only change headers.
    pub(super) fn read(reader: &mut Reader<'_>, field: &str, listed: &[Filter], whole: bool) -> Self {
        let mut all = Self::default();
        for (index, filter) in listed.iter().enumerate() {
            let field = format!("{field}.filters[{index}]");
            let earlier = listed.iter().take(index).any(|other| other.r#type == filter.r#type);
            if earlier && filter.r#type != "RequestMirror" {
                reader.fault(&format!("{field}.type"), "is listed twice", "keep one filter of this type");
            }
            all.one(reader, &field, filter, whole);
        }
        if all.redirect.is_some() && (all.path.is_some() || all.authority.is_some()) {
            let message = "hold a redirect and a rewrite";
            reader.fault(&format!("{field}.filters"), message, "keep one of the two");
        }
        all
    }

    fn one(&mut self, reader: &mut Reader<'_>, field: &str, filter: &Filter, whole: bool) {
        match filter.r#type.as_str() {
            "RequestHeaderModifier" => {
                let given = filter.request_header_modifier.as_ref();
                self.request_headers = headers(reader, &format!("{field}.requestHeaderModifier"), given);
            }
            "ResponseHeaderModifier" => {
                let given = filter.response_header_modifier.as_ref();
                self.response_headers = headers(reader, &format!("{field}.responseHeaderModifier"), given);
            }
            "RequestMirror" if whole => {
                let field = format!("{field}.requestMirror");
                let given = given(reader, &field, filter.request_mirror.as_ref());
                self.mirrors.extend(given.and_then(|one| mirror(reader, &field, one)));
            }
            "RequestRedirect" if whole => {
                let field = format!("{field}.requestRedirect");
                let given = given(reader, &field, filter.request_redirect.as_ref());
                self.redirect = given.map(|one| redirect(reader, &field, one));
            }
            "URLRewrite" if whole => {
                let field = format!("{field}.urlRewrite");
                if let Some(UrlRewrite { hostname, path }) =
                    given(reader, &field, filter.url_rewrite.as_ref()).cloned()
                {
                    self.authority = hostname.map(Arc::from);
                    self.path = path.and_then(|path| modifier(reader, &format!("{field}.path"), &path));
                }
            }
            "CORS" if whole => {
                let field = format!("{field}.cors");
                let given = given(reader, &field, filter.cors.as_ref());
                self.cors = given.map(|one| cors(reader, &field, one));
            }
            other => reader.fault(
                &format!("{field}.type"),
                &format!("{other} is not supported here"),
                "remove the filter",
            ),
        }
    }
}

/// The field that the filter's type names.
fn given<'a, T>(reader: &mut Reader<'_>, field: &str, value: Option<&'a T>) -> Option<&'a T> {
    if value.is_none() {
        reader.fault(field, "is missing", "give the filter what its type names");
    }
    value
}

fn headers(reader: &mut Reader<'_>, field: &str, modifier: Option<&HeaderModifier>) -> HeaderOps {
    let Some(modifier) = given(reader, field, modifier) else { return HeaderOps::default() };
    let mut pairs = |name: &str, listed: &[Named]| {
        let mut read = Vec::new();
        for (index, one) in listed.iter().enumerate() {
            let field = format!("{field}.{name}[{index}]");
            let name = reader.header_name(&format!("{field}.name"), &one.name);
            // Nothing is filled in here: a percent sign is one.
            let value = reader.plain_value(&format!("{field}.value"), &one.value);
            read.extend(name.zip(value));
        }
        read
    };
    let (set, add) = (pairs("set", &modifier.set), pairs("add", &modifier.add));
    let mut remove = Vec::new();
    for (index, name) in modifier.remove.iter().enumerate() {
        remove.extend(reader.header_name(&format!("{field}.remove[{index}]"), name));
    }
    HeaderOps { set, add, remove }
}

fn mirror(reader: &mut Reader<'_>, field: &str, mirror: &RequestMirror) -> Option<Mirror> {
    let share = match (mirror.percent, mirror.fraction) {
        (Some(_), Some(_)) => {
            reader.fault(&format!("{field}.percent"), "stands beside fraction", "keep one of the two");
            return None;
        }
        (Some(percent), None) => reader.percent(&format!("{field}.percent"), f64::from(percent)),
        (None, Some(Fraction { numerator, denominator })) => {
            let denominator = denominator.unwrap_or(100);
            if denominator == 0 || numerator > denominator {
                let message = format!("{numerator}/{denominator} is not a share");
                reader.fault(&format!("{field}.fraction"), &message, "write at most the whole");
                return None;
            }
            let share = u64::from(numerator) * u64::from(Millionths::ALWAYS.0) / u64::from(denominator);
            Millionths(u32::try_from(share).unwrap_or(Millionths::ALWAYS.0))
        }
        (None, None) => Millionths::ALWAYS,
    };
    match backend(reader, &mirror.backend_ref, None) {
        // Nobody waits for a mirror's answer: a wrong one is no mirror.
        Backend::Invalid(_) => None,
        backend => (share > Millionths::NEVER).then_some(Mirror { share, backend }),
    }
}

fn redirect(reader: &mut Reader<'_>, field: &str, given: &RequestRedirect) -> Redirect {
    let status = given.status_code.unwrap_or(302);
    if !matches!(status, 301 | 302 | 303 | 307 | 308) {
        let message = format!("{status} is not a redirect");
        reader.fault(&format!("{field}.statusCode"), &message, "use 301, 302, 303, 307 or 308");
    }
    // A scheme brings its port; without one the request's stays.
    let implied = if given.scheme.is_some() { RedirectPort::OfScheme } else { RedirectPort::OfRequest };
    let port = reader.port(&format!("{field}.port"), given.port).map(RedirectPort::Number);
    Redirect {
        status,
        scheme: given.scheme.as_deref().map(Arc::from),
        authority: given.hostname.as_deref().map(Arc::from),
        port: Some(port.unwrap_or(implied)),
        path: given.path.as_ref().and_then(|path| modifier(reader, &format!("{field}.path"), path)),
    }
}

fn modifier(reader: &mut Reader<'_>, field: &str, path: &PathModifier) -> Option<PathRewrite> {
    match (path.r#type.as_str(), &path.replace_full_path, &path.replace_prefix_match) {
        ("ReplaceFullPath", Some(full), _) => Some(PathRewrite::Full(full.as_str().into())),
        ("ReplacePrefixMatch", _, Some(prefix)) => Some(PathRewrite::Prefix(prefix.as_str().into())),
        _ => {
            reader.fault(field, "does not hold what its type names", "give it the replacement");
            None
        }
    }
}

/// An origin's host may begin with a wildcard, which stands for any number of labels.
fn cors(reader: &mut Reader<'_>, field: &str, cors: &Cors) -> CorsPolicy {
    let mut allow_origins = Vec::new();
    for (index, origin) in cors.allow_origins.iter().enumerate() {
        if origin == "*" {
            allow_origins.push(Pattern::Present);
        } else if origin.contains('*') {
            let text = Regex::escape(origin).replace("\\*", ".+");
            let regex = reader.regex(&format!("{field}.allowOrigins[{index}]"), &text);
            allow_origins.extend(regex.map(Pattern::Regex));
        } else {
            allow_origins.push(Pattern::Exact(origin.as_str().into()));
        }
    }
    let texts = |listed: &[String]| listed.iter().map(|text| Arc::from(text.as_str())).collect();
    CorsPolicy {
        allow_origins,
        allow_methods: texts(&cors.allow_methods),
        allow_headers: texts(&cors.allow_headers),
        expose_headers: texts(&cors.expose_headers),
        // The API's default.
        max_age: Some(Duration::from_secs(cors.max_age.unwrap_or(5).into())),
        allow_credentials: cors.allow_credentials.unwrap_or(false),
        // A preflight that does not match is answered here, without the headers that would allow it.
        ignore_unmatched_preflights: true,
    }
}
