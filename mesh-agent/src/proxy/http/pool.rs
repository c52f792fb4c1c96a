//! Connections to upstreams that outlive a request. Owns: which are idle, which carry streams, how many there may be
//! and for how long. Never: dials or judges; shares nothing between two workloads' connections. One per worker; called
//! by `proxy::http::attempt`.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use tokio::sync::{Semaphore, oneshot};

use super::body::Outgoing;
use super::destination::Destination;
use super::io::HttpIo;
use crate::decide::circuit;
use crate::model::traffic::PoolLimits;
use crate::model::{Hits, Identity, Limit, WorkloadId};
use crate::proxy::originate::Origination;

/// Idle connections of one worker. One more closes the idlest.
pub const IDLE_CONNECTIONS_MAX: usize = 4096;
/// Idle connections to one endpoint on behalf of one workload.
pub const IDLE_PER_ENDPOINT_MAX: usize = 256;
/// Streams over one HTTP/2 connection before another is opened.
pub const STREAMS_PER_CONNECTION: usize = 100;
/// How much a pool keeps at hand; see the constants above.
#[derive(Clone, Copy, Debug)]
pub struct KeepMax {
    pub idle: usize,
    pub per_endpoint: usize,
    pub streams: usize,
}

impl Default for KeepMax {
    fn default() -> Self {
        Self {
            idle: IDLE_CONNECTIONS_MAX,
            per_endpoint: IDLE_PER_ENDPOINT_MAX,
            streams: STREAMS_PER_CONNECTION,
        }
    }
}

/// How often the worker looks for connections that have been idle for too long.
pub const SWEEP_EVERY: Duration = Duration::from_secs(5);

/// Who is connected to whom. A connection serves one workload's requests only: the other side takes its identity and
/// its address for the caller's.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    pub source: Source,
    /// The address that the other side sees.
    pub from: IpAddr,
    pub endpoint: SocketAddr,
    pub via: Via,
    /// TLS of the agent's own.
    pub tls: Option<Origination>,
    pub http2: bool,
}

impl Key {
    /// Whether a pod is at either end.
    pub fn is_of(&self, pod: &WorkloadId) -> bool {
        matches!(&self.source, Source::Pod(source) if source == pod)
            || matches!(&self.via, Via::Leg(to) | Via::Hbone(_, to) if to == pod)
    }
}

/// Whose requests they are.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// A pod of this node.
    Pod(WorkloadId),
    /// Whoever proved this identity to the pod of this node (none: plaintext).
    Peer(Option<Identity>),
}

/// How the connection was made.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Via {
    /// Into a pod of this node.
    Leg(WorkloadId),
    /// Through a tunnel to a pod with this identity.
    Hbone(Identity, WorkloadId),
    Plain,
}

/// One worker's upstream connections.
pub struct HttpPool {
    slots: RefCell<HashMap<Key, Rc<Slot>>>,
    totals: Rc<Totals>,
}

/// Shared by the slots of one pool.
struct Totals {
    idle: Cell<usize>,
    max: KeepMax,
    hits: Hits,
}

/// The connections of one key.
pub struct Slot {
    key: Key,
    idle: RefCell<Vec<Idle>>,
    streams: RefCell<Vec<Rc<Shared>>>,
    /// One dials, the others wait and then share: a burst of HTTP/2 requests wants one connection.
    pub(super) dialling: Semaphore,
    /// The pod or the identity is gone: what is given back is closed.
    closed: Cell<bool>,
    /// Connections that there are, busy or idle.
    open: Rc<Cell<u32>>,
    totals: Rc<Totals>,
}

struct Idle {
    conn: Http1,
    since: Instant,
}

/// A connection's place in what the destination may have.
pub struct Opened {
    open: Rc<Cell<u32>>,
    place: Option<circuit::Guard>,
    destination: Arc<Destination>,
    since: Instant,
    /// `connectionPool.http.idleTimeout`.
    idle: Duration,
    /// `connectionPool.tcp.maxConnectionDuration`.
    longest: Option<Duration>,
}

impl Opened {
    /// Whether it is as old as it may become: requests under way end, and no other begins.
    fn is_old(&self) -> bool {
        self.longest.is_some_and(|longest| self.since.elapsed() >= longest)
    }

    /// Whether it may wait for another request, having waited since then. `limit` is the worker's.
    fn may_wait(&self, since: Instant, limit: Duration) -> bool {
        !self.is_old() && since.elapsed() < limit.min(self.idle)
    }

    /// Another request may have the connection, or its place.
    fn tell(&self) {
        if self.place.is_some() {
            self.destination.freed.notify_one();
        }
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.open.set(self.open.get().saturating_sub(1));
        if self.place.take().is_some() {
            self.destination.freed.notify_one();
        }
    }
}

/// One HTTP/1 connection that nobody uses now, or one request alone.
pub struct Http1 {
    pub(super) sender: http1::SendRequest<Outgoing>,
    /// The connection itself, once the other side has switched protocols.
    pub(super) switched: Switched,
    pub(super) served: u32,
    pub(super) opened: Opened,
}

