//! Every live connection that the agent relays: counted, listed, and cut when policy says so.
//! Owns: the connections' counters and the signal that ends them. Never: judges (the caller's closure does)
//! or touches a socket. Called by `proxy` (open, finish), `agent` (cut, drain) and `admin` (list).

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

use super::access_log::{AccessLog, Ended, RequestLine};
use super::meta::{ConnMeta, Direction, Party, Path};
use super::metrics::flow::Flows;
use super::metrics::{Fold, Metrics};
use crate::model::Reason;
use crate::model::reason::ROWS;

/// Locks that share the connections; more than workers, so that two of them seldom meet.
const SHARDS: usize = 32;

/// All live connections of the agent. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ConnectionTable {
    inner: Arc<Inner>,
}

struct Inner {
    metrics: Arc<Metrics>,
    log: AccessLog,
    next_id: AtomicU64,
    len: AtomicUsize,
    shards: [Mutex<HashMap<u64, Arc<Live>>>; SHARDS],
}

/// A connection as the table holds it.
struct Live {
    id: u64,
    opened: Instant,
    meta: RwLock<ConnMeta>,
    sent: Progress,
    received: Progress,
    /// Resolved when the destination is settled.
    flows: OnceLock<Flows>,
    /// 0, or 1 + the reason's place in the table of reasons.
    cut: AtomicU8,
    cut_signal: Notify,
    finished: AtomicBool,
    /// It carries HTTP: its requests are judged, counted and logged, not the connection.
    http: AtomicBool,
}

/// A byte counter and how much of it the metrics have already seen.
#[derive(Default)]
struct Progress {
    now: AtomicU64,
    folded: AtomicU64,
}

impl Progress {
    /// Bytes since the last call; two callers at once never count a byte twice.
    fn take(&self) -> u64 {
        let now = self.now.load(Ordering::Relaxed);
        now.saturating_sub(self.folded.fetch_max(now, Ordering::Relaxed))
    }
}

/// A live connection's handle; whoever relays it holds it. Dropping it ends the connection's entry.
pub struct Conn {
    table: ConnectionTable,
    live: Arc<Live>,
}

/// One connection as `mesh-agent connections` lists it.
#[derive(Clone, Debug)]
pub struct ConnSnapshot {
    pub id: u64,
    pub meta: ConnMeta,
    pub age: Duration,
    /// Bytes from source to destination.
    pub sent: u64,
    /// Bytes from destination to source.
    pub received: u64,
    /// Its upstream is connected.
    pub established: bool,
    /// It carries HTTP: policy judges its requests one by one.
    pub http: bool,
    /// Already told to end.
    pub cut: Option<Reason>,
}

/// A finished connection that the kernel carried past the agent.
#[derive(Clone, Debug)]
pub struct BypassedFlow {
    pub meta: ConnMeta,
    /// Bytes from source to destination.
    pub sent: u64,
    /// Bytes from destination to source.
    pub received: u64,
    pub duration: Duration,
    pub rtt_us: u64,
    pub retransmits: u64,
    pub reason: Option<Reason>,
}

impl ConnectionTable {
    pub fn new(metrics: Arc<Metrics>, log: AccessLog) -> Self {
        let inner = Arc::new(Inner {
            metrics,
            log,
            next_id: AtomicU64::new(1),
            len: AtomicUsize::new(0),
            shards: Default::default(),
        });
        let weak: Weak<Inner> = Arc::downgrade(&inner);
        inner.metrics.set_fold(weak);
        Self { inner }
    }

    /// Registers a connection. Register first and judge afterwards, with a world loaded afterwards: then no
    /// policy change can fall between the judgement and [`Self::cut_if`].
    pub fn open(&self, meta: ConnMeta) -> Conn {
        let id = self.inner.next_id.fetch_add(1, Ordering::Relaxed);
        self.inner.metrics.count_open(meta.direction, meta.path);
        let live = Arc::new(Live {
            id,
            opened: Instant::now(),
            meta: RwLock::new(meta),
            sent: Progress::default(),
            received: Progress::default(),
            flows: OnceLock::new(),
            cut: AtomicU8::new(0),
            cut_signal: Notify::new(),
            finished: AtomicBool::new(false),
            http: AtomicBool::new(false),
        });
        self.inner.shard(id).lock().insert(id, Arc::clone(&live));
        self.inner.len.fetch_add(1, Ordering::Relaxed);
        Conn { table: self.clone(), live }
    }

