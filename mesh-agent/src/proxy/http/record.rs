//! What is told of a request at its end: metrics, one line of the access log, and whatever else counts requests.
//! Owns: being told exactly once. Called by `proxy::http::pipeline` and by the body of the answer.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Method, Version};
use tokio::time::Instant;

use super::answer;
use super::body::{BodyEnd, Watch};
use super::cluster::Load;
use super::downstream::{Busy, Downstream};
use super::pool::Lease;
use super::target::Target;
use crate::decide::circuit;
use crate::model::Reason;
use crate::model::route::HttpRule;
use crate::observe::{Effort, Outcome, RequestLine};

/// A request from its head to its answer's last byte.
pub struct Record {
    pub down: Rc<Downstream>,
    pub begun: Instant,
    pub method: Method,
    /// With the query, as it was forwarded.
    pub path: http::uri::PathAndQuery,
    pub authority: Option<http::uri::Authority>,
    pub version: Version,
    pub id: Option<HeaderValue>,
    pub grpc: bool,
    pub request_bytes: Rc<Cell<u64>>,
    pub rule: Option<Arc<HttpRule>>,
    pub target: Option<Rc<Target>>,
    pub attempts: u32,
    pub status: u16,
    pub grpc_status: Option<u8>,
    pub reason: Option<Reason>,
    /// Where it says more than the reason's (`DI`, `URX`).
    pub flag: Option<&'static str>,
    pub busy: Busy,
    /// Given back with the answer's last byte.
    pub lease: Option<Lease>,
    pub max_requests: Option<u32>,
    pub load: Option<Load>,
    /// The request's places in the destination's limits.
    pub places: [Option<circuit::Guard>; 2],
    /// A cookie that brings the client back to the same endpoint.
    pub cookie: Option<HeaderValue>,
}

impl Watch for Record {
    fn ended(&mut self, end: BodyEnd, bytes: u64, trailers: Option<&HeaderMap>) {
        match end {
            BodyEnd::Complete => {
                if let Some(lease) = self.lease.take() {
                    lease.give_back(self.max_requests);
                }
            }
            BodyEnd::Upstream => {
                self.down.broken.set(true);
                self.reason = self.reason.or(Some(Reason::UpstreamReset));
            }
            BodyEnd::Deadline => {
                self.down.broken.set(true);
                self.reason = self.reason.or(Some(Reason::UpstreamTimeout));
            }
            BodyEnd::Client => self.reason = self.reason.or(Some(Reason::ClientReset)),
        }
        if let Some(trailers) = trailers {
            self.grpc_status = answer::grpc_status(trailers).or(self.grpc_status);
        }
        self.tell(bytes);
    }
}

impl Record {
    pub fn new(down: &Rc<Downstream>, method: &Method, version: Version, grpc: bool) -> Self {
        Self {
            down: Rc::clone(down),
            begun: Instant::now(),
            method: method.clone(),
            path: http::uri::PathAndQuery::from_static("/"),
            authority: None,
            version,
            id: None,
            grpc,
            request_bytes: Rc::default(),
            rule: None,
            target: None,
            attempts: 0,
            status: 0,
            grpc_status: None,
            reason: None,
            flag: None,
            busy: down.enter(),
            lease: None,
            max_requests: None,
            load: None,
            places: [None, None],
            cookie: None,
        }
    }

    fn tell(&self, response_bytes: u64) {
        let flag = self.flag.unwrap_or_else(|| self.reason.map_or("-", |reason| reason.row().flag));
        let outcome = Outcome { grpc: self.grpc, status: self.status, grpc_status: self.grpc_status, flag };
        let effort = Effort {
            duration: self.begun.elapsed(),
            request_bytes: self.request_bytes.get(),
            response_bytes,
        };
        let connections = &self.down.worker.shared.connections;
        let nowhere;
        let meta = match &self.target {
            Some(target) => {
                target.handles.count(outcome, &effort);
                &target.meta
            }
            None => {
                self.down.nowhere().count(outcome, &effort);
                nowhere = self.down.conn.meta();
                &nowhere
            }
        };
        connections.log_request(&RequestLine {
            meta,
            method: self.method.as_str(),
            path: self.path.as_str(),
            authority: self.authority.as_ref().map_or("", |authority| authority.as_str()),
            protocol: protocol(self.version),
            status: self.status,
            flag,
            reason: self.reason,
            request_bytes: effort.request_bytes,
            response_bytes,
            duration: effort.duration,
            request_id: self.id.as_ref().and_then(|id| id.to_str().ok()).unwrap_or_default(),
            route: self.rule.as_ref().map(|rule| &rule.origin as &dyn std::fmt::Display),
            attempts: self.attempts,
        });
    }
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/1.1",
    }
}
