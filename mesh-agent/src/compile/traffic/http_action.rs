//! What a rule of a VirtualService does with the requests it takes: everything of `http[]` but the matches.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;

use super::Reader;
use crate::api::istio::networking::{
    CorsPolicy as ApiCors, Destination, FaultAbort, HttpDirectResponse, HttpFaultInjection, HttpRedirect,
    HttpRetry, HttpRewrite, HttpRoute, HttpRouteDestination, RedirectPortSelection, UnmatchedPreflights,
};
use crate::model::pattern::{Pattern, Regex};
use crate::model::route::{
    Abort, Backend, CorsPolicy, DirectResponse, Fault, Millionths, Mirror, PathRewrite, Redirect,
    RedirectPort, RetryOn, RetryPolicy, Rewrite, RuleAction, WeightedBackend,
};

/// Envoy's first wait before a retry.
pub(super) const BACKOFF: Duration = Duration::from_millis(25);
/// The longest text that a direct response may have (Istio's own limit).
const BODY_MAX_BYTES: usize = 1 << 20;

/// The action; none where something is wrong with it.
pub(super) fn action(reader: &mut Reader<'_>, field: &str, route: &HttpRoute) -> Option<RuleAction> {
    let destinations = route.route.as_deref().unwrap_or_default();
    let ways = usize::from(!destinations.is_empty())
        + usize::from(route.redirect.is_some())
        + usize::from(route.direct_response.is_some());
    if ways != 1 {
        let message = if ways == 0 { "does nothing with its requests" } else { "does more than one thing" };
        reader.fault(field, message, "give it one of route, redirect and directResponse");
        return None;
    }
    if let Some(found) = &route.redirect {
        return redirect(reader, &format!("{field}.redirect"), found).map(RuleAction::Redirect);
    }
    if let Some(response) = &route.direct_response {
        return direct(reader, &format!("{field}.directResponse"), response).map(RuleAction::Respond);
    }
    forward(reader, &format!("{field}.route"), destinations).map(RuleAction::Forward)
}

fn forward(
    reader: &mut Reader<'_>,
    field: &str,
    destinations: &[HttpRouteDestination],
) -> Option<Vec<WeightedBackend>> {
    let mut backends = Vec::with_capacity(destinations.len());
    let single = destinations.len() == 1;
    for (index, one) in destinations.iter().enumerate() {
        let field = format!("{field}[{index}]");
        let backend = backend(reader, &format!("{field}.destination"), one.destination.as_ref());
        let (request_headers, response_headers) =
            reader.headers(&format!("{field}.headers"), one.headers.as_ref());
        let weight = weight(reader, &field, one.weight);
        if let Some(backend) = backend {
            // A single destination takes everything, whatever its weight says.
            let weight = if single { 1 } else { weight };
            backends.push(WeightedBackend { weight, backend, request_headers, response_headers });
        }
    }
    if destinations.len() != backends.len() {
        return None;
    }
    backends.retain(|backend| backend.weight > 0);
    if backends.is_empty() {
        reader.fault(field, "has weights that are all 0", "give at least one destination a weight");
        return None;
    }
    Some(backends)
}

pub(super) fn weight(reader: &mut Reader<'_>, field: &str, weight: Option<i32>) -> u32 {
    let weight = weight.unwrap_or(0);
    u32::try_from(weight).unwrap_or_else(|_negative| {
        reader.fault(&format!("{field}.weight"), &format!("{weight} is negative"), "write 0 or more");
        0
    })
}

pub(super) fn backend(
    reader: &mut Reader<'_>,
    field: &str,
    destination: Option<&Destination>,
) -> Option<Backend> {
    let Some(host) = destination.and_then(|one| one.host.as_deref()).filter(|host| !host.is_empty()) else {
        reader.fault(&format!("{field}.host"), "is missing", "name a Service or a host of a ServiceEntry");
        return None;
    };
    let destination = destination?;
    let host = reader.host(&format!("{field}.host"), host, false)?;
    let port =
        reader.port(&format!("{field}.port.number"), destination.port.map(|port| port.number.unwrap_or(0)));
    let subset = destination.subset.as_deref().filter(|subset| !subset.is_empty()).map(Arc::from);
    Some(Backend::Host { host, port, subset, timeout: None })
}

