//! A Kubernetes Service as the mesh balances it.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::Endpoint;

/// `NAMESPACE/NAME` of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
pub struct ServiceId(pub Arc<str>);

impl fmt::Display for ServiceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What an application speaks on a port: `appProtocol`, else the port name's prefix, else sniffed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AppProtocol {
    /// Unsaid: the first client bytes decide, and a server that speaks first is not stalled.
    Auto,
    Tcp,
    Tls,
    Http,
    Http2,
    Grpc,
}

/// How a Service's connections are spread over its endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Balance {
    RoundRobin,
    /// Power of two choices over live connections; Istio's default.
    LeastRequest,
}

/// One `spec.ports[]` entry with the endpoints that serve it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ServicePort {
    pub name: Arc<str>,
    pub port: u16,
    pub protocol: AppProtocol,
    /// Every endpoint, ready or not; balancing looks at the ready ones.
    pub endpoints: Arc<[Endpoint]>,
    /// Those of each family, IPv4 first.
    #[serde(skip)]
    families: [Arc<[Endpoint]>; 2],
}

impl ServicePort {
    pub fn new(name: Arc<str>, port: u16, protocol: AppProtocol, endpoints: Arc<[Endpoint]>) -> Self {
        let v4 = endpoints.iter().filter(|endpoint| endpoint.address.is_ipv4()).count();
        let family = |wanted: bool| -> Arc<[Endpoint]> {
            endpoints.iter().filter(|endpoint| endpoint.address.is_ipv4() == wanted).cloned().collect()
        };
        // A Service of one family, the usual case, shares its list.
        let families = if v4 == 0 || v4 == endpoints.len() {
            [Arc::clone(&endpoints), Arc::clone(&endpoints)]
        } else {
            [family(true), family(false)]
        };
        Self { name, port, protocol, endpoints, families }
    }

    /// The endpoints for a connection to this address of the Service: those of its family, as kube-proxy does, for
    /// the application may listen in one family only. Where there are none of it, the others have to do.
    pub fn endpoints_for(&self, vip: IpAddr) -> &Arc<[Endpoint]> {
        &self.families[usize::from(!vip.is_ipv4())]
    }
}

/// A Service. `vips` is empty for a headless one.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Service {
    pub id: ServiceId,
    pub name: Arc<str>,
    pub namespace: Arc<str>,
    /// `NAME.NAMESPACE.svc.CLUSTER_DOMAIN`.
    pub hostname: Arc<str>,
    pub vips: Vec<IpAddr>,
    pub ports: Vec<ServicePort>,
    pub balance: Balance,
}

impl Service {
    pub fn port(&self, port: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|p| p.port == port)
    }
}
