//! Traffic counters per (source, destination, Service), with Istio's TCP metric names and labels.
//! Owns: the label sets, their cap, and the cache that keeps label work off the path of a connection.
//! Never: reads the world or a socket. Called by `observe::table` (counts) and `observe::metrics` (encodes).
//!
//! `received` is what went from client to server and `sent` what came back, on both reporters: Istio
//! defines them as the bytes of the request and of the response.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, OnceLock};
use std::time::Instant;

use parking_lot::{Mutex, RwLock};

use super::labels::{FlowLabels, Reporter};
use crate::model::Reason;
use crate::observe::meta::{ConnMeta, Direction, Party};

/// Label sets kept, each with four series or more; further ones share one overflow set per reporter.
pub const FLOW_LABEL_SETS_MAX: usize = 10_000;
/// A label set that saw no connection for this long may give its place to a new one, seconds.
pub const FLOW_IDLE_SECONDS: u32 = 600;
/// Least time between two searches for idle label sets, seconds: the search visits every one.
const SWEEP_INTERVAL_SECONDS: u32 = 10;
/// Locks that share the label sets.
const SHARDS: usize = 16;
/// Cache slots per thread; a collision costs one lookup in the shared table.
const CACHE_SLOTS: usize = 512;

/// Istio's `response_flags`, each at its own place in [`Flow::failed`].
pub const FLAGS: [&str; 16] = [
    "DENY",
    "TLS_FAILURE",
    "IDENTITY_ERROR",
    "H2_HANDSHAKE_FAILURE",
    "CONNECT",
    "UH",
    "NR",
    "DC",
    "UC",
    "SI",
    "DT",
    "UO",
    "DPE",
    "NC",
    "UT",
    "FI",
];

/// Upper bounds of the round-trip histogram, microseconds; one more bucket holds the rest.
pub const RTT_BOUNDS_US: [u64; 9] = [25, 50, 100, 250, 500, 1_000, 5_000, 25_000, 100_000];

/// TCP figures that only the kernel knows.
#[derive(Debug, Default)]
pub struct TcpFigures {
    pub retransmits: AtomicU64,
    pub rtt_sum_us: AtomicU64,
    pub rtt_buckets: [AtomicU64; RTT_BOUNDS_US.len() + 1],
}

/// The counters of one label set.
#[derive(Debug)]
pub struct Flow {
    pub labels: FlowLabels,
    pub opened: AtomicU64,
    pub closed: AtomicU64,
    pub sent: AtomicU64,
    pub received: AtomicU64,
    /// By [`FLAGS`].
    pub failed: [AtomicU64; FLAGS.len()],
    /// Only where a bypassed flow ever ended.
    pub figures: OnceLock<Box<TcpFigures>>,
    /// Taken out of the table; caches look the label set up again.
    retired: AtomicBool,
    /// Seconds since the table was made.
    last_used: AtomicU32,
}

impl Flow {
    fn new(labels: FlowLabels, now: u32) -> Self {
        Self {
            labels,
            opened: AtomicU64::new(0),
            closed: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            failed: Default::default(),
            figures: OnceLock::new(),
            retired: AtomicBool::new(false),
            last_used: AtomicU32::new(now),
        }
    }

