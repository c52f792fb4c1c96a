//! Counters per request, with Istio's HTTP metric names and labels.
//! Owns: the series, their cap, and handles that keep label work off the path of a request.
//! Never: reads the world or a request. Called by `proxy::http` (counts) and `observe::metrics` (encodes).

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::hash::BuildHasher as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;

use super::Metrics;
use super::labels::{FlowLabels, OfRequest, Reporter};
use crate::model::Limit;
use crate::observe::meta::{ConnMeta, Direction};

/// Series kept, each with three histograms; requests of further ones share one per reporter.
pub const REQUEST_SERIES_MAX: usize = 10_000;
/// A series without a request for this long may give its place to a new one, seconds.
const IDLE_SECONDS: u32 = 600;
/// Least time between two searches for idle series, seconds.
const SWEEP_INTERVAL_SECONDS: u32 = 10;
/// Locks that share the series.
const SHARDS: usize = 16;

/// Upper bounds of `istio_request_duration_milliseconds`, as Envoy has them; one more bucket holds the rest.
pub const DURATION_BOUNDS_MS: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1000.0,
    2500.0,
    5000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];
/// Upper bounds of `istio_request_bytes` and `istio_response_bytes`.
pub const SIZE_BOUNDS_BYTES: [f64; 8] =
    [100.0, 1000.0, 5000.0, 10_000.0, 50_000.0, 100_000.0, 1_000_000.0, 10_000_000.0];

/// How a request ended, as labels tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Outcome {
    pub grpc: bool,
    pub status: u16,
    pub grpc_status: Option<u8>,
    /// Istio's `response_flags`; `-` where nothing went wrong.
    pub flag: &'static str,
}

/// What a request took.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    pub duration: Duration,
    pub request_bytes: u64,
    pub response_bytes: u64,
}

#[derive(Debug)]
struct Histogram<const N: usize> {
    /// Thousandths: durations have parts of a millisecond.
    sum: AtomicU64,
    buckets: [AtomicU64; N],
    rest: AtomicU64,
}

impl<const N: usize> Histogram<N> {
    fn new() -> Self {
        Self {
            sum: AtomicU64::new(0),
            buckets: std::array::from_fn(|_| AtomicU64::new(0)),
            rest: AtomicU64::new(0),
        }
    }

    fn observe(&self, bounds: &[f64; N], value: f64) {
        self.sum.fetch_add((value * 1000.0) as u64, Ordering::Relaxed);
        let bucket =
            bounds.iter().zip(&self.buckets).find(|(bound, _)| value <= **bound).map(|(_, bucket)| bucket);
        bucket.unwrap_or(&self.rest).fetch_add(1, Ordering::Relaxed);
    }

    fn read(&self, bounds: &[f64; N]) -> (f64, u64, Vec<(f64, u64)>) {
        let mut buckets: Vec<(f64, u64)> = bounds
            .iter()
            .zip(&self.buckets)
            .map(|(bound, count)| (*bound, count.load(Ordering::Relaxed)))
            .collect();
        // The encoder writes f64::MAX as `+Inf` and adds the counts up itself.
        buckets.push((f64::MAX, self.rest.load(Ordering::Relaxed)));
        let count = buckets.iter().map(|(_, count)| count).sum();
        (self.sum.load(Ordering::Relaxed) as f64 / 1000.0, count, buckets)
    }
}

/// One series.
#[derive(Debug)]
struct Series {
    labels: FlowLabels,
    outcome: Outcome,
    requests: AtomicU64,
    duration: Histogram<{ DURATION_BOUNDS_MS.len() }>,
    request_bytes: Histogram<{ SIZE_BOUNDS_BYTES.len() }>,
    response_bytes: Histogram<{ SIZE_BOUNDS_BYTES.len() }>,
    retired: AtomicBool,
    last_used: AtomicU32,
}

