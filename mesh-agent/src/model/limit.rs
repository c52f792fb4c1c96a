//! The closed list of limits whose hits are counted, and the counts. A new limit gets a name here. Whoever owns a
//! limit counts its hits in the [`Hits`] it was given; `observe::metrics` shows them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A named limit of the agent. Its value stands where it is kept; ARCHITECTURE.md lists them all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// Pods of the node: one that finds no slot, each time it is tried.
    Pods,
    /// Connections of the whole node.
    NodeConnections,
    /// Connections of one source workload.
    WorkloadConnections,
    /// Connections that a full backlog of the agent's listeners dropped.
    Backlog,
    /// Descriptors of the process: an accept that found none left.
    OpenFiles,
    /// Commands waiting for a worker.
    WorkerCommands,
    /// Endpoints tried for one connection while there were more.
    EndpointTries,
    /// Streams of one tunnel, dialled or accepted.
    TunnelStreams,
    /// Streams of one tunnel over its life.
    TunnelLife,
    /// Tunnels of one worker's pool, or accepted ones of the node or a pod.
    Tunnels,
    /// TLS handshakes under way.
    Handshakes,
    /// A CONNECT's header list, where the peer answered 431. Our own HTTP/2 engine refuses without telling us.
    HeaderList,
    /// Resets and other frames that cost us more than the peer (CVE-2023-44487, CVE-2025-8671).
    TunnelFlood,
    /// Tunnels closed because they had no stream for long.
    IdleTunnels,
    /// Identities with a certificate.
    Identities,
    /// Roots in the trust bundle.
    Roots,
    /// Verdicts in the kernel's cache.
    Verdicts,
    /// Bytes of one manifest file.
    ManifestBytes,
    /// Manifest files.
    ManifestFiles,
    /// Label sets of the metrics.
    MetricSeries,
    /// Lines waiting to be written to the log.
    LogLines,
    /// Connections to the admin socket or to one of the HTTP ports.
    AdminConnections,
    /// Size and time of a request to those.
    AdminRequests,
    /// Pods or descriptors that the holder keeps.
    Holder,
    /// Size of a request's head: target, fields, bytes.
    HttpHead,
    /// Frames of an HTTP/2 client that cost us more than it.
    HttpFlood,
    /// Idle connections to upstreams.
    HttpIdle,
    /// A request's body too long to be sent again, where a retry or a mirror wanted it.
    HttpReplay,
    /// Mirrored requests under way.
    HttpMirrors,
    /// Bytes of a ClientHello, and the time for it, where its name decides where the connection goes.
    ClientHello,
    /// Names of ServiceEntries that are resolved: one that there is no room for, each time the entries change.
    DnsNames,
    /// Addresses of one name.
    DnsAddresses,
}

impl Limit {
    pub const ALL: [Self; 32] = [
        Self::Pods,
        Self::NodeConnections,
        Self::WorkloadConnections,
        Self::Backlog,
        Self::OpenFiles,
        Self::WorkerCommands,
        Self::EndpointTries,
        Self::TunnelStreams,
        Self::TunnelLife,
        Self::Tunnels,
        Self::Handshakes,
        Self::HeaderList,
        Self::TunnelFlood,
        Self::IdleTunnels,
        Self::Identities,
        Self::Roots,
        Self::Verdicts,
        Self::ManifestBytes,
        Self::ManifestFiles,
        Self::MetricSeries,
        Self::LogLines,
        Self::AdminConnections,
        Self::AdminRequests,
        Self::Holder,
        Self::HttpHead,
        Self::HttpFlood,
        Self::HttpIdle,
        Self::HttpReplay,
        Self::HttpMirrors,
        Self::ClientHello,
        Self::DnsNames,
        Self::DnsAddresses,
    ];

    pub const fn label(self) -> &'static str {
        match self {
            Self::Pods => "pods",
            Self::NodeConnections => "node_connections",
            Self::WorkloadConnections => "workload_connections",
            Self::Backlog => "backlog",
            Self::OpenFiles => "open_files",
            Self::WorkerCommands => "worker_commands",
            Self::EndpointTries => "endpoint_tries",
            Self::TunnelStreams => "tunnel_streams",
            Self::TunnelLife => "tunnel_life",
            Self::Tunnels => "tunnels",
            Self::Handshakes => "handshakes",
            Self::HeaderList => "header_list",
            Self::TunnelFlood => "tunnel_flood",
            Self::IdleTunnels => "idle_tunnels",
            Self::Identities => "identities",
            Self::Roots => "roots",
            Self::Verdicts => "verdicts",
            Self::ManifestBytes => "manifest_bytes",
            Self::ManifestFiles => "manifest_files",
            Self::MetricSeries => "metric_series",
            Self::LogLines => "log_lines",
            Self::AdminConnections => "admin_connections",
            Self::AdminRequests => "admin_requests",
            Self::Holder => "holder",
            Self::HttpHead => "http_head",
            Self::HttpFlood => "http_flood",
            Self::HttpIdle => "http_idle",
            Self::HttpReplay => "http_replay",
            Self::HttpMirrors => "http_mirrors",
            Self::ClientHello => "client_hello",
            Self::DnsNames => "dns_names",
            Self::DnsAddresses => "dns_addresses",
        }
    }
}

/// How often each limit was hit; clones count together.
#[derive(Clone, Debug, Default)]
pub struct Hits(Arc<[AtomicU64; Limit::ALL.len()]>);

impl Hits {
    pub fn hit(&self, limit: Limit) {
        self.add(limit, 1);
    }

    pub fn add(&self, limit: Limit, times: u64) {
        self.0[limit as usize].fetch_add(times, Ordering::Relaxed);
    }

    pub fn count(&self, limit: Limit) -> u64 {
        self.0[limit as usize].load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_in_their_own_order() {
        for (at, limit) in Limit::ALL.into_iter().enumerate() {
            assert_eq!(limit as usize, at);
            assert_eq!(serde_json::to_value(limit).unwrap(), limit.label());
        }
    }

    #[test]
    fn clones_count_together() {
        let hits = Hits::default();
        hits.clone().hit(Limit::Tunnels);
        hits.add(Limit::Tunnels, 2);
        assert_eq!((hits.count(Limit::Tunnels), hits.count(Limit::Roots)), (3, 0));
    }
}
