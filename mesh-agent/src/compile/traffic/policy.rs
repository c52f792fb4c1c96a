//! `trafficPolicy` of a DestinationRule: its parts, each checked, before any inheritance (reference section 4.4).

use std::sync::Arc;
use std::time::Duration;

use super::Reader;
use crate::api::istio::networking::{
    ConnectionPoolSettings, H2UpgradePolicy, HttpSettings, OutlierDetection, PortTrafficPolicy,
    RetryBudget as ApiRetryBudget, TcpSettings, TrafficPolicy,
};
use crate::model::route::Millionths;
use crate::model::traffic::{
    ClientTls, H2Upgrade, LoadBalance, Locality, Outlier, PoolLimits, RetryBudget, Warmup,
};

mod balancer;
mod tls;

use balancer::balancer;
pub(super) use balancer::locality;
use tls::tls;

/// What one `trafficPolicy` says; none = it does not say.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct PolicyParts {
    pub balancer: Option<Balancer>,
    pub pool: Option<PoolLimits>,
    pub outlier: Option<Outlier>,
    pub tls: Option<ClientTls>,
    pub retry_budget: Option<RetryBudget>,
    pub ports: Vec<(u16, PortParts)>,
}

/// `portLevelSettings[]`: replaces the four wholesale.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct PortParts {
    pub balancer: Option<Balancer>,
    pub pool: Option<PoolLimits>,
    pub outlier: Option<Outlier>,
    pub tls: Option<ClientTls>,
}

/// `loadBalancer`.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Balancer {
    /// None = the default algorithm.
    pub balance: Option<LoadBalance>,
    /// None = the mesh's setting.
    pub locality: Option<Locality>,
    pub warmup: Option<Warmup>,
}

/// Stands for «never» where the API says `0s`.
const NO_LIMIT: Duration = Duration::from_secs(u32::MAX as u64);

pub(super) fn parts(reader: &mut Reader<'_>, field: &str, policy: &TrafficPolicy) -> PolicyParts {
    let unsupported =
        [("tunnel", policy.tunnel.is_some()), ("proxyProtocol", policy.proxy_protocol.is_some())];
    for (name, _) in unsupported.into_iter().filter(|(_, given)| *given) {
        let message = "is not supported by this version";
        reader.fault(&format!("{field}.{name}"), message, "remove it");
    }
    let mut ports: Vec<(u16, PortParts)> = Vec::new();
    for (index, settings) in policy.port_level_settings.iter().flatten().enumerate() {
        let field = format!("{field}.portLevelSettings[{index}]");
        let number = Some(settings.port.and_then(|port| port.number).unwrap_or(0));
        let Some(port) = reader.port(&format!("{field}.port.number"), number) else { continue };
        if ports.iter().any(|(other, _)| *other == port) {
            reader.fault(&format!("{field}.port.number"), "is listed twice", "keep one of the two");
        }
        ports.push((port, of_port(reader, &field, settings)));
    }
    PolicyParts {
        balancer: policy
            .load_balancer
            .as_ref()
            .map(|given| balancer(reader, &format!("{field}.loadBalancer"), given)),
        pool: policy
            .connection_pool
            .as_ref()
            .map(|given| pool(reader, &format!("{field}.connectionPool"), given)),
        outlier: policy
            .outlier_detection
            .as_ref()
            .map(|given| outlier(reader, &format!("{field}.outlierDetection"), given)),
        tls: policy.tls.as_ref().and_then(|given| tls(reader, &format!("{field}.tls"), given)),
        retry_budget: policy
            .retry_budget
            .as_ref()
            .map(|given| budget(reader, &format!("{field}.retryBudget"), given)),
        ports,
    }
}

fn of_port(reader: &mut Reader<'_>, field: &str, settings: &PortTrafficPolicy) -> PortParts {
    let whole = TrafficPolicy {
        load_balancer: settings.load_balancer.clone(),
        connection_pool: settings.connection_pool.clone(),
        outlier_detection: settings.outlier_detection.clone(),
        tls: settings.tls.clone(),
        ..TrafficPolicy::default()
    };
    let PolicyParts { balancer, pool, outlier, tls, .. } = parts(reader, field, &whole);
    PortParts { balancer, pool, outlier, tls }
}

/// A number of which 0 is «no limit».
fn limit(reader: &mut Reader<'_>, field: &str, value: Option<i32>) -> Option<u32> {
    let value = value?;
    match u32::try_from(value) {
        Ok(0) => None,
        Ok(value) => Some(value),
        Err(_negative) => {
            reader.fault(
                field,
                &format!("{value} is negative"),
                "write a positive number, or 0 for no limit",
            );
            None
        }
    }
}

fn pool(reader: &mut Reader<'_>, field: &str, settings: &ConnectionPoolSettings) -> PoolLimits {
    let tcp = settings.tcp.clone().unwrap_or_default();
    let http = settings.http.clone().unwrap_or_default();
    let mut limits = PoolLimits::default();
    of_tcp(reader, &format!("{field}.tcp"), &tcp, &mut limits);
    of_http(reader, &format!("{field}.http"), &http, &mut limits);
    limits
}

