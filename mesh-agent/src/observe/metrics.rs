//! The agent's metrics: Istio's TCP names for traffic, `nodemesh_*` for the agent itself.
//! Owns: every counter, and the text a scrape gets. Never: blocks a connection, or runs code of others
//! outside a scrape.
//! Called by `observe::table` (counts), `agent` (installs the probe) and `admin` (scrapes).

pub mod flow;
pub mod labels;
pub mod request;

use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::RwLock;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, MetricEncoder, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use self::flow::{FLAGS, FLOW_LABEL_SETS_MAX, Flow, FlowTable, RTT_BOUNDS_US, TcpFigures};
use self::labels::Flagged;
use super::meta::{Direction, Path};
pub use crate::model::Limit;
use crate::model::reason::ROWS;
use crate::model::{Hits, Identity, Reason};

/// What a scrape must be labelled as (OpenMetrics 1.0).
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Figures that other modules own, asked for at every scrape.
#[derive(Clone, Debug, Default)]
pub struct Probe {
    pub world_version: u64,
    /// How old the source's last good state is; 0 while it is current.
    pub world_stale_seconds: f64,
    pub workloads: u64,
    pub services: u64,
    /// Pods of this node whose traffic is captured.
    pub enrolled: u64,
    /// The kernel programs' own counters, by a closed set of names.
    pub kernel: Vec<(&'static str, u64)>,
    /// Each certificate with its end, seconds since 1970.
    pub certificates: Vec<(Identity, u64)>,
}

type ProbeFn = Box<dyn Fn() -> Probe + Send + Sync>;

/// Brings counters up to date before they are read.
pub(super) trait Fold: Send + Sync {
    fn fold(&self);
}

const PAIRS: usize = Direction::ALL.len() * Path::ALL.len();

/// All metrics of the process.
pub struct Metrics {
    flows: FlowTable,
    requests: request::RequestTable,
    hits: Hits,
    open: [AtomicI64; PAIRS],
    /// By direction and path, then by reason; the last place is a good end.
    ended: [[AtomicU64; ROWS.len() + 1]; PAIRS],
    probe: RwLock<Option<ProbeFn>>,
    fold: RwLock<Weak<dyn Fold>>,
    dropped_lines: OnceLock<Arc<AtomicU64>>,
    /// What another role of the process adds to its page.
    extra: OnceLock<Box<dyn Collector>>,
}

struct Nothing;

impl Fold for Nothing {
    fn fold(&self) {}
}

impl Metrics {
    pub fn new() -> Arc<Self> {
        Self::with_label_sets_max(FLOW_LABEL_SETS_MAX)
    }

    /// As [`Self::new`], with another cap on label sets.
    pub fn with_label_sets_max(max: usize) -> Arc<Self> {
        Arc::new(Self {
            flows: FlowTable::new(max),
            requests: request::RequestTable::new(max.min(request::REQUEST_SERIES_MAX)),
            hits: Hits::default(),
            open: Default::default(),
            ended: std::array::from_fn(|_| std::array::from_fn(|_| AtomicU64::new(0))),
            probe: RwLock::new(None),
            fold: RwLock::new(Weak::<Nothing>::new()),
            dropped_lines: OnceLock::new(),
            extra: OnceLock::new(),
        })
    }

    /// Counts a hit of a limit.
    pub fn limit_hit(&self, limit: Limit) {
        self.hits.hit(limit);
    }

    pub fn limit_hits(&self, limit: Limit, times: u64) {
        self.hits.add(limit, times);
    }

    /// The counters of limits, for those who may not know this module.
    pub fn hits(&self) -> Hits {
        self.hits.clone()
    }

    /// How often a limit was hit.
    pub fn limit_count(&self, limit: Limit) -> u64 {
        let own = match limit {
            Limit::MetricSeries => self.flows.overflowed() + self.series_overflowed(limit),
            Limit::LogLines => self.dropped_lines.get().map_or(0, |lines| lines.load(Ordering::Relaxed)),
            _ => 0,
        };
        own + self.hits.count(limit)
    }

    /// Installs what other modules add to a scrape. Runs on the scraper's thread; must not block for long.
    pub fn set_probe(&self, probe: impl Fn() -> Probe + Send + Sync + 'static) {
        *self.probe.write() = Some(Box::new(probe));
    }

    /// Adds a collector to every scrape; the first call holds.
    pub fn set_extra(&self, extra: Box<dyn Collector>) {
        self.extra.get_or_init(|| extra);
    }

    /// Counts the lines that the log lost ([`super::logging::LogGuard::dropped_lines`]); the first call holds.
    pub fn watch_log(&self, dropped: Arc<AtomicU64>) {
        self.dropped_lines.get_or_init(|| dropped);
    }