/// One HTTP/2 connection.
pub struct Shared {
    sender: http2::SendRequest<Outgoing>,
    streams: Cell<usize>,
    served: Cell<u32>,
    used: Cell<Instant>,
    opened: Opened,
}

/// Where the connection's task leaves the bytes' carrier when it is asked to.
pub struct Switched {
    pub(super) wanted: Rc<Cell<bool>>,
    pub(super) io: oneshot::Receiver<HttpIo>,
}

/// A connection for one request. `waited`: it was there before the request, so that its server may have closed it unnoticed.
pub enum Lease {
    Http1 { conn: Http1, slot: Rc<Slot>, waited: bool },
    Http2(Stream),
}

/// A place on an HTTP/2 connection.
pub struct Stream {
    conn: Rc<Shared>,
    waited: bool,
}

/// A request that got no answer.
pub struct Unanswered {
    pub error: hyper::Error,
    /// None of it was sent: it may go elsewhere as it is.
    pub unsent: Option<Request<Outgoing>>,
    /// The connection was there before the request.
    pub waited: bool,
}

impl HttpPool {
    pub fn new(max: KeepMax, hits: Hits) -> Self {
        Self { slots: RefCell::default(), totals: Rc::new(Totals { idle: Cell::new(0), max, hits }) }
    }

    /// The connections of a key; kept by whoever asks often.
    pub fn slot(&self, key: &Key) -> Rc<Slot> {
        if let Some(slot) = self.slots.borrow().get(key) {
            return Rc::clone(slot);
        }
        let slot = Rc::new(Slot {
            key: key.clone(),
            idle: RefCell::default(),
            streams: RefCell::default(),
            dialling: Semaphore::new(1),
            closed: Cell::new(false),
            open: Rc::default(),
            totals: Rc::clone(&self.totals),
        });
        self.slots.borrow_mut().insert(key.clone(), Rc::clone(&slot));
        slot
    }

    /// Closes what has been idle for `limit`, and forgets keys that nobody uses.
    pub fn sweep(&self, limit: Duration) {
        self.slots.borrow_mut().retain(|_, slot| {
            slot.sweep(limit);
            !(slot.is_empty() && Rc::strong_count(slot) == 1)
        });
        while self.totals.idle.get() > self.totals.max.idle {
            self.totals.hits.hit(Limit::HttpIdle);
            let slots = self.slots.borrow();
            let oldest = slots.values().filter(|slot| !slot.idle.borrow().is_empty());
            let Some(slot) = oldest.min_by_key(|slot| slot.idle.borrow().first().map(|idle| idle.since))
            else {
                return;
            };
            slot.drop_oldest();
        }
    }

    /// Closes the connections of keys that are not to be used any more; requests under way end by themselves.
    pub fn retain(&self, keep: impl Fn(&Key) -> bool) {
        self.slots.borrow_mut().retain(|key, slot| {
            let keep = keep(key);
            if !keep {
                slot.close();
            }
            keep
        });
    }

    /// Idle connections now.
    pub fn idle(&self) -> usize {
        self.totals.idle.get()
    }
}

impl Slot {
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Keeps no connection any more.
    pub fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// A connection at hand, if there is one. The one that was used last comes first: the others may go idle.
    pub fn take(self: &Rc<Self>) -> Option<Lease> {
        if self.key.http2 {
            let mut streams = self.streams.borrow_mut();
            // One that has streams does not rest.
            streams.retain(|conn| {
                let rested = conn.streams.get() == 0 && !conn.opened.may_wait(conn.used.get(), Duration::MAX);
                !conn.sender.is_closed() && !conn.opened.is_old() && !rested
            });
            let free = streams.iter().find(|conn| conn.streams.get() < self.totals.max.streams)?;
            return Some(Lease::Http2(Stream::enter(free, true)));
        }
        loop {
            let idle = self.idle.borrow_mut().pop()?;
            self.totals.idle.set(self.totals.idle.get().saturating_sub(1));
            // One that still swallows its last request's body, or that its server has closed, is let go.
            if idle.conn.sender.is_ready() && idle.conn.opened.may_wait(idle.since, Duration::MAX) {
                return Some(Lease::Http1 { conn: idle.conn, slot: Rc::clone(self), waited: true });
            }
        }
    }

    /// A place for one more connection. One that has none yet gets one whatever the limit is, or an endpoint could
    /// starve while the others are busy (as in Envoy).
    pub fn open(
        &self,
        destination: &Arc<Destination>,
        limits: &PoolLimits,
    ) -> Result<Opened, circuit::Overflow> {
        let place = match limits.max_connections {
            None => None,
            Some(_) => match destination.circuit.try_connection(limits) {
                Ok(place) => Some(place),
                Err(_full) if self.open.get() == 0 => None,
                Err(full) => return Err(full),
            },
        };
        self.open.set(self.open.get() + 1);
        Ok(Opened {
            open: Rc::clone(&self.open),
            place,
            destination: Arc::clone(destination),
            since: Instant::now(),
            idle: limits.http_idle,
            longest: limits.max_connection_duration,
        })
    }

