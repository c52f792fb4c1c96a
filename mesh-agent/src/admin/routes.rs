//! Which path of the API answers what. Owns: the routes. Never: a socket. Called by `admin::server`.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use serde::Serialize;

use super::{AdminSource, ExplainError, ExplainQuery, Problem, Version};
use crate::observe::Metrics;
use crate::observe::metrics::CONTENT_TYPE as OPENMETRICS;

pub type Answer = Response<Full<Bytes>>;

/// The admin socket's routes.
pub const ADMIN_PATHS: [&str; 10] = [
    "/v1/status",
    "/v1/check",
    "/v1/workloads",
    "/v1/services",
    "/v1/policies",
    "/v1/certs",
    "/v1/connections",
    "/v1/explain",
    "/v1/routes",
    "/v1/version",
];

/// What a server answers from.
#[derive(Clone)]
pub enum Routes {
    Admin(Arc<dyn AdminSource>),
    Metrics(Arc<Metrics>),
    Readiness(Missing),
}

/// Says what is missing before traffic may come; empty = ready.
pub type Missing = Arc<dyn Fn() -> Vec<String> + Send + Sync>;

impl Routes {
    pub fn answer<B>(&self, request: &Request<B>) -> Answer {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            let mut answer = problem(StatusCode::METHOD_NOT_ALLOWED, "only GET is served here");
            answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return answer;
        }
        let path = request.uri().path();
        match self {
            Self::Admin(source) => admin(&**source, path, request.uri().query().unwrap_or("")),
            Self::Metrics(metrics) => scrape(metrics, path),
            Self::Readiness(missing) => readiness(missing, path),
        }
    }
}

fn admin(source: &dyn AdminSource, path: &str, query: &str) -> Answer {
    match path {
        "/v1/status" => json(StatusCode::OK, &source.status()),
        "/v1/check" => json(StatusCode::OK, &source.checks()),
        "/v1/workloads" => json(StatusCode::OK, &source.workloads()),
        "/v1/services" => json(StatusCode::OK, &source.services()),
        "/v1/policies" => json(StatusCode::OK, &source.policies()),
        "/v1/certs" => json(StatusCode::OK, &source.certificates()),
        "/v1/connections" => json(StatusCode::OK, &source.connections()),
        "/v1/version" => {
            let abi = Some(source.status().capture.abi).filter(|abi| !abi.is_empty());
            json(StatusCode::OK, &Version { abi, ..Version::own() })
        }
        "/v1/explain" => asked(query, |query| source.explain(query)),
        "/v1/routes" => asked(query, |query| source.routes(query)),
        _ => problem(StatusCode::NOT_FOUND, &format!("no such path; there are {}", ADMIN_PATHS.join(", "))),
    }
}

fn asked<T: Serialize>(query: &str, ask: impl FnOnce(&ExplainQuery) -> Result<T, ExplainError>) -> Answer {
    match ExplainQuery::from_url(query) {
        Err(error) => problem(StatusCode::BAD_REQUEST, &error.to_string()),
        Ok(query) => match ask(&query) {
            Ok(found) => json(StatusCode::OK, &found),
            Err(error) => problem(StatusCode::NOT_FOUND, &error.to_string()),
        },
    }
}

fn scrape(metrics: &Arc<Metrics>, path: &str) -> Answer {
    if !matches!(path, "/metrics" | "/stats/prometheus") {
        return problem(StatusCode::NOT_FOUND, "no such path; there are /metrics and /stats/prometheus");
    }
    match metrics.encode() {
        Ok(text) => body(StatusCode::OK, OPENMETRICS, text),
        Err(error) => {
            problem(StatusCode::INTERNAL_SERVER_ERROR, &format!("the metrics cannot be written: {error}"))
        }
    }
}

fn readiness(missing: &Missing, path: &str) -> Answer {
    if path != "/healthz/ready" {
        return problem(StatusCode::NOT_FOUND, "no such path; there is /healthz/ready");
    }
    let missing = missing();
    if missing.is_empty() {
        return body(StatusCode::OK, "text/plain; charset=utf-8", "ready\n".to_owned());
    }
    let text = format!("not ready: {}\n", missing.join("; "));
    body(StatusCode::SERVICE_UNAVAILABLE, "text/plain; charset=utf-8", text)
}

fn problem(status: StatusCode, error: &str) -> Answer {
    json(status, &Problem { error: error.to_owned() })
}

fn json(status: StatusCode, value: &impl Serialize) -> Answer {
    match serde_json::to_string(value) {
        Ok(text) => body(status, "application/json", text),
        Err(error) => {
            let text = format!("{{\"error\":\"the answer cannot be written as JSON: {}\"}}", error.line());
            body(StatusCode::INTERNAL_SERVER_ERROR, "application/json", text)
        }
    }
}

fn body(status: StatusCode, kind: &'static str, text: String) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(text)));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}
