//! The closed list of limits whose hits are counted. A new limit gets a name here.

/// A named limit of the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// Connections of the whole node.
    NodeConnections,
    /// Connections of one source workload.
    WorkloadConnections,
    /// Streams of one tunnel.
    TunnelStreams,
    /// Tunnels of one worker's pool.
    Tunnels,
    /// TLS handshakes under way.
    Handshakes,
    /// Verdicts in the kernel's cache.
    Verdicts,
    /// Events from the kernel that were lost.
    KernelEvents,
    /// Label sets of the metrics.
    MetricSeries,
    /// Lines waiting to be written to the log.
    LogLines,
    /// Connections to the admin socket or to one of the HTTP ports.
    AdminConnections,
    /// Objects read from the source.
    Objects,
}

impl Limit {
    pub const ALL: [Self; 11] = [
        Self::NodeConnections,
        Self::WorkloadConnections,
        Self::TunnelStreams,
        Self::Tunnels,
        Self::Handshakes,
        Self::Verdicts,
        Self::KernelEvents,
        Self::MetricSeries,
        Self::LogLines,
        Self::AdminConnections,
        Self::Objects,
    ];

    pub const fn label(self) -> &'static str {
        match self {
            Self::NodeConnections => "node_connections",
            Self::WorkloadConnections => "workload_connections",
            Self::TunnelStreams => "tunnel_streams",
            Self::Tunnels => "tunnels",
            Self::Handshakes => "handshakes",
            Self::Verdicts => "verdicts",
            Self::KernelEvents => "kernel_events",
            Self::MetricSeries => "metric_series",
            Self::LogLines => "log_lines",
            Self::AdminConnections => "admin_connections",
            Self::Objects => "objects",
        }
    }
}