impl Series {
    fn new(labels: FlowLabels, outcome: Outcome, now: u32) -> Self {
        Self {
            labels,
            outcome,
            requests: AtomicU64::new(0),
            duration: Histogram::new(),
            request_bytes: Histogram::new(),
            response_bytes: Histogram::new(),
            retired: AtomicBool::new(false),
            last_used: AtomicU32::new(now),
        }
    }

    fn count(&self, effort: &Effort) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.duration.observe(&DURATION_BOUNDS_MS, effort.duration.as_secs_f64() * 1000.0);
        self.request_bytes.observe(&SIZE_BOUNDS_BYTES, effort.request_bytes as f64);
        self.response_bytes.observe(&SIZE_BOUNDS_BYTES, effort.response_bytes as f64);
    }

    fn of_request(&self) -> OfRequest<'_> {
        let Outcome { grpc, status, grpc_status, flag } = self.outcome;
        OfRequest { labels: &self.labels, grpc, status, grpc_status, flags: flag }
    }
}

type Shard = RwLock<HashMap<(FlowLabels, Outcome), Arc<Series>>>;

/// All series.
pub struct RequestTable {
    started: Instant,
    hasher: std::hash::RandomState,
    shards: [Shard; SHARDS],
    sets: AtomicU32,
    max: usize,
    overflowed: AtomicU64,
    last_sweep: Mutex<u32>,
}

impl RequestTable {
    pub(super) fn new(max: usize) -> Self {
        Self {
            started: Instant::now(),
            hasher: std::hash::RandomState::new(),
            shards: Default::default(),
            sets: AtomicU32::new(0),
            max,
            overflowed: AtomicU64::new(0),
            last_sweep: Mutex::new(0),
        }
    }

    pub(super) fn overflowed(&self) -> u64 {
        self.overflowed.load(Ordering::Relaxed)
    }

    fn get_or_insert(&self, labels: &FlowLabels, outcome: Outcome, now: u32) -> Arc<Series> {
        let key = (labels.clone(), outcome);
        let shard = &self.shards[(self.hasher.hash_one(&key) % SHARDS as u64) as usize];
        if let Some(series) = shard.read().get(&key) {
            return Arc::clone(series);
        }
        if self.sets.load(Ordering::Relaxed) as usize >= self.max {
            self.sweep(now);
        }
        if self.sets.load(Ordering::Relaxed) as usize >= self.max
            && key.0.source.workload.as_ref() != super::labels::OVERFLOW
        {
            self.overflowed.fetch_add(1, Ordering::Relaxed);
            return self.get_or_insert(&FlowLabels::overflow(labels.reporter), outcome, now);
        }
        let mut all = shard.write();
        let series = all.entry(key).or_insert_with(|| {
            self.sets.fetch_add(1, Ordering::Relaxed);
            Arc::new(Series::new(labels.clone(), outcome, now))
        });
        Arc::clone(series)
    }

    /// Lets go of series that nobody counted in for a while.
    fn sweep(&self, now: u32) {
        {
            let Some(mut last) = self.last_sweep.try_lock() else { return };
            if now.saturating_sub(*last) < SWEEP_INTERVAL_SECONDS {
                return;
            }
            *last = now;
        }
        for shard in &self.shards {
            shard.write().retain(|_, series| {
                let keep = now.saturating_sub(series.last_used.load(Ordering::Relaxed)) < IDLE_SECONDS;
                if !keep {
                    series.retired.store(true, Ordering::Relaxed);
                    self.sets.fetch_sub(1, Ordering::Relaxed);
                }
                keep
            });
        }
    }

    fn now(&self) -> u32 {
        u32::try_from(self.started.elapsed().as_secs()).unwrap_or(u32::MAX)
    }

    fn all(&self) -> Vec<Arc<Series>> {
        let mut all: Vec<Arc<Series>> = self
            .shards
            .iter()
            .flat_map(|shard| shard.read().values().map(Arc::clone).collect::<Vec<_>>())
            .collect();
        let key = |series: &Series| {
            (
                series.labels.clone(),
                series.outcome.status,
                series.outcome.flag,
                series.outcome.grpc_status,
                series.outcome.grpc,
            )
        };
        all.sort_unstable_by(|a, b| key(a).cmp(&key(b)));
        all
    }

