//! Answers that the mesh gives by itself. Owns: their status, headers and text, for HTTP and for gRPC. Called by
//! `proxy::http::pipeline`.

use http::header::{CONTENT_TYPE, HeaderName};
use http::{HeaderValue, Response, StatusCode};

use super::body::Answer;
use crate::model::Reason;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// An answer in the place of an upstream's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Local {
    pub status: u16,
    pub grpc_status: u8,
    pub reason: Reason,
    pub text: &'static str,
}

impl Local {
    pub fn of(reason: Reason) -> Self {
        let text = match reason {
            _ if reason.is_refusal() || reason == Reason::SpoofedSource => "RBAC: access denied",
            Reason::UpstreamTimeout => "upstream request timeout",
            Reason::NoEndpoint => "no healthy upstream",
            Reason::FaultAborted => "fault filter abort",
            Reason::NoRoute | Reason::RequestMalformed => "",
            Reason::LimitReached => {
                "upstream connect error or disconnect/reset before headers. reset reason: overflow"
            }
            _ => "upstream connect error or disconnect/reset before headers",
        };
        let status = reason.request_status();
        Self { status, grpc_status: reason.row().grpc_status, reason, text }
    }

    /// The same reason with another status.
    #[must_use]
    pub fn with_status(self, status: u16) -> Self {
        Self { status, grpc_status: grpc_of_http(status), ..self }
    }

    /// gRPC clients read trailers, which may come in the head where there is nothing else (a "trailers-only" answer).
    pub fn response(&self, grpc: bool) -> Response<Answer> {
        let mut response = Response::new(Answer::full(if grpc { "" } else { self.text }));
        let headers = response.headers_mut();
        if grpc {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            headers.insert(GRPC_STATUS, HeaderValue::from(u16::from(self.grpc_status)));
            headers.insert(GRPC_MESSAGE, HeaderValue::from_static(self.text));
            return response;
        }
        if !self.text.is_empty() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        }
        *response.status_mut() = StatusCode::from_u16(self.status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
        response
    }
}

/// What a gRPC client makes of an HTTP status (gRPC, `http-grpc-status-mapping`).
pub fn grpc_of_http(status: u16) -> u8 {
    match status {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => 2,
    }
}

/// The gRPC status in an answer's head or trailers.
pub fn grpc_status(headers: &http::HeaderMap) -> Option<u8> {
    headers.get(GRPC_STATUS)?.to_str().ok()?.parse().ok()
}