    /// Begins or ends the access log.
    pub fn set_access_log(&self, on: bool) {
        self.inner.log.set(on);
    }

    /// Counts and logs a flow that never passed through the agent, after its end.
    pub fn record_bypassed(&self, flow: &BypassedFlow) {
        let metrics = &self.inner.metrics;
        let flows = metrics.flows().resolve(&flow.meta);
        flows.opened();
        flows.bytes(flow.sent, flow.received);
        flows.figures(flow.rtt_us, flow.retransmits);
        flows.closed(flow.reason);
        metrics.count_open(flow.meta.direction, flow.meta.path);
        metrics.count_end(flow.meta.direction, flow.meta.path, flow.reason);
        self.inner.log.write(&Ended {
            meta: &flow.meta,
            sent: flow.sent,
            received: flow.received,
            duration: flow.duration,
            reason: flow.reason,
        });
    }

    /// Writes a request's line into the access log.
    pub fn log_request(&self, line: &RequestLine<'_>) {
        self.inner.log.request(line);
    }

    /// Tells every connection for which `judge` gives a reason to end with it; returns how many were told. `judge` is
    /// told whether the connection carries HTTP. No lock of the table is held while it runs.
    pub fn cut_if(&self, judge: &dyn Fn(&ConnMeta, bool) -> Option<Reason>) -> usize {
        let mut told = 0;
        self.inner.visit(|live| {
            if live.cut().is_some() {
                return;
            }
            let meta = live.meta.read().clone();
            if let Some(reason) = judge(&meta, live.is_http()) {
                told += usize::from(live.tell(reason));
            }
        });
        told
    }

    /// Tells one connection to end; false if there is none of that id.
    pub fn cut(&self, id: u64, reason: Reason) -> bool {
        let live = self.inner.shard(id).lock().get(&id).map(Arc::clone);
        live.is_some_and(|live| live.tell(reason))
    }

    /// Every live connection, oldest first.
    pub fn list(&self) -> Vec<ConnSnapshot> {
        let mut all = Vec::with_capacity(self.len());
        self.inner.visit(|live| {
            all.push(ConnSnapshot {
                id: live.id,
                meta: live.meta.read().clone(),
                age: live.opened.elapsed(),
                sent: live.sent.now.load(Ordering::Relaxed),
                received: live.received.now.load(Ordering::Relaxed),
                established: live.flows.get().is_some() || live.is_http(),
                http: live.is_http(),
                cut: live.cut(),
            });
        });
        all.sort_unstable_by_key(|conn| conn.id);
        all
    }

    pub fn len(&self) -> usize {
        self.inner.len.load(Ordering::Relaxed)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.inner.metrics
    }
}

impl Conn {
    pub fn id(&self) -> u64 {
        self.live.id
    }

    /// Bytes from source to destination. The relay adds to it; scrapes and listings read it.
    pub fn sent(&self) -> &AtomicU64 {
        &self.live.sent.now
    }

    /// Bytes from destination to source.
    pub fn received(&self) -> &AtomicU64 {
        &self.live.received.now
    }

    pub fn meta(&self) -> ConnMeta {
        self.live.meta.read().clone()
    }

    /// Names the endpoint that was chosen, or chosen anew after a failed attempt. Call before [`Self::established`].
    pub fn set_destination(
        &self,
        destination: Party,
        path: Path,
        hbone_address: Option<std::net::SocketAddr>,
    ) {
        let mut meta = self.live.meta.write();
        // Of one pass through this agent both ends are its own.
        let direction = match (meta.direction, path) {
            (Direction::Inbound, _) => Direction::Inbound,
            (_, Path::Local) => Direction::Local,
            _ => Direction::Outbound,
        };
        if (meta.direction, meta.path) != (direction, path) {
            let metrics = &self.table.inner.metrics;
            metrics.move_open((meta.direction, meta.path), (direction, path));
        }
        meta.direction = direction;
        meta.destination = destination;
        meta.path = path;
        meta.hbone_address = hbone_address;
    }

