//! One try of a request at one endpoint. Owns: a connection for it, fresh or used before, and what may be said of a
//! failure: whether anything was sent, and so whether it may be said again. Never: chooses the endpoint or decides to
//! try again. Called by `proxy::http::pipeline`.

use std::sync::Arc;

use http::{Request, Response, Version};
use hyper::body::Incoming;
use tokio::time::{Instant, timeout_at};

use super::body::Outgoing;
use super::destination::Destination;
use super::downstream::Downstream;
use super::pool::{Lease, Unanswered};
use super::target::{How, Target};
use crate::decide::circuit::Overflow;
use crate::model::Reason;
use crate::model::traffic::PoolLimits;

/// What a try needs beside its request.
pub struct Try<'a> {
    pub down: &'a Downstream,
    pub target: &'a Target,
    pub limits: &'a PoolLimits,
    pub destination: &'a Arc<Destination>,
    pub http2: bool,
    /// It asks for another protocol: the connection is its alone.
    pub switches: bool,
    /// A connection from before the request may have died unnoticed; then only a fresh one will do.
    pub fresh: bool,
}

/// A try that came to nothing.
pub struct Failed {
    pub reason: Reason,
    pub kind: Kind,
    /// The request as it was, where none of it was sent.
    pub unsent: Option<Request<Outgoing>>,
}

/// How far a failed try came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// No connection.
    Connect,
    /// One of the destination's limits is reached.
    Overflow,
    /// The server says that it has not looked at the request (HTTP/2 REFUSED_STREAM, or GOAWAY before it).
    Refused,
    /// A connection from before the request broke without a byte of an answer.
    Stale,
    /// It broke otherwise. `sent`: the request may have been seen.
    Reset { sent: bool },
    /// No answer in time.
    TimedOut,
}

impl Try<'_> {
    /// Sends the request; the answer's head and the connection that its body comes on.
    pub async fn send(&self, request: Request<Outgoing>) -> Result<(Response<Incoming>, Lease), Failed> {
        let mut request = request;
        let mut fresh = self.fresh;
        loop {
            let mut lease = match self.lease(fresh).await {
                Ok(lease) => lease,
                Err((kind, reason)) => return Err(Failed { reason, kind, unsent: Some(request) }),
            };
            if self.switches {
                lease.will_switch();
            }
            lease.retire(self.target.slot(self.http2), self.limits.max_requests_per_connection);
            match lease.send(request).await {
                Ok(response) => return Ok((response, lease)),
                // Its server had closed it before: nothing is lost, the next one gets the same bytes.
                Err(Unanswered { unsent: Some(same), waited: true, .. }) => {
                    request = same;
                    fresh = true;
                }
                Err(unanswered) => return Err(failed(unanswered)),
            }
        }
    }

    async fn lease(&self, fresh: bool) -> Result<Lease, (Kind, Reason)> {
        let slot = self.target.slot(self.http2);
        // It goes before those that have had a request, or it would stay without one until its server closes it. Where
        // requests share a connection of HTTP/2 it is not needed.
        let first = self.down.take_first();
        if !fresh
            && (self.http2 || first.is_none())
            && let Some(lease) = slot.take()
        {
            return Ok(lease);
        }
        // Counted as one that waits until it has its connection.
        let overflow = |_full| (Kind::Overflow, Reason::LimitReached);
        let _pending = match self.limits.max_pending {
            Some(_) => Some(self.destination.circuit.try_pending(self.limits).map_err(overflow)?),
            None => None,
        };
        // Of HTTP/2 one connection is enough for many: the others wait for the first.
        let _turn = match self.http2 {
            true => slot.dialling.acquire().await.ok(),
            false => None,
        };
        if !fresh
            && self.http2
            && let Some(lease) = slot.take()
        {
            return Ok(lease);
        }
        let deadline = Instant::now() + self.limits.connect_timeout;
        let opened = loop {
            let freed = self.destination.freed.notified();
            match slot.open(self.destination, self.limits) {
                Ok(opened) => break opened,
                Err(_full) if self.limits.max_pending.is_none() => {
                    return Err(overflow(Overflow::Connections));
                }
                Err(_full) => {}
            }
            if timeout_at(deadline, freed).await.is_err() {
                return Err(overflow(Overflow::Connections));
            }
            if let Some(lease) = slot.take() {
                return Ok(lease);
            }
        };
        let how = How { http2: self.http2, limits: self.limits, first };
        self.target.dial(self.down, how, opened).await.map_err(|failure| {
            tracing::debug!(conn = self.down.conn.id(), reason = %failure.reason, "{}", failure.message);
            (Kind::Connect, failure.reason)
        })
    }
}

fn failed(unanswered: Unanswered) -> Failed {
    let Unanswered { error, unsent, waited } = unanswered;
    let kind = if refused(&error) {
        Kind::Refused
    } else if unsent.is_some() {
        Kind::Reset { sent: false }
    } else if waited
        && (error.is_incomplete_message() || error.is_canceled() || error.is_closed() || broke(&error))
    {
        Kind::Stale
    } else {
        Kind::Reset { sent: true }
    };
    tracing::debug!(%error, ?kind, "no answer");
    Failed { reason: Reason::UpstreamReset, kind, unsent }
}

/// RFC 9113, 8.7: the request has not been looked at.
fn refused(error: &hyper::Error) -> bool {
    cause::<h2::Error>(error).is_some_and(|error| error.reason() == Some(h2::Reason::REFUSED_STREAM))
}

fn broke(error: &hyper::Error) -> bool {
    cause::<std::io::Error>(error).is_some()
}

fn cause<E: std::error::Error + 'static>(error: &hyper::Error) -> Option<&E> {
    let mut source = std::error::Error::source(error);
    while let Some(found) = source {
        if let Some(found) = found.downcast_ref::<E>() {
            return Some(found);
        }
        source = found.source();
    }
    None
}

/// Which version of HTTP an upstream is spoken to in: what its port says, else what the client speaks.
pub fn wants_http2(
    protocol: crate::model::AppProtocol,
    limits: &PoolLimits,
    client: Version,
    switches: bool,
) -> bool {
    use crate::model::AppProtocol::{Grpc, Http2};
    use crate::model::traffic::H2Upgrade;
    if switches {
        // Upgrades are HTTP/1's (RFC 9113, 8.6).
        return false;
    }
    match (protocol, limits.h2_upgrade) {
        (Http2 | Grpc, _) | (_, H2Upgrade::Upgrade) => true,
        _ => client == Version::HTTP_2,
    }
}