fn redirect(reader: &mut Reader<'_>, field: &str, redirect: &HttpRedirect) -> Option<Redirect> {
    if *redirect == HttpRedirect::default() {
        reader.fault(field, "says nothing", "say what is to be another: uri, authority, port or scheme");
        return None;
    }
    if redirect.port.is_some() && redirect.derive_port.is_some() {
        reader.fault(&format!("{field}.port"), "stands beside derivePort", "keep one of the two");
    }
    let status = redirect.redirect_code.unwrap_or(301);
    if !matches!(status, 301 | 302 | 303 | 307 | 308) {
        reader.fault(
            &format!("{field}.redirectCode"),
            &format!("{status} is not a redirect"),
            "use 301, 302, 303, 307 or 308",
        );
    }
    let text = |text: &Option<String>| text.as_deref().filter(|text| !text.is_empty()).map(Arc::from);
    let port = match redirect.derive_port {
        Some(RedirectPortSelection::FromProtocolDefault) => Some(RedirectPort::OfScheme),
        Some(RedirectPortSelection::FromRequestPort) => Some(RedirectPort::OfRequest),
        None => reader.port(&format!("{field}.port"), redirect.port).map(RedirectPort::Number),
    };
    Some(Redirect {
        status: u16::try_from(status).unwrap_or(301),
        scheme: text(&redirect.scheme),
        authority: text(&redirect.authority),
        port,
        path: text(&redirect.uri).map(PathRewrite::Full),
    })
}

fn direct(reader: &mut Reader<'_>, field: &str, response: &HttpDirectResponse) -> Option<DirectResponse> {
    let status = response.status.unwrap_or_default();
    if !(200..600).contains(&status) {
        reader.fault(
            &format!("{field}.status"),
            &format!("{status} is not a final status"),
            "write 200 to 599",
        );
        return None;
    }
    let body = response.body.clone().unwrap_or_default();
    let bytes = match (body.string, body.bytes) {
        (Some(_), Some(_)) => {
            reader.fault(&format!("{field}.body"), "has a text and bytes", "keep one of the two");
            return None;
        }
        (Some(text), None) => text.into_bytes(),
        (None, Some(encoded)) => match base64::engine::general_purpose::STANDARD.decode(&encoded) {
            Ok(bytes) => bytes,
            Err(_not_base64) => {
                reader.fault(&format!("{field}.body.bytes"), "is not base64", "encode the bytes");
                return None;
            }
        },
        (None, None) => Vec::new(),
    };
    if bytes.len() > BODY_MAX_BYTES {
        reader.fault(&format!("{field}.body"), "is larger than 1 MiB", "serve it from a workload");
    }
    Some(DirectResponse { status: u16::try_from(status).ok()?, body: bytes.into() })
}

pub(super) fn rewrite(reader: &mut Reader<'_>, field: &str, rewrite: Option<&HttpRewrite>) -> Rewrite {
    let Some(rewrite) = rewrite else { return Rewrite::default() };
    if *rewrite == HttpRewrite::default() {
        reader.fault(field, "says nothing", "give it uri, authority or uriRegexRewrite");
    }
    let uri = rewrite.uri.as_deref().filter(|uri| !uri.is_empty());
    let path = match (uri, &rewrite.uri_regex_rewrite) {
        (Some(_), Some(_)) => {
            reader.fault(field, "has both uri and uriRegexRewrite", "keep one of the two");
            None
        }
        // What of the path it takes the place of depends on the match that takes the request (`decide::rewrite`).
        (Some(uri), None) => Some(PathRewrite::Prefix(uri.into())),
        (None, Some(regex)) => {
            let field = format!("{field}.uriRegexRewrite.match");
            let text = regex.r#match.as_deref().unwrap_or_default();
            if text.is_empty() {
                reader.fault(&field, "is missing", "write the pattern to replace");
            }
            let rewrite = Arc::from(regex.rewrite.as_deref().unwrap_or_default());
            reader.regex(&field, text).map(|pattern: Regex| PathRewrite::Regex { pattern, rewrite })
        }
        (None, None) => None,
    };
    Rewrite { path, authority: rewrite.authority.as_deref().filter(|text| !text.is_empty()).map(Arc::from) }
}

