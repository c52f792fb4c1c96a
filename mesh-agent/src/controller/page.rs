//! What the controller shows of itself: metrics and readiness. Called by its HTTP servers.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use tokio::sync::watch;

use crate::ca::authority::Authority;
use crate::ca::metrics::CaMetrics;
use crate::ca::pods::Pods;

/// See the module's header.
pub struct Page {
    authority: Arc<Authority>,
    metrics: Arc<CaMetrics>,
    /// None without Kubernetes.
    pods: Option<Arc<Pods>>,
    leading: Mutex<Option<watch::Receiver<bool>>>,
}

impl Page {
    pub(super) fn new(authority: Arc<Authority>, pods: Option<Arc<Pods>>) -> Arc<Self> {
        let metrics = CaMetrics::new(Arc::clone(&authority));
        Arc::new(Self { authority, metrics, pods, leading: Mutex::new(None) })
    }

    pub(super) fn set_leading(&self, leading: watch::Receiver<bool>) {
        *self.leading.lock() = Some(leading);
    }

    pub fn authority(&self) -> &Arc<Authority> {
        &self.authority
    }

    pub fn ca_metrics(&self) -> &Arc<CaMetrics> {
        &self.metrics
    }

    pub(super) fn pods(&self) -> Arc<Pods> {
        self.pods.as_ref().map_or_else(|| Pods::new(None), Arc::clone)
    }

    /// Whether this replica holds the lease.
    pub fn leads(&self) -> bool {
        self.leading.lock().as_ref().is_some_and(|leading| *leading.borrow())
    }

    /// What the CA still waits for; empty = it answers.
    pub fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        if self.authority.active().is_none() {
            missing.push("no signing certificate is in force".to_owned());
        }
        if self.pods.as_ref().is_some_and(|pods| !pods.synced()) {
            missing.push("the cluster's pods are not known yet".to_owned());
        }
        missing
    }
}

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.metrics.encode(&mut encoder)?;
        let help = "Whether this replica holds the leader lease";
        ConstGauge::new(i64::from(self.leads())).encode(encoder.encode_descriptor(
            "nodemesh_controller_leader",
            help,
            None,
            MetricType::Gauge,
        )?)
    }
}

impl fmt::Debug for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Page").field("missing", &self.missing()).finish_non_exhaustive()
    }
}