    /// Connections open now, of one direction and path.
    pub fn open_connections(&self, direction: Direction, path: Path) -> u64 {
        u64::try_from(self.open[pair(direction, path)].load(Ordering::Relaxed)).unwrap_or(0)
    }

    pub(super) fn set_fold(&self, fold: Weak<dyn Fold>) {
        *self.fold.write() = fold;
    }

    pub(super) const fn flows(&self) -> &FlowTable {
        &self.flows
    }

    pub(super) fn count_open(&self, direction: Direction, path: Path) {
        self.open[pair(direction, path)].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn move_open(&self, from: (Direction, Path), to: (Direction, Path)) {
        self.open[pair(from.0, from.1)].fetch_sub(1, Ordering::Relaxed);
        self.count_open(to.0, to.1);
    }

    pub(super) fn count_end(&self, direction: Direction, path: Path, reason: Option<Reason>) {
        self.open[pair(direction, path)].fetch_sub(1, Ordering::Relaxed);
        let at = reason.map_or(ROWS.len(), |reason| reason as usize);
        self.ended[pair(direction, path)][at].fetch_add(1, Ordering::Relaxed);
    }

    /// The scrape's text; its media type is [`CONTENT_TYPE`].
    pub fn encode(self: &Arc<Self>) -> Result<String, fmt::Error> {
        // Taken out of the lock first: folding may take long and must not hold up `set_fold`.
        let fold = self.fold.read().upgrade();
        if let Some(fold) = fold {
            fold.fold();
        }
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Arc::clone(self)));
        let mut out = String::new();
        text::encode(&mut out, &registry)?;
        Ok(out)
    }

    fn encode_traffic(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let flows = self.flows.snapshot();
        type Read = fn(&Flow) -> &AtomicU64;
        let families: [(&str, &str, Read); 4] = [
            ("istio_tcp_connections_opened", "TCP connections opened", |flow| &flow.opened),
            ("istio_tcp_connections_closed", "TCP connections closed", |flow| &flow.closed),
            ("istio_tcp_received_bytes", "Bytes from client to server", |flow| &flow.received),
            ("istio_tcp_sent_bytes", "Bytes from server to client", |flow| &flow.sent),
        ];
        for (name, help, read) in families {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for flow in &flows {
                counter(&mut family, &flow.labels.with_flags("-"), read(flow).load(Ordering::Relaxed))?;
            }
        }
        let help = "TCP connections that ended badly";
        let mut family =
            encoder.encode_descriptor("istio_tcp_connections_failed", help, None, MetricType::Counter)?;
        for flow in &flows {
            for (flag, failed) in FLAGS.iter().zip(&flow.failed) {
                let failed = failed.load(Ordering::Relaxed);
                if failed > 0 {
                    counter(&mut family, &flow.labels.with_flags(flag), failed)?;
                }
            }
        }
        encode_figures(encoder, &flows)
    }

    fn encode_agent(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let version = env!("CARGO_PKG_VERSION");
        let help = "Component and version that serve this page";
        let mut family = encoder.encode_descriptor("istio_build", help, None, MetricType::Gauge)?;
        gauge(&mut family, &[("component", "nodemesh"), ("tag", version)], 1)?;
        let help = "Version of this agent";
        let mut family = encoder.encode_descriptor("nodemesh_build_info", help, None, MetricType::Gauge)?;
        gauge(&mut family, &[("version", version)], 1)?;

        let help = "Connections that the agent relays now";
        let mut family =
            encoder.encode_descriptor("nodemesh_connections_open", help, None, MetricType::Gauge)?;
        for (direction, path) in pairs() {
            let open = self.open_connections(direction, path);
            if open > 0 {
                gauge(&mut family, &[("direction", direction.label()), ("path", path.label())], open)?;
            }
        }
        let help = "Connections that ended, by reason; `complete` is a good end";
        let mut family =
            encoder.encode_descriptor("nodemesh_connections_ended", help, None, MetricType::Counter)?;
        for (direction, path) in pairs() {
            let reasons = ROWS.iter().map(|row| row.label).chain(["complete"]);
            for (reason, ended) in reasons.zip(&self.ended[pair(direction, path)]) {
                let ended = ended.load(Ordering::Relaxed);
                if ended > 0 {
                    let labels =
                        [("direction", direction.label()), ("path", path.label()), ("reason", reason)];
                    counter(&mut family, &labels, ended)?;
                }
            }
        }
        let help = "How often a named limit was hit";
        let mut family = encoder.encode_descriptor("nodemesh_limit_hits", help, None, MetricType::Counter)?;
        for limit in Limit::ALL {
            counter(&mut family, &[("limit", limit.label())], self.limit_count(limit))?;
        }
        let help = "Label sets that the traffic metrics hold";
        plain(encoder, "nodemesh_metric_label_sets", help, self.flows.len() as f64)
    }