/// None = the mesh's default policy holds.
pub(super) fn retries(
    reader: &mut Reader<'_>,
    field: &str,
    retries: Option<&HttpRetry>,
) -> Option<RetryPolicy> {
    let retries = retries?;
    let attempts = retries.attempts.unwrap_or(0);
    if attempts < 0 {
        reader.fault(&format!("{field}.attempts"), &format!("{attempts} is negative"), "write 0 or more");
    }
    if retries.retry_remote_localities == Some(true) {
        reader.fault(
            &format!("{field}.retryRemoteLocalities"),
            "is not supported: retries follow the destination's own localityLbSetting",
            "remove the field",
        );
    }
    let on = match retries.retry_on.as_deref().filter(|text| !text.is_empty()) {
        Some(text) => retry_on(reader, &format!("{field}.retryOn"), text),
        None => default_retry_on(),
    };
    Some(RetryPolicy {
        attempts: u32::try_from(attempts).unwrap_or(0),
        per_try_timeout: reader.positive(&format!("{field}.perTryTimeout"), retries.per_try_timeout.as_ref()),
        on,
        backoff: reader.positive(&format!("{field}.backoff"), retries.backoff.as_ref()).unwrap_or(BACKOFF),
        exclude_previous_hosts: retries.retry_ignore_previous_hosts.unwrap_or(true),
    })
}

/// Istio's own where none is given.
fn default_retry_on() -> RetryOn {
    RetryOn { connect_failure: true, refused_stream: true, grpc: vec![14, 1], ..RetryOn::default() }
}

fn retry_on(reader: &mut Reader<'_>, field: &str, text: &str) -> RetryOn {
    let mut on = RetryOn::default();
    for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        match word {
            "5xx" => on.server_error = true,
            "gateway-error" => on.gateway_error = true,
            "reset" => on.reset = true,
            "reset-before-request" => on.reset_before_request = true,
            "connect-failure" => on.connect_failure = true,
            "retriable-4xx" => on.retriable_4xx = true,
            "refused-stream" => on.refused_stream = true,
            "cancelled" => on.grpc.push(1),
            "deadline-exceeded" => on.grpc.push(4),
            "resource-exhausted" => on.grpc.push(8),
            "internal" => on.grpc.push(13),
            "unavailable" => on.grpc.push(14),
            // Its codes follow as numbers.
            "retriable-status-codes" => {}
            other => match other.parse::<u16>() {
                Ok(status) if (100..600).contains(&status) => on.statuses.push(status),
                _ => reader.fault(
                    field,
                    &format!("`{other}` is not a condition that this version knows"),
                    "use Envoy's retry-on words, or status codes",
                ),
            },
        }
    }
    on
}

pub(super) fn fault(reader: &mut Reader<'_>, field: &str, fault: Option<&HttpFaultInjection>) -> Fault {
    let Some(fault) = fault else { return Fault::default() };
    if fault.delay.is_none() && fault.abort.is_none() {
        reader.fault(field, "says nothing", "give it a delay, an abort or both");
    }
    let mut compiled = Fault::default();
    if let Some(delay) = &fault.delay {
        let field = format!("{field}.delay");
        if delay.exponential_delay.is_some() {
            let message = "is not supported, as in Istio";
            reader.fault(&format!("{field}.exponentialDelay"), message, "use fixedDelay");
        } else if delay.fixed_delay.is_none() {
            reader.fault(&format!("{field}.fixedDelay"), "is missing", "say how long requests wait");
        }
        let time = reader.positive(&format!("{field}.fixedDelay"), delay.fixed_delay.as_ref());
        let share = match (delay.percentage, delay.percent) {
            (None, Some(percent)) => Some(reader.percent(&format!("{field}.percent"), f64::from(percent))),
            (percentage, _) => reader.percentage(&format!("{field}.percentage"), percentage),
        };
        let share = share.unwrap_or_else(|| never(reader, &field));
        compiled.delay = time.map(|time| (share, time));
    }
    if let Some(abort) = &fault.abort {
        let field = format!("{field}.abort");
        let what = abort_with(reader, &field, abort);
        let share = reader.percentage(&format!("{field}.percentage"), abort.percentage);
        let share = share.unwrap_or_else(|| never(reader, &field));
        compiled.abort = what.map(|what| (share, what));
    }
    compiled
}

/// Absent is 0, not 100, and so not what most people mean.
fn never(reader: &mut Reader<'_>, field: &str) -> Millionths {
    reader.warn(
        &format!("{field}.percentage"),
        "is missing, which means 0: the fault never happens",
        "write the share of requests, such as `percentage: {value: 100}`",
    );
    Millionths::NEVER
}

/// Names of gRPC's status codes, by number.
const GRPC: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

