//! How traffic to a destination is balanced and bounded: Istio's DestinationRule (`networking.istio.io/v1`) after
//! inheritance between rule, subset and port. Text has been parsed and checked by `compile`.

use std::sync::Arc;
use std::time::Duration;

use super::route::{Millionths, RetryOn, RetryPolicy};
use super::{Labels, PolicyRef};

/// The policy for one destination (host, subset, port).
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct TrafficPolicy {
    /// None = nobody wrote one.
    pub origin: Option<PolicyRef>,
    pub balance: LoadBalance,
    pub pool: PoolLimits,
    /// None = endpoints are never ejected.
    pub outlier: Option<Outlier>,
    pub locality: Locality,
    pub warmup: Option<Warmup>,
    pub tls: ClientTls,
    pub retry_budget: Option<RetryBudget>,
}

impl Default for TrafficPolicy {
    fn default() -> Self {
        Self {
            origin: None,
            balance: LoadBalance::LeastRequest,
            pool: PoolLimits::default(),
            outlier: None,
            locality: Locality::default(),
            warmup: None,
            tls: ClientTls::Mesh,
            retry_budget: None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub enum LoadBalance {
    RoundRobin,
    Random,
    /// Power of two choices over requests under way; also LEAST_CONN. Istio's default.
    LeastRequest,
    /// The address that the client asked for, as it is.
    Passthrough,
    Hash {
        key: HashKey,
        algorithm: HashAlgorithm,
    },
}

#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub enum HashKey {
    Header(Arc<str>),
    /// Made and set by us where the request has none; a `ttl` of zero is a session cookie.
    Cookie {
        name: Arc<str>,
        path: Option<Arc<str>>,
        ttl: Option<Duration>,
    },
    SourceAddress,
    QueryParameter(Arc<str>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub enum HashAlgorithm {
    RingHash { minimum_ring_size: u32 },
    Maglev { table_size: u32 },
}

/// `connectionPool`. None = no limit of ours.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct PoolLimits {
    /// Connections to the destination.
    pub max_connections: Option<u32>,
    /// `http1MaxPendingRequests`: requests that wait for a connection.
    pub max_pending: Option<u32>,
    /// `http2MaxRequests`: requests under way.
    pub max_requests: Option<u32>,
    /// `maxRetries`: retries under way.
    pub max_retries: Option<u32>,
    /// Requests over one connection; then it is closed.
    pub max_requests_per_connection: Option<u32>,
    /// HTTP/2 streams of one connection.
    pub max_concurrent_streams: Option<u32>,
    pub connect_timeout: Duration,
    pub tcp_idle: Duration,
    pub http_idle: Duration,
    pub max_connection_duration: Option<Duration>,
    pub h2_upgrade: H2Upgrade,
}

impl Default for PoolLimits {
    fn default() -> Self {
        let hour = Duration::from_secs(3600);
        Self {
            max_connections: None,
            max_pending: None,
            max_requests: None,
            max_retries: None,
            max_requests_per_connection: None,
            max_concurrent_streams: None,
            connect_timeout: Duration::from_secs(10),
            tcp_idle: hour,
            http_idle: hour,
            max_connection_duration: None,
            h2_upgrade: H2Upgrade::Default,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub enum H2Upgrade {
    Default,
    DoNotUpgrade,
    Upgrade,
}

/// `outlierDetection`; all of it as in Istio and Envoy.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Outlier {
    /// 0 = off.
    pub consecutive_5xx: u32,
    /// 502, 503, 504; 0 = off.
    pub consecutive_gateway: u32,
    /// Failures to connect and the like, counted apart if `split_local`; 0 = off.
    pub consecutive_local: u32,
    pub split_local: bool,
    pub interval: Duration,
    pub base_ejection: Duration,
    /// Percent of the destination's endpoints.
    pub max_ejection_percent: u32,
    /// Below this share of healthy endpoints (percent) all are used; 0 = never.
    pub min_health_percent: u32,
}

/// A locality and its percentage.
pub type LocalityShare = (Arc<str>, u32);

/// `localityLbSetting`.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Locality {
    pub enabled: bool,
    /// From a locality (`region/zone/subzone`, `*` at the end of one) to shares of others.
    pub distribute: Vec<(Arc<str>, Vec<LocalityShare>)>,
    /// From a region to the region that takes over.
    pub failover: Vec<(Arc<str>, Arc<str>)>,
    /// Labels, the most important first, with the value that counts as equal where one is given.
    pub priority: Vec<(Arc<str>, Option<Arc<str>>)>,
}

/// What holds for requests and endpoints where no object says otherwise (`meshConfig`).
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Defaults {
    pub retry: RetryPolicy,
    pub locality: Locality,
}

impl Default for Defaults {
    /// Istio's own: only what cannot have been done already is done again, and near endpoints come first where
    /// something says which are ill.
    fn default() -> Self {
        let on = RetryOn {
            connect_failure: true,
            refused_stream: true,
            // cancelled and unavailable
            grpc: vec![1, 14],
            ..RetryOn::default()
        };
        let retry = RetryPolicy {
            attempts: 2,
            per_try_timeout: None,
            on,
            backoff: Duration::from_millis(25),
            exclude_previous_hosts: true,
        };
        Self { retry, locality: Locality { enabled: true, ..Locality::default() } }
    }
}

/// Slow start of new endpoints.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Warmup {
    pub duration: Duration,
    /// Percent of its share that an endpoint starts with.
    pub minimum_percent: u32,
    /// 1.0 = linear.
    pub aggression: f64,
}

#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub enum ClientTls {
    /// Nobody says: the mesh's own to enrolled pods, plaintext to others.
    Mesh,
    /// ISTIO_MUTUAL: the mesh's own, and nothing less.
    Mutual,
    /// Plaintext whatever the destination is.
    Disable,
    /// SIMPLE, MUTUAL: TLS that the agent speaks in the client's stead, to the application behind whatever carries it.
    Originate(Arc<TlsOrigin>),
}

/// What TLS of the agent's own asks for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize)]
pub struct TlsOrigin {
    /// Whose files are meant.
    pub namespace: Arc<str>,
    /// None = the destination's host.
    pub sni: Option<Arc<str>>,
    /// Any of these instead of the name that is called.
    pub subject_alt_names: Vec<Arc<str>>,
    /// A file of authorities; none = the system's.
    pub roots: Option<Arc<str>>,
    /// Files of the client's certificate chain and key.
    pub client: Option<(Arc<str>, Arc<str>)>,
    /// The server's certificate is not looked at.
    pub skip_verify: bool,
}

/// `retryBudget`: retries under way may be this share of the requests under way, but at least `min_retries`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct RetryBudget {
    pub percent: Millionths,
    pub min_retries: u32,
}

/// A named part of a host's endpoints.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Subset {
    pub name: Arc<str>,
    pub labels: Labels,
}
