//! One line per connection at its end (and at debug level at its start), with ztunnel's field names.
//! Owns: fields, message and level of the line. Never: formats it (the logging set-up does) or decides.
//! Called by `observe::table`.
//!
//! Bytes are seen from the pod this line reports for: an outbound line's `bytes_sent` went to the server,
//! an inbound line's to the client.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tracing::field::{DisplayValue, display};

use super::meta::{ConnMeta, Direction, Party};
use crate::model::Reason;

/// The target of every line: `--log-level access=off` silences them too.
pub const TARGET: &str = "access";

/// Writes the access log, or nothing.
#[derive(Debug)]
pub struct AccessLog {
    on: AtomicBool,
}

/// A connection at its end.
pub(super) struct Ended<'a> {
    pub(super) meta: &'a ConnMeta,
    /// Bytes from source to destination.
    pub(super) sent: u64,
    pub(super) received: u64,
    pub(super) duration: Duration,
    pub(super) reason: Option<Reason>,
}

/// One HTTP request at its end.
pub struct RequestLine<'a> {
    pub meta: &'a ConnMeta,
    pub method: &'a str,
    /// With the query.
    pub path: &'a str,
    pub authority: &'a str,
    pub protocol: &'static str,
    pub status: u16,
    /// Istio's response flags.
    pub flag: &'static str,
    pub reason: Option<Reason>,
    pub request_bytes: u64,
    pub response_bytes: u64,
    pub duration: Duration,
    pub request_id: &'a str,
    /// The rule that decided, where there was one.
    pub route: Option<&'a dyn fmt::Display>,
    /// Requests sent upstream.
    pub attempts: u32,
}

/// Text forms that live as long as one line takes.
struct Fields<'a> {
    source_identity: Option<String>,
    destination_identity: Option<String>,
    meta: &'a ConnMeta,
}

/// The level must be a constant where the event is made.
macro_rules! ended_line {
    ($level:expr, $ended:ident, $message:literal) => {{
        let meta = $ended.meta;
        let fields = Fields::of(meta);
        let (bytes_sent, bytes_recv) = $ended.bytes();
        tracing::event!(
            target: "access",
            $level,
            src.addr = %meta.source.address,
            src.workload = name(&meta.source),
            src.namespace = namespace(&meta.source),
            src.identity = fields.source_identity.as_deref(),
            dst.addr = %meta.destination.address,
            dst.hbone_addr = fields.hbone(),
            dst.service = fields.service(),
            dst.workload = name(&meta.destination),
            dst.namespace = namespace(&meta.destination),
            dst.identity = fields.destination_identity.as_deref(),
            direction = meta.direction.label(),
            path = meta.path.label(),
            bytes_sent,
            bytes_recv,
            duration = Millis($ended.duration).to_string(),
            route_name = meta.rule.as_ref().map(|rule| display(&rule.origin)),
            reason = $ended.reason.map(|reason| reason.row().label),
            error = $ended.reason.map(|reason| reason.row().hint),
            decision_id = %meta.decision_id,
            $message
        );
    }};
}

/// The same for requests.
macro_rules! request_line {
    ($level:expr, $line:ident, $message:literal) => {{
        let meta = $line.meta;
        let fields = Fields::of(meta);
        tracing::event!(
            target: "access",
            $level,
            src.addr = %meta.source.address,
            src.workload = name(&meta.source),
            src.namespace = namespace(&meta.source),
            src.identity = fields.source_identity.as_deref(),
            dst.addr = %meta.destination.address,
            dst.hbone_addr = fields.hbone(),
            dst.service = fields.service(),
            dst.workload = name(&meta.destination),
            dst.namespace = namespace(&meta.destination),
            dst.identity = fields.destination_identity.as_deref(),
            direction = meta.direction.label(),
            path = meta.path.label(),
            method = $line.method,
            target = $line.path,
            authority = $line.authority,
            protocol = $line.protocol,
            response_code = $line.status,
            response_flags = $line.flag,
            bytes_received = $line.request_bytes,
            bytes_sent = $line.response_bytes,
            duration = Millis($line.duration).to_string(),
            route_name = $line.route.map(display),
            attempts = $line.attempts,
            request_id = $line.request_id,
            reason = $line.reason.map(|reason| reason.row().label),
            error = $line.reason.map(|reason| reason.row().hint),
            decision_id = %meta.decision_id,
            $message
        );
    }};
}