    fn fail(&self, reason: Reason) {
        let flag = reason.row().flag;
        // A test holds every flag of the table of reasons against the list.
        if let Some(counter) = FLAGS.iter().position(|f| *f == flag).and_then(|at| self.failed.get(at)) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn figures(&self, rtt_us: u64, retransmits: u64) {
        let figures = self.figures.get_or_init(Box::default);
        figures.retransmits.fetch_add(retransmits, Ordering::Relaxed);
        figures.rtt_sum_us.fetch_add(rtt_us, Ordering::Relaxed);
        let at = RTT_BOUNDS_US.iter().position(|bound| rtt_us <= *bound).unwrap_or(RTT_BOUNDS_US.len());
        if let Some(bucket) = figures.rtt_buckets.get(at) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The label sets that one connection counts in: one, or two where this agent speaks for both ends.
#[derive(Clone, Debug)]
pub struct Flows {
    first: Arc<Flow>,
    second: Option<Arc<Flow>>,
}

impl Flows {
    fn each(&self) -> impl Iterator<Item = &Flow> {
        std::iter::once(&*self.first).chain(self.second.as_deref())
    }

    pub fn opened(&self) {
        self.each().for_each(|flow| {
            flow.opened.fetch_add(1, Ordering::Relaxed);
        });
    }

    pub fn closed(&self, reason: Option<Reason>) {
        for flow in self.each() {
            flow.closed.fetch_add(1, Ordering::Relaxed);
            if let Some(reason) = reason {
                flow.fail(reason);
            }
        }
    }

    /// Adds bytes: `request` from client to server, `response` back.
    pub fn bytes(&self, request: u64, response: u64) {
        for flow in self.each() {
            flow.received.fetch_add(request, Ordering::Relaxed);
            flow.sent.fetch_add(response, Ordering::Relaxed);
        }
    }

    /// Adds a finished flow's kernel figures, at the source reporter only: there is one TCP connection.
    pub fn figures(&self, rtt_us: u64, retransmits: u64) {
        self.first.figures(rtt_us, retransmits);
    }

    fn usable(&self) -> bool {
        self.each().all(|flow| !flow.retired.load(Ordering::Relaxed))
    }
}

type Shard = RwLock<HashMap<FlowLabels, Arc<Flow>, BuildHasherDefault<DefaultHasher>>>;

/// All label sets.
#[derive(Debug)]
pub struct FlowTable {
    /// Tells this table's cache entries from another's (tests hold several in one thread).
    instance: u64,
    started: Instant,
    shards: [Shard; SHARDS],
    sets: AtomicUsize,
    sets_max: usize,
    overflow: [Arc<Flow>; 2],
    overflowed: AtomicU64,
    last_sweep: Mutex<u32>,
}

impl FlowTable {
    pub fn new(sets_max: usize) -> Self {
        static INSTANCES: AtomicU64 = AtomicU64::new(1);
        Self {
            instance: INSTANCES.fetch_add(1, Ordering::Relaxed),
            started: Instant::now(),
            shards: Default::default(),
            sets: AtomicUsize::new(0),
            sets_max,
            overflow: [Reporter::Source, Reporter::Destination]
                .map(|reporter| Arc::new(Flow::new(FlowLabels::overflow(reporter), 0))),
            overflowed: AtomicU64::new(0),
            last_sweep: Mutex::new(0),
        }
    }

    /// The counters of a connection. The label sets are built once and found again by address afterwards.
    pub fn resolve(&self, meta: &ConnMeta) -> Flows {
        let now = self.now();
        CACHE.with_borrow_mut(|cache| {
            let slot = cache.slot(CacheKey::hash(self.instance, meta));
            if let Some(entry) =
                slot.as_ref().filter(|entry| entry.key.matches(self.instance, meta) && entry.flows.usable())
            {
                entry.flows.each().for_each(|flow| flow.last_used.store(now, Ordering::Relaxed));
                return entry.flows.clone();
            }
            let flows = self.look_up(meta, now);
            *slot = Some(CacheEntry { key: CacheKey::of(self.instance, meta), flows: flows.clone() });
            flows
        })
    }

    /// How many lookups ended in the overflow set.
    pub fn overflowed(&self) -> u64 {
        self.overflowed.load(Ordering::Relaxed)
    }

    pub fn len(&self) -> usize {
        self.sets.load(Ordering::Relaxed)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every label set, in a stable order; the overflow sets only once they were used.
    pub fn snapshot(&self) -> Vec<Arc<Flow>> {
        let mut all: Vec<Arc<Flow>> = Vec::with_capacity(self.len() + self.overflow.len());
        for shard in &self.shards {
            all.extend(shard.read().values().map(Arc::clone));
        }
        all.sort_unstable_by(|a, b| a.labels.cmp(&b.labels));
        all.extend(
            self.overflow.iter().filter(|flow| flow.opened.load(Ordering::Relaxed) > 0).map(Arc::clone),
        );
        all
    }

    fn look_up(&self, meta: &ConnMeta, now: u32) -> Flows {
        let set = |reporter| self.get_or_insert(FlowLabels::of(reporter, meta), now);
        match meta.direction {
            Direction::Outbound => Flows { first: set(Reporter::Source), second: None },
            Direction::Inbound => Flows { first: set(Reporter::Destination), second: None },
            Direction::Local => {
                Flows { first: set(Reporter::Source), second: Some(set(Reporter::Destination)) }
            }
        }
    }

    fn get_or_insert(&self, labels: FlowLabels, now: u32) -> Arc<Flow> {
        let hash = HASHER.hash_one(&labels);
        let shard = &self.shards[(hash % SHARDS as u64) as usize];
        if let Some(flow) = shard.read().get(&labels) {
            flow.last_used.store(now, Ordering::Relaxed);
            return Arc::clone(flow);
        }
        if self.len() >= self.sets_max {
            self.sweep(now);
        }
        let mut sets = shard.write();
        if let Some(flow) = sets.get(&labels) {
            return Arc::clone(flow);
        }
        if self.sets.fetch_add(1, Ordering::Relaxed) >= self.sets_max {
            self.sets.fetch_sub(1, Ordering::Relaxed);
            return self.overflow(labels.reporter);
        }
        let flow = Arc::new(Flow::new(labels.clone(), now));
        sets.insert(labels, Arc::clone(&flow));
        flow
    }

    fn overflow(&self, reporter: Reporter) -> Arc<Flow> {
        self.overflowed.fetch_add(1, Ordering::Relaxed);
        let [source, destination] = &self.overflow;
        Arc::clone(match reporter {
            Reporter::Source => source,
            Reporter::Destination => destination,
        })
    }

    /// Lets go of label sets without a live connection that nobody used for a while: pods come and go, and
    /// a full table of dead ones would hide the living. Prometheus sees a series end, as after a restart.
    fn sweep(&self, now: u32) {
        {
            let Some(mut last) = self.last_sweep.try_lock() else { return };
            if now.saturating_sub(*last) < SWEEP_INTERVAL_SECONDS {
                return;
            }
            *last = now;
        }
        for shard in &self.shards {
            let mut removed = 0;
            shard.write().retain(|_, flow| {
                let idle = now.saturating_sub(flow.last_used.load(Ordering::Relaxed)) >= FLOW_IDLE_SECONDS;
                let live = flow.opened.load(Ordering::Relaxed) != flow.closed.load(Ordering::Relaxed);
                let keep = live || !idle;
                if !keep {
                    flow.retired.store(true, Ordering::Relaxed);
                    removed += 1;
                }
                keep
            });
            self.sets.fetch_sub(removed, Ordering::Relaxed);
        }
    }

    fn now(&self) -> u32 {
        u32::try_from(self.started.elapsed().as_secs()).unwrap_or(u32::MAX)
    }
}

static HASHER: LazyLock<std::hash::RandomState> = LazyLock::new(std::hash::RandomState::new);

thread_local! {
    static CACHE: RefCell<Cache> = const { RefCell::new(Cache { slots: Vec::new() }) };
}

/// A direct-mapped cache of one thread: bounded, no locks, nothing to evict.
struct Cache {
    slots: Vec<Option<CacheEntry>>,
}

struct CacheEntry {
    key: CacheKey,
    flows: Flows,
}

/// Compares by address. It holds the objects, so an address cannot come back as another object; that keeps
/// at most `CACHE_SLOTS` outdated objects per thread alive.
struct CacheKey {
    instance: u64,
    meta: ConnMeta,
}

impl Cache {
    fn slot(&mut self, hash: u64) -> &mut Option<CacheEntry> {
        if self.slots.is_empty() {
            self.slots.resize_with(CACHE_SLOTS, || None);
        }
        let at = (hash % CACHE_SLOTS as u64) as usize;
        &mut self.slots[at]
    }
}

impl CacheKey {
    fn of(instance: u64, meta: &ConnMeta) -> Self {
        Self { instance, meta: meta.clone() }
    }

    fn hash(instance: u64, meta: &ConnMeta) -> u64 {
        let mut hasher = HASHER.build_hasher();
        instance.hash(&mut hasher);
        meta.direction.hash(&mut hasher);
        meta.path.hash(&mut hasher);
        for party in [&meta.source, &meta.destination] {
            // A workload has one identity, nearly always the one in the certificate.
            match &party.workload {
                Some(workload) => Arc::as_ptr(workload).hash(&mut hasher),
                None => party.identity.hash(&mut hasher),
            }
        }
        meta.service.as_ref().map(Arc::as_ptr).hash(&mut hasher);
        hasher.finish()
    }

    fn matches(&self, instance: u64, meta: &ConnMeta) -> bool {
        let own = &self.meta;
        self.instance == instance
            && own.direction == meta.direction
            && own.path == meta.path
            && same_party(&own.source, &meta.source)
            && same_party(&own.destination, &meta.destination)
            && same(own.service.as_ref(), meta.service.as_ref())
    }
}

fn same_party(a: &Party, b: &Party) -> bool {
    same(a.workload.as_ref(), b.workload.as_ref()) && a.identity == b.identity
}

fn same<T>(a: Option<&Arc<T>>, b: Option<&Arc<T>>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        (None, None) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests;