    /// The connection carries HTTP: from here on its requests are what is counted and logged.
    pub fn carries_http(&self) {
        self.live.http.store(true, Ordering::Relaxed);
    }

    /// The upstream is connected: the connection counts as opened from here on. Calling it is optional for a
    /// connection that fails; it is then counted as opened and closed at its end.
    pub fn established(&self) {
        self.live.settle(&self.table.inner.metrics);
        self.table.inner.log.opened(&self.live.meta.read());
    }

    /// Completes when the connection must end, with why. Never completes for a connection that may go on.
    pub async fn cancelled(&self) -> Reason {
        loop {
            let signal = self.live.cut_signal.notified();
            if let Some(reason) = self.live.cut() {
                return reason;
            }
            signal.await;
        }
    }

    /// Why the connection was told to end, if it was.
    pub fn cut_reason(&self) -> Option<Reason> {
        self.live.cut()
    }

    /// Ends the entry: counts, logs, forgets. `None` is a good end.
    pub fn finish(self, reason: Option<Reason>) {
        self.end(reason);
    }

    /// The same, where others still hold the handle.
    pub fn end(&self, reason: Option<Reason>) {
        self.table.end(&self.live, reason);
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        let reason = self.live.cut();
        self.table.end(&self.live, reason);
    }
}

impl ConnectionTable {
    fn end(&self, live: &Arc<Live>, reason: Option<Reason>) {
        if live.finished.swap(true, Ordering::Relaxed) {
            return;
        }
        let metrics = &self.inner.metrics;
        if !live.is_http() {
            let flows = live.settle(metrics);
            flows.bytes(live.sent.take(), live.received.take());
            flows.closed(reason);
        }
        if self.inner.shard(live.id).lock().remove(&live.id).is_some() {
            self.inner.len.fetch_sub(1, Ordering::Relaxed);
        }
        let meta = live.meta.read();
        metrics.count_end(meta.direction, meta.path, reason);
        if live.is_http() {
            // Its requests have had their lines.
            return;
        }
        self.inner.log.write(&Ended {
            meta: &meta,
            sent: live.sent.now.load(Ordering::Relaxed),
            received: live.received.now.load(Ordering::Relaxed),
            duration: live.opened.elapsed(),
            reason,
        });
    }
}

impl Live {
    fn is_http(&self) -> bool {
        self.http.load(Ordering::Relaxed)
    }

    fn settle(&self, metrics: &Metrics) -> &Flows {
        self.flows.get_or_init(|| {
            let flows = metrics.flows().resolve(&self.meta.read());
            flows.opened();
            flows
        })
    }

    fn cut(&self) -> Option<Reason> {
        let place = usize::from(self.cut.load(Ordering::Acquire)).checked_sub(1)?;
        ROWS.get(place).map(|row| row.reason)
    }

    /// The first reason stays; true if this call set it.
    fn tell(&self, reason: Reason) -> bool {
        let set = self.cut.compare_exchange(0, reason as u8 + 1, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if set {
            // One relay waits for it; a permit is kept if it does not wait yet.
            self.cut_signal.notify_one();
        }
        set
    }
}

impl Inner {
    fn shard(&self, id: u64) -> &Mutex<HashMap<u64, Arc<Live>>> {
        &self.shards[(id % SHARDS as u64) as usize]
    }

    fn visit(&self, mut look: impl FnMut(&Live)) {
        for shard in &self.shards {
            let batch: Vec<Arc<Live>> = shard.lock().values().map(Arc::clone).collect();
            batch.iter().for_each(|live| look(live));
        }
    }
}

impl Fold for Inner {
    fn fold(&self) {
        self.visit(|live| {
            if let Some(flows) = live.flows.get() {
                flows.bytes(live.sent.take(), live.received.take());
            }
        });
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionTable").field("len", &self.len).finish_non_exhaustive()
    }
}

impl fmt::Debug for Conn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Conn").field("id", &self.live.id).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
