//! What all workers know together of a destination that a workload calls: how much is under way, which endpoints fail.
//! Owns: the table of destinations. Its lock is taken when a worker meets a destination or its endpoints change, never
//! for a request. Called by `proxy::http::cluster`.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::cluster::Key;
use crate::decide::circuit::Circuit;
use crate::decide::outlier::{DestinationState, HostState};
use crate::model::Endpoint;
use crate::model::traffic::TrafficPolicy;

/// Every destination of the node's workloads.
#[derive(Default)]
pub struct Destinations(Mutex<HashMap<Key, Arc<Destination>>>);

/// See the module's header.
#[derive(Default)]
pub struct Destination {
    pub circuit: Arc<Circuit>,
    pub outlier: DestinationState,
    /// A connection has become idle or has gone: whoever waits for one may look again.
    pub freed: Notify,
    hosts: Mutex<HashMap<SocketAddr, Arc<Host>>>,
}

/// One endpoint.
#[derive(Default)]
pub struct Host {
    pub state: HostState,
    /// When it was first seen among the endpoints.
    pub since_ms: u64,
}

impl Destinations {
    pub(super) fn of(&self, key: &Key) -> Arc<Destination> {
        Arc::clone(self.0.lock().entry(key.clone()).or_default())
    }

    /// Forgets destinations that no worker holds.
    pub fn sweep(&self) {
        self.0.lock().retain(|_, destination| Arc::strong_count(destination) > 1);
    }
}

impl Destination {
    /// The state of these endpoints, in their order. Those that are no longer among them are let go.
    pub(super) fn hosts(&self, endpoints: &[Endpoint], policy: &TrafficPolicy, now: u64) -> Vec<Arc<Host>> {
        let mut known = self.hosts.lock();
        let first = known.is_empty();
        let mut next = HashMap::with_capacity(endpoints.len());
        let of = |endpoint: &Endpoint, known: &mut HashMap<SocketAddr, Arc<Host>>| {
            // At the start nobody is new: a slow start of all would be none.
            let since_ms = if first { 0 } else { now };
            known.remove(&endpoint.address).unwrap_or_else(|| Arc::new(Host { since_ms, ..Host::default() }))
        };
        let mut all = Vec::with_capacity(endpoints.len());
        for endpoint in endpoints {
            let host = match next.get(&endpoint.address) {
                Some(host) => Arc::clone(host),
                None => of(endpoint, &mut known),
            };
            next.insert(endpoint.address, Arc::clone(&host));
            all.push(host);
        }
        for gone in known.values() {
            self.outlier.forget(&gone.state);
        }
        if policy.outlier.is_none() {
            all.iter().for_each(|host| self.outlier.forget(&host.state));
        }
        *known = next;
        all
    }
}
