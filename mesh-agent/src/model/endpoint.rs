//! One address that a Service's traffic may go to.

use std::net::SocketAddr;
use std::sync::Arc;

use super::WorkloadId;

/// An endpoint of one Service port (EndpointSlice `endpoints[]` crossed with `ports[]`).
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Endpoint {
    /// Address and target port.
    pub address: SocketAddr,
    /// The pod behind it, if the world knows one.
    pub workload: Option<WorkloadId>,
    /// `conditions.ready`, absent = true.
    pub ready: bool,
    /// `nodeName`; empty if unknown.
    pub node: Arc<str>,
    /// Its share beside the other endpoints of the list; at least 1. Kubernetes knows no other (WorkloadEntry `weight`).
    pub weight: u32,
}

impl Endpoint {
    /// An address of which nothing is known.
    pub fn outside(address: SocketAddr) -> Self {
        Self { address, workload: None, ready: true, node: "".into(), weight: 1 }
    }
}