fn abort_with(reader: &mut Reader<'_>, field: &str, abort: &FaultAbort) -> Option<Abort> {
    match (abort.http_status, abort.grpc_status.as_deref(), abort.http2_error.as_deref()) {
        (Some(status), None, None) => {
            let status = u16::try_from(status).ok().filter(|status| (200..600).contains(status));
            if status.is_none() {
                reader.fault(&format!("{field}.httpStatus"), "is not a final status", "write 200 to 599");
            }
            status.map(Abort::Http)
        }
        (None, Some(name), None) => {
            let code = GRPC.iter().position(|known| known.eq_ignore_ascii_case(name));
            let code = code.and_then(|code| u8::try_from(code).ok());
            if code.is_none() {
                let message = format!("`{name}` is not a gRPC status");
                reader.fault(&format!("{field}.grpcStatus"), &message, "write a name such as UNAVAILABLE");
            }
            code.map(Abort::Grpc)
        }
        (None, None, Some(_)) => {
            let message = "is not supported, as in Istio";
            reader.fault(&format!("{field}.http2Error"), message, "use httpStatus or grpcStatus");
            None
        }
        (None, None, None) => {
            reader.fault(field, "has no status", "give it httpStatus or grpcStatus");
            None
        }
        _ => {
            reader.fault(field, "has more than one status", "keep httpStatus or grpcStatus");
            None
        }
    }
}

pub(super) fn mirrors(reader: &mut Reader<'_>, field: &str, route: &HttpRoute) -> Vec<Mirror> {
    let mut mirrors = Vec::new();
    if let Some(destination) = &route.mirror {
        if route.mirrors.is_some() {
            reader.fault(&format!("{field}.mirror"), "stands beside mirrors", "keep one of the two");
        }
        let share = match (route.mirror_percentage, route.mirror_percent) {
            (None, Some(percent)) => {
                Some(reader.percent(&format!("{field}.mirrorPercent"), f64::from(percent)))
            }
            (percentage, _) => reader.percentage(&format!("{field}.mirrorPercentage"), percentage),
        };
        let backend = backend(reader, &format!("{field}.mirror"), Some(destination));
        mirrors.extend(backend.map(|backend| Mirror { share: share.unwrap_or(Millionths::ALWAYS), backend }));
    } else if route.mirror_percentage.is_some() || route.mirror_percent.is_some() {
        reader.fault(&format!("{field}.mirrorPercentage"), "has no mirror", "name the mirror's host");
    }
    for (index, mirror) in route.mirrors.iter().flatten().enumerate() {
        let field = format!("{field}.mirrors[{index}]");
        let share = reader.percentage(&format!("{field}.percentage"), mirror.percentage);
        let backend = backend(reader, &format!("{field}.destination"), mirror.destination.as_ref());
        mirrors.extend(backend.map(|backend| Mirror { share: share.unwrap_or(Millionths::ALWAYS), backend }));
    }
    // What is never copied need not be carried along.
    mirrors.retain(|mirror| mirror.share != Millionths::NEVER);
    mirrors
}

pub(super) fn cors(reader: &mut Reader<'_>, field: &str, cors: Option<&ApiCors>) -> Option<CorsPolicy> {
    let cors = cors?;
    let texts =
        |listed: &Option<Vec<String>>| listed.iter().flatten().map(|text| Arc::from(text.as_str())).collect();
    let mut allow_origins = Vec::new();
    for (index, origin) in cors.allow_origins.iter().flatten().enumerate() {
        allow_origins.extend(reader.valued(&format!("{field}.allowOrigins[{index}]"), origin).map(anything));
    }
    let older = cors.allow_origin.iter().flatten();
    allow_origins.extend(older.map(|origin| anything(Pattern::Exact(origin.as_str().into()))));
    Some(CorsPolicy {
        allow_origins,
        allow_methods: texts(&cors.allow_methods),
        allow_headers: texts(&cors.allow_headers),
        expose_headers: texts(&cors.expose_headers),
        max_age: reader.duration(&format!("{field}.maxAge"), cors.max_age.as_ref()),
        allow_credentials: cors.allow_credentials.unwrap_or(false),
        ignore_unmatched_preflights: cors.unmatched_preflights == Some(UnmatchedPreflights::Ignore),
    })
}

/// `*` is every origin.
fn anything(pattern: Pattern) -> Pattern {
    if pattern == Pattern::Exact("*".into()) { Pattern::Present } else { pattern }
}
