//! The CA's counters. Called by `issue`, `server` and `store` (count), `controller` (puts them on its metrics page).

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::authority::Authority;

/// How a request ended. A closed list: a new way gets a name here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Issued,
    /// No token, or one that proves nobody.
    Unauthenticated,
    /// The node rule, or another trust domain.
    NotAllowed,
    /// On the deny list.
    Denied,
    /// The request or its CSR is malformed.
    BadRequest,
    /// The API server cannot be asked, or no signer is in force.
    Unavailable,
    /// Too many requests under way.
    Overloaded,
}

impl Outcome {
    const ALL: [Self; 7] = [
        Self::Issued,
        Self::Unauthenticated,
        Self::NotAllowed,
        Self::Denied,
        Self::BadRequest,
        Self::Unavailable,
        Self::Overloaded,
    ];

    pub const fn label(self) -> &'static str {
        match self {
            Self::Issued => "issued",
            Self::Unauthenticated => "unauthenticated",
            Self::NotAllowed => "not_allowed",
            Self::Denied => "denied",
            Self::BadRequest => "bad_request",
            Self::Unavailable => "unavailable",
            Self::Overloaded => "overloaded",
        }
    }
}

/// What is counted.
pub struct CaMetrics {
    outcomes: [AtomicU64; Outcome::ALL.len()],
    /// Connections refused because too many were open or in their handshake.
    connections_refused: AtomicU64,
    authority: Arc<Authority>,
}

impl CaMetrics {
    pub fn new(authority: Arc<Authority>) -> Arc<Self> {
        Arc::new(Self { outcomes: Default::default(), connections_refused: AtomicU64::new(0), authority })
    }

    pub fn count(&self, outcome: Outcome) {
        self.outcomes[outcome as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub fn get(&self, outcome: Outcome) -> u64 {
        self.outcomes[outcome as usize].load(Ordering::Relaxed)
    }

    pub fn connection_refused(&self) {
        self.connections_refused.fetch_add(1, Ordering::Relaxed);
    }

    pub fn connections_refused(&self) -> u64 {
        self.connections_refused.load(Ordering::Relaxed)
    }

    /// Writes them.
    pub fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Certificate requests, by how they ended";
        let mut family =
            encoder.encode_descriptor("nodemesh_ca_requests", help, None, MetricType::Counter)?;
        for outcome in Outcome::ALL {
            ConstCounter::new(self.get(outcome))
                .encode(family.encode_family(&[("result", outcome.label())])?)?;
        }
        let help = "Connections refused by the CA's limits";
        ConstCounter::new(self.connections_refused()).encode(encoder.encode_descriptor(
            "nodemesh_ca_connections_refused",
            help,
            None,
            MetricType::Counter,
        )?)?;
        let active = self.authority.active();
        let end = active.as_ref().map_or(0, |active| seconds(active.signer.not_after()));
        gauge(
            encoder,
            "nodemesh_ca_signer_expiration_timestamp_seconds",
            "End of the signing certificate",
            end,
        )?;
        let roots = active.as_ref().map_or(0, |active| active.roots.len() as i64);
        gauge(encoder, "nodemesh_ca_roots", "Roots in the published bundle", roots)?;
        let denied = self.authority.denied().len() as i64;
        gauge(encoder, "nodemesh_ca_denied_identities", "Identities on the deny list", denied)
    }
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: i64) -> fmt::Result {
    ConstGauge::new(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
}

fn seconds(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}