    /// A connection with its first request.
    pub fn begin_http1(self: &Rc<Self>, conn: Http1, waited: bool) -> Lease {
        Lease::Http1 { conn, slot: Rc::clone(self), waited }
    }

    pub fn begin_http2(
        self: &Rc<Self>,
        sender: http2::SendRequest<Outgoing>,
        opened: Opened,
        waited: bool,
    ) -> Lease {
        let conn = Rc::new(Shared {
            sender,
            streams: Cell::new(0),
            served: Cell::new(0),
            used: Cell::new(Instant::now()),
            opened,
        });
        if !self.closed.get() {
            self.streams.borrow_mut().push(Rc::clone(&conn));
        }
        Lease::Http2(Stream::enter(&conn, waited))
    }

    fn put(&self, conn: Http1) {
        if self.closed.get() || conn.sender.is_closed() {
            return;
        }
        conn.opened.tell();
        self.idle.borrow_mut().push(Idle { conn, since: Instant::now() });
        self.totals.idle.set(self.totals.idle.get() + 1);
        if self.idle.borrow().len() > self.totals.max.per_endpoint {
            self.totals.hits.hit(Limit::HttpIdle);
            self.drop_oldest();
        }
    }

    fn drop_oldest(&self) {
        let mut idle = self.idle.borrow_mut();
        if !idle.is_empty() {
            drop(idle.remove(0));
            self.totals.idle.set(self.totals.idle.get().saturating_sub(1));
        }
    }

    fn sweep(&self, limit: Duration) {
        let mut idle = self.idle.borrow_mut();
        let before = idle.len();
        idle.retain(|idle| !idle.conn.sender.is_closed() && idle.conn.opened.may_wait(idle.since, limit));
        self.totals.idle.set(self.totals.idle.get().saturating_sub(before - idle.len()));
        self.streams.borrow_mut().retain(|conn| {
            !conn.sender.is_closed()
                && (conn.streams.get() > 0 || conn.opened.may_wait(conn.used.get(), limit))
        });
    }

    fn close(&self) {
        self.closed.set(true);
        let closed = std::mem::take(&mut *self.idle.borrow_mut()).len();
        self.totals.idle.set(self.totals.idle.get().saturating_sub(closed));
        self.streams.borrow_mut().clear();
    }

    fn is_empty(&self) -> bool {
        self.idle.borrow().is_empty() && self.streams.borrow().is_empty()
    }
}

impl Stream {
    fn enter(conn: &Rc<Shared>, waited: bool) -> Self {
        conn.streams.set(conn.streams.get() + 1);
        conn.served.set(conn.served.get().saturating_add(1));
        Self { conn: Rc::clone(conn), waited }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.conn.streams.set(self.conn.streams.get().saturating_sub(1));
        self.conn.used.set(Instant::now());
    }
}

impl Lease {
    /// Sends a request and waits for the head of its answer.
    pub async fn send(&mut self, request: Request<Outgoing>) -> Result<Response<Incoming>, Unanswered> {
        let (sent, waited) = match self {
            Self::Http1 { conn, waited, .. } => {
                conn.served = conn.served.saturating_add(1);
                (conn.sender.try_send_request(request).await, *waited)
            }
            Self::Http2(stream) => {
                // Requests do not wait for each other: every one has a handle of its own.
                let mut sender = stream.conn.sender.clone();
                (sender.try_send_request(request).await, stream.waited)
            }
        };
        sent.map_err(|mut failed| {
            let unsent = failed.take_message();
            Unanswered { error: failed.into_error(), unsent, waited }
        })
    }

    /// The answer is complete: the connection may take another request, if it has not had `max`.
    pub fn give_back(self, max: Option<u32>) {
        match self {
            Self::Http1 { conn, slot, .. } => {
                let spent = max.is_some_and(|max| conn.served >= max)
                    || conn.opened.is_old()
                    || conn.switched.wanted.get();
                if !spent {
                    slot.put(conn);
                }
            }
            Self::Http2(stream) => drop(stream),
        }
    }

    /// Takes an HTTP/2 connection out of use once it has carried `max` requests.
    pub fn retire(&self, slot: &Slot, max: Option<u32>) {
        if let (Self::Http2(stream), Some(max)) = (self, max)
            && stream.conn.served.get() >= max
        {
            slot.streams.borrow_mut().retain(|conn| !Rc::ptr_eq(conn, &stream.conn));
        }
    }

    /// Says before the request that it asks for another protocol: the connection is then this request's alone.
    pub fn will_switch(&self) {
        if let Self::Http1 { conn, .. } = self {
            conn.switched.wanted.set(true);
        }
    }

    /// The connection under the request, after an answer of 101.
    pub async fn into_switched(self) -> Option<HttpIo> {
        match self {
            // The sender stays until the task has let go: its end would end the task before.
            Self::Http1 { conn, .. } => conn.switched.io.await.ok(),
            Self::Http2(_) => None,
        }
    }
}

#[cfg(test)]
mod tests;