    fn encode_probe(encoder: &mut DescriptorEncoder<'_>, probe: Probe) -> fmt::Result {
        plain(
            encoder,
            "nodemesh_world_version",
            "Version of the world in force",
            probe.world_version as f64,
        )?;
        let help = "Age of the world while its source cannot be read, 0 otherwise";
        plain(encoder, "nodemesh_world_stale_seconds", help, probe.world_stale_seconds)?;
        plain(encoder, "nodemesh_workloads", "Workloads that the world knows", probe.workloads as f64)?;
        plain(encoder, "nodemesh_services", "Services that the world knows", probe.services as f64)?;
        plain(encoder, "nodemesh_workloads_enrolled", "Captured pods of this node", probe.enrolled as f64)?;

        let help = "What the kernel programs counted";
        let mut family =
            encoder.encode_descriptor("nodemesh_kernel_events", help, None, MetricType::Counter)?;
        for (event, count) in probe.kernel {
            counter(&mut family, &[("event", event)], count)?;
        }
        let name = "nodemesh_certificate_expiration_timestamp_seconds";
        let mut family =
            encoder.encode_descriptor(name, "End of each certificate", None, MetricType::Gauge)?;
        for (identity, end) in probe.certificates {
            gauge(&mut family, &[("identity", &*identity.to_string())], end)?;
        }
        Ok(())
    }
}

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        // First: who is asked may count hits of limits that only a look finds out.
        let probe = self.probe.read().as_ref().map(|probe| probe());
        self.encode_traffic(&mut encoder)?;
        self.requests.encode(&mut encoder)?;
        self.encode_agent(&mut encoder)?;
        probe.map_or(Ok(()), |probe| Self::encode_probe(&mut encoder, probe))?;
        match self.extra.get() {
            Some(extra) => extra.encode(encoder),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").field("label_sets", &self.flows.len()).finish_non_exhaustive()
    }
}

fn encode_figures(encoder: &mut DescriptorEncoder<'_>, flows: &[Arc<Flow>]) -> fmt::Result {
    let figures = || flows.iter().filter_map(|flow| flow.figures.get().map(|figures| (flow, figures)));
    let help = "TCP segments that the kernel sent again, of connections that bypass the agent";
    let mut family =
        encoder.encode_descriptor("nodemesh_tcp_retransmits", help, None, MetricType::Counter)?;
    for (flow, figures) in figures() {
        counter(&mut family, &flow.labels.with_flags("-"), figures.retransmits.load(Ordering::Relaxed))?;
    }
    let help = "Smoothed round-trip time at the end of connections that bypass the agent";
    let mut family =
        encoder.encode_descriptor("nodemesh_tcp_rtt_seconds", help, None, MetricType::Histogram)?;
    for (flow, figures) in figures() {
        let buckets = buckets(figures);
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = figures.rtt_sum_us.load(Ordering::Relaxed) as f64 / 1e6;
        let labels = flow.labels.with_flags("-");
        family.encode_family(&labels)?.encode_histogram::<Flagged<'_>>(sum, count, &buckets, None)?;
    }
    Ok(())
}

fn buckets(figures: &TcpFigures) -> Vec<(f64, u64)> {
    // The encoder writes f64::MAX as `+Inf` and adds the counts up itself.
    let bounds = RTT_BOUNDS_US.iter().map(|us| *us as f64 / 1e6).chain([f64::MAX]);
    bounds.zip(figures.rtt_buckets.iter().map(|count| count.load(Ordering::Relaxed))).collect()
}

fn pairs() -> impl Iterator<Item = (Direction, Path)> {
    Direction::ALL.into_iter().flat_map(|direction| Path::ALL.into_iter().map(move |path| (direction, path)))
}

const fn pair(direction: Direction, path: Path) -> usize {
    direction as usize * Path::ALL.len() + path as usize
}

fn counter(family: &mut MetricEncoder<'_>, labels: &impl EncodeLabelSet, value: u64) -> fmt::Result {
    ConstCounter::new(value).encode(family.encode_family(labels)?)
}

fn gauge(family: &mut MetricEncoder<'_>, labels: &impl EncodeLabelSet, value: u64) -> fmt::Result {
    ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(family.encode_family(labels)?)
}

fn plain(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: f64) -> fmt::Result {
    ConstGauge::new(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
}

#[cfg(test)]
mod tests;