    pub(super) fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let all = self.all();
        let mut family =
            encoder.encode_descriptor("istio_requests", "HTTP requests", None, MetricType::Counter)?;
        for series in &all {
            super::counter(&mut family, &series.of_request(), series.requests.load(Ordering::Relaxed))?;
        }
        type Read = fn(&Series) -> (f64, u64, Vec<(f64, u64)>);
        let families: [(&str, &str, Read); 3] = [
            (
                "istio_request_duration_milliseconds",
                "From a request's first byte to its answer's last",
                |series| series.duration.read(&DURATION_BOUNDS_MS),
            ),
            ("istio_request_bytes", "Bytes of request bodies", |series| {
                series.request_bytes.read(&SIZE_BOUNDS_BYTES)
            }),
            ("istio_response_bytes", "Bytes of response bodies", |series| {
                series.response_bytes.read(&SIZE_BOUNDS_BYTES)
            }),
        ];
        for (name, help, read) in families {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
            for series in &all {
                let (sum, count, buckets) = read(series);
                let labels = series.of_request();
                family
                    .encode_family(&labels)?
                    .encode_histogram::<OfRequest<'_>>(sum, count, &buckets, None)?;
            }
        }
        Ok(())
    }
}

/// The series of one pair of ends, kept by whoever sends requests between them. For one thread.
pub struct RequestHandles {
    metrics: Arc<Metrics>,
    labels: Vec<FlowLabels>,
    /// Few: one for each status that was ever met here.
    found: RefCell<Vec<(Outcome, Vec<Arc<Series>>)>>,
}

impl RequestHandles {
    pub fn new(metrics: &Arc<Metrics>, meta: &ConnMeta) -> Self {
        let reporters: &[Reporter] = match meta.direction {
            Direction::Outbound => &[Reporter::Source],
            Direction::Inbound => &[Reporter::Destination],
            Direction::Local => &[Reporter::Source, Reporter::Destination],
        };
        Self {
            metrics: Arc::clone(metrics),
            labels: reporters.iter().map(|reporter| FlowLabels::of(*reporter, meta)).collect(),
            found: RefCell::default(),
        }
    }

    /// Counts a request that ended.
    pub fn count(&self, outcome: Outcome, effort: &Effort) {
        let table = self.metrics.requests();
        let mut found = self.found.borrow_mut();
        let usable = |series: &[Arc<Series>]| series.iter().all(|one| !one.retired.load(Ordering::Relaxed));
        if let Some(at) = found.iter().position(|(known, _)| *known == outcome) {
            if usable(&found[at].1) {
                return found[at].1.iter().for_each(|series| series.count(effort));
            }
            found.swap_remove(at);
        }
        let now = table.now();
        let series: Vec<Arc<Series>> =
            self.labels.iter().map(|labels| table.get_or_insert(labels, outcome, now)).collect();
        for one in &series {
            one.last_used.store(now, Ordering::Relaxed);
            one.count(effort);
        }
        found.push((outcome, series));
    }
}

impl Metrics {
    /// The counters of HTTP requests.
    pub(super) fn requests(&self) -> &RequestTable {
        &self.requests
    }

    /// Requests counted so far with this status, all series together.
    pub fn requests_with_status(&self, status: u16) -> u64 {
        let all = self.requests.all();
        let with = all.iter().filter(|series| series.outcome.status == status);
        with.map(|series| series.requests.load(Ordering::Relaxed)).sum()
    }

    pub(super) fn series_overflowed(&self, limit: Limit) -> u64 {
        if limit == Limit::MetricSeries { self.requests.overflowed() } else { 0 }
    }
}

impl fmt::Debug for RequestTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestTable").field("series", &self.sets).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
