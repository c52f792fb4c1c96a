//! What a CONNECT says and how its answer is read: authority, informational headers, status, reason.

use std::net::SocketAddr;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};

use super::Failure;
use crate::model::Reason;
use crate::model::reason::ROWS;

/// Names the reason of a refusal, so that both nodes' logs agree. Peers that do not know it lose nothing.
pub const REASON_HEADER: HeaderName = HeaderName::from_static("nodemesh-reason");
const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
const BAGGAGE: HeaderName = HeaderName::from_static("baggage");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// Longest informational header value kept or sent, bytes.
pub(super) const HEADER_VALUE_MAX_BYTES: usize = 8 * 1024;

/// Informational headers of a CONNECT. A receiver believes none of them for policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectHeaders {
    /// RFC 7239: `for="CLIENT";host=SERVICE`.
    pub forwarded: Option<String>,
    /// W3C baggage.
    pub baggage: Option<String>,
    /// W3C trace context.
    pub traceparent: Option<String>,
}

impl ConnectHeaders {
    fn read(headers: &HeaderMap) -> Self {
        let text = |name: &HeaderName| {
            let value = headers.get(name)?.to_str().ok()?;
            (value.len() <= HEADER_VALUE_MAX_BYTES).then(|| value.to_owned())
        };
        Self { forwarded: text(&FORWARDED), baggage: text(&BAGGAGE), traceparent: text(&TRACEPARENT) }
    }

    fn write(&self, headers: &mut HeaderMap) {
        let fields =
            [(FORWARDED, &self.forwarded), (BAGGAGE, &self.baggage), (TRACEPARENT, &self.traceparent)];
        for (name, value) in fields {
            let Some(value) = value.as_deref().filter(|value| value.len() <= HEADER_VALUE_MAX_BYTES) else {
                continue;
            };
            // A value with a control character is left out: the header informs, the stream matters.
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(name, value);
            }
        }
    }
}

/// The CONNECT for a target.
pub(super) fn connect_request(target: SocketAddr, headers: &ConnectHeaders) -> Result<Request<()>, Failure> {
    let malformed = |detail: String| Failure::new(Reason::ConnectMalformed, detail);
    let uri = Uri::builder()
        .authority(target.to_string())
        .build()
        .map_err(|error| malformed(format!("{target} is no authority: {error}")))?;
    let mut request = Request::new(());
    *request.method_mut() = Method::CONNECT;
    *request.uri_mut() = uri;
    headers.write(request.headers_mut());
    Ok(request)
}

/// Target and headers of a received CONNECT. The authority must be IP:PORT, and nothing but it.
pub(super) fn read_connect<B>(request: &Request<B>) -> Result<(SocketAddr, ConnectHeaders), Failure> {
    let malformed = |detail: String| Failure::new(Reason::ConnectMalformed, detail);
    if request.method() != Method::CONNECT {
        return Err(malformed(format!("method {} where CONNECT is expected", request.method())));
    }
    // RFC 8441's extended CONNECT names a protocol; it is not offered in our SETTINGS.
    if request.extensions().get::<h2::ext::Protocol>().is_some() {
        return Err(malformed("extended CONNECT is not spoken here".to_owned()));
    }
    let authority = request.uri().authority().ok_or_else(|| malformed("no authority".to_owned()))?;
    let target = parse_authority(authority.as_str())
        .ok_or_else(|| malformed(format!("authority `{authority}` is not IP:PORT")))?;
    Ok((target, ConnectHeaders::read(request.headers())))
}

/// Strict IP:PORT. `SocketAddr`'s own parser takes scope ids (`%3`), which name another machine's interface.
fn parse_authority(text: &str) -> Option<SocketAddr> {
    let target: SocketAddr = text.parse().ok()?;
    let scoped = matches!(target, SocketAddr::V6(v6) if v6.scope_id() != 0 || v6.flowinfo() != 0);
    (target.port() != 0 && !scoped && !text.contains('%')).then_some(target)
}

/// The answer that refuses a CONNECT.
pub(super) fn refusal(reason: Reason) -> Response<()> {
    let row = reason.row();
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_u16(row.http_status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    response.headers_mut().insert(REASON_HEADER, HeaderValue::from_static(row.label));
    response
}

/// Why the peer refused. Its own word counts where it agrees with the status; other meshes send none.
pub(super) fn read_refusal<B>(response: &Response<B>) -> Failure {
    let status = response.status();
    let named =
        response.headers().get(REASON_HEADER).and_then(|value| value.to_str().ok()).and_then(|label| {
            ROWS.iter().find(|row| row.label == label && row.http_status == status.as_u16())
        });
    let reason = match (named, status.as_u16()) {
        (Some(row), _) => row.reason,
        (None, 401 | 403) => Reason::PolicyNotAllowed,
        (None, 400) => Reason::ConnectTarget,
        (None, 404) => Reason::UnknownWorkload,
        (None, 408 | 504) => Reason::ConnectTimeout,
        (None, 429 | 431) => Reason::LimitReached,
        (None, 500..=599) => Reason::ConnectFailed,
        (None, _) => Reason::TunnelProtocol,
    };
    Failure::new(reason, format!("the peer answered CONNECT with {}", status.as_u16()))
}

#[cfg(test)]
mod tests;