fn of_tcp(reader: &mut Reader<'_>, field: &str, tcp: &TcpSettings, limits: &mut PoolLimits) {
    if tcp.tcp_keepalive.is_some() {
        reader.warn(
            &format!("{field}.tcpKeepalive"),
            "has no effect: connections of the mesh have keepalives of the agent's own",
            "remove it",
        );
    }
    limits.max_connections = limit(reader, &format!("{field}.maxConnections"), tcp.max_connections);
    if let Some(time) = reader.positive(&format!("{field}.connectTimeout"), tcp.connect_timeout.as_ref()) {
        limits.connect_timeout = time;
    }
    if let Some(time) = idle(reader, &format!("{field}.idleTimeout"), tcp.idle_timeout.as_ref()) {
        limits.tcp_idle = time;
        // For HTTP too, as far as `http.idleTimeout` does not say otherwise (Istio's `applyConnectionPool`).
        limits.http_idle = time;
    }
    limits.max_connection_duration =
        reader.positive(&format!("{field}.maxConnectionDuration"), tcp.max_connection_duration.as_ref());
}

fn of_http(reader: &mut Reader<'_>, field: &str, http: &HttpSettings, limits: &mut PoolLimits) {
    let at = |name: &str| format!("{field}.{name}");
    limits.max_pending = limit(reader, &at("http1MaxPendingRequests"), http.http1_max_pending_requests);
    limits.max_requests = limit(reader, &at("http2MaxRequests"), http.http2_max_requests);
    limits.max_retries = limit(reader, &at("maxRetries"), http.max_retries);
    limits.max_requests_per_connection =
        limit(reader, &at("maxRequestsPerConnection"), http.max_requests_per_connection);
    limits.max_concurrent_streams = limit(reader, &at("maxConcurrentStreams"), http.max_concurrent_streams);
    if let Some(time) = idle(reader, &at("idleTimeout"), http.idle_timeout.as_ref()) {
        limits.http_idle = time;
    }
    limits.h2_upgrade = match http.h2_upgrade_policy {
        None | Some(H2UpgradePolicy::Default) => H2Upgrade::Default,
        Some(H2UpgradePolicy::DoNotUpgrade) => H2Upgrade::DoNotUpgrade,
        Some(H2UpgradePolicy::Upgrade) => H2Upgrade::Upgrade,
    };
    // `useClientProtocol` is how the agent speaks anyway, unless told to upgrade.
    if http.use_client_protocol == Some(true) && limits.h2_upgrade == H2Upgrade::Upgrade {
        let message = "contradicts h2UpgradePolicy UPGRADE";
        reader.fault(&at("useClientProtocol"), message, "keep one of the two");
    }
}

/// `0s` switches the limit off.
fn idle(reader: &mut Reader<'_>, field: &str, text: Option<&String>) -> Option<Duration> {
    let time = reader.duration(field, text)?;
    Some(if time.is_zero() { NO_LIMIT } else { time })
}

fn outlier(reader: &mut Reader<'_>, field: &str, given: &OutlierDetection) -> Outlier {
    let at = |name: &str| format!("{field}.{name}");
    if let Some(errors) = given.consecutive_errors {
        if errors < 0 {
            reader.fault(&at("consecutiveErrors"), &format!("{errors} is negative"), "write 0 or more");
        }
        reader.warn(
            &at("consecutiveErrors"),
            "is deprecated; it is taken for consecutive5xxErrors",
            "write consecutive5xxErrors",
        );
    }
    let older = given.consecutive_errors.and_then(|errors| u32::try_from(errors).ok());
    let mut share = |name: &str, value: Option<i32>| {
        let value = value.unwrap_or(0);
        let found = u32::try_from(value).ok().filter(|value| *value <= 100);
        if found.is_none() {
            reader.fault(&at(name), &format!("{value} is not a percentage"), "write 0 to 100");
        }
        found.unwrap_or(0)
    };
    let max_ejection = share("maxEjectionPercent", given.max_ejection_percent);
    let min_health_percent = share("minHealthPercent", given.min_health_percent);
    let mut time = |name: &str, text: &Option<String>, default: u64| {
        reader.positive(&at(name), text.as_ref()).unwrap_or(Duration::from_secs(default))
    };
    let interval = time("interval", &given.interval, 10);
    let base_ejection = time("baseEjectionTime", &given.base_ejection_time, 30);
    Outlier {
        consecutive_5xx: given.consecutive_5xx_errors.or(older).unwrap_or(5),
        consecutive_gateway: given.consecutive_gateway_errors.unwrap_or(0),
        consecutive_local: given.consecutive_local_origin_failures.unwrap_or(5),
        split_local: given.split_external_local_origin_errors.unwrap_or(false),
        interval,
        base_ejection,
        // 0 is «unset» to Istio, and its default is Envoy's.
        max_ejection_percent: if max_ejection == 0 { 10 } else { max_ejection },
        min_health_percent,
    }
}

fn budget(reader: &mut Reader<'_>, field: &str, given: &ApiRetryBudget) -> RetryBudget {
    let percent = reader.percentage(&format!("{field}.percent"), given.percent);
    RetryBudget {
        // Istio's defaults: 20 percent, and three at least.
        percent: percent.unwrap_or(Millionths(200_000)),
        min_retries: given.min_retry_concurrency.unwrap_or(3),
    }
}

/// A text that must not be empty.
fn text(text: Option<&String>) -> Option<Arc<str>> {
    text.filter(|text| !text.is_empty()).map(|text| text.as_str().into())
}