impl AccessLog {
    pub const fn new(on: bool) -> Self {
        Self { on: AtomicBool::new(on) }
    }

    /// Begins or ends to write, as the mesh-wide settings say.
    pub(super) fn set(&self, on: bool) {
        self.on.store(on, Ordering::Relaxed);
    }

    fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// The connection's upstream answered.
    pub(super) fn opened(&self, meta: &ConnMeta) {
        if !self.is_on() || !tracing::enabled!(target: "access", tracing::Level::DEBUG) {
            return;
        }
        let fields = Fields::of(meta);
        tracing::event!(
            target: "access",
            tracing::Level::DEBUG,
            src.addr = %meta.source.address,
            src.workload = name(&meta.source),
            src.namespace = namespace(&meta.source),
            src.identity = fields.source_identity.as_deref(),
            dst.addr = %meta.destination.address,
            dst.hbone_addr = fields.hbone(),
            dst.service = fields.service(),
            dst.workload = name(&meta.destination),
            dst.namespace = namespace(&meta.destination),
            dst.identity = fields.destination_identity.as_deref(),
            direction = meta.direction.label(),
            path = meta.path.label(),
            decision_id = %meta.decision_id,
            "connection opened"
        );
    }

    /// A request's line. Of a request that could not be answered well the level is its reason's.
    pub(super) fn request(&self, line: &RequestLine<'_>) {
        if !self.is_on() || !tracing::enabled!(target: "access", tracing::Level::WARN) {
            return;
        }
        match line.reason {
            Some(reason) if reason.row().warn => request_line!(tracing::Level::WARN, line, "request failed"),
            Some(_) => request_line!(tracing::Level::INFO, line, "request failed"),
            None => request_line!(tracing::Level::INFO, line, "request complete"),
        }
    }

    pub(super) fn write(&self, ended: &Ended<'_>) {
        if !self.is_on() || !tracing::enabled!(target: "access", tracing::Level::WARN) {
            return;
        }
        match ended.reason {
            None => ended_line!(tracing::Level::INFO, ended, "connection complete"),
            Some(reason) if reason.row().warn => {
                ended_line!(tracing::Level::WARN, ended, "connection failed")
            }
            Some(_) => ended_line!(tracing::Level::INFO, ended, "connection failed"),
        }
    }
}

impl Ended<'_> {
    fn bytes(&self) -> (u64, u64) {
        match self.meta.direction {
            Direction::Outbound | Direction::Local => (self.sent, self.received),
            Direction::Inbound => (self.received, self.sent),
        }
    }
}

impl<'a> Fields<'a> {
    fn of(meta: &'a ConnMeta) -> Self {
        let identity = |party: &Party| party.identity.as_ref().map(ToString::to_string);
        Self {
            source_identity: identity(&meta.source),
            destination_identity: identity(&meta.destination),
            meta,
        }
    }

    fn hbone(&self) -> Option<DisplayValue<std::net::SocketAddr>> {
        self.meta.hbone_address.map(display)
    }

    fn service(&self) -> Option<&'a str> {
        self.meta.service.as_deref().map(|service| &*service.hostname)
    }
}

fn name(party: &Party) -> Option<&str> {
    party.workload.as_deref().map(|workload| &*workload.name)
}

fn namespace(party: &Party) -> Option<&str> {
    party.workload.as_deref().map(|workload| &*workload.namespace)
}

/// Whole milliseconds, as ztunnel writes them.
struct Millis(Duration);

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}ms", self.0.as_millis())
    }
}

#[cfg(test)]
mod tests;
