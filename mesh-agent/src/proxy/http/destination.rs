//! What all workers know together of a destination that a workload calls: how much is under way, which endpoints fail.
//! Owns: the table of destinations. Its lock is taken when a worker meets a destination or its endpoints change, never
//! for a request. Called by `proxy::http::cluster`.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::cluster::Key;
use crate::decide::circuit::Circuit;
use crate::decide::outlier::{DestinationState, HostState};
use crate::model::traffic::{Outlier, TrafficPolicy};
use crate::model::{Endpoint, ServiceId, WorkloadId};

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
    known: Mutex<Known>,
}

/// The endpoints, and the rules by which they are ejected.
#[derive(Default)]
struct Known {
    hosts: HashMap<SocketAddr, Arc<Host>>,
    rules: Option<Outlier>,
}

/// One endpoint.
#[derive(Default)]
pub struct Host {
    pub state: HostState,
    /// When it joined the endpoints; none where it was among the first, whose age nobody knows.
    pub since_ms: Option<u64>,
    /// Requests and relayed connections under way, of all workers.
    pub active: AtomicU32,
}

/// An endpoint as one workload sees it, for people to see.
pub struct Seen {
    pub source: WorkloadId,
    pub service: ServiceId,
    pub port: u16,
    pub subset: Option<Arc<str>>,
    pub endpoint: SocketAddr,
    pub active: u32,
    /// When its ejection ends, by [`crate::proxy::worker::Shared::now_ms`]; none while it is in use.
    pub ejected_until_ms: Option<u64>,
}

impl Destinations {
    pub(super) fn of(&self, key: &Key) -> Arc<Destination> {
        Arc::clone(self.0.lock().entry(key.clone()).or_default())
    }

    /// The endpoints that have something under way or are ejected.
    pub fn seen(&self) -> Vec<Seen> {
        let all: Vec<_> = self.0.lock().iter().map(|(key, known)| (key.clone(), Arc::clone(known))).collect();
        let mut seen = Vec::new();
        for (key, destination) in all {
            let known = destination.known.lock();
            for (endpoint, host) in &known.hosts {
                let active = host.active.load(Ordering::Relaxed);
                let ejected_until_ms = known.rules.as_ref().and_then(|rules| host.state.ejected_until(rules));
                if active > 0 || ejected_until_ms.is_some() {
                    let Key { source, service, port, subset, .. } = key.clone();
                    let endpoint = *endpoint;
                    seen.push(Seen { source, service, port, subset, endpoint, active, ejected_until_ms });
                }
            }
        }
        seen
    }

    /// Forgets destinations that no worker holds.
    pub fn sweep(&self) {
        self.0.lock().retain(|_, destination| Arc::strong_count(destination) > 1);
    }
}

impl Destination {
    /// The state of these endpoints, in their order. Those that are no longer among them are let go.
    pub(super) fn hosts(&self, endpoints: &[Endpoint], policy: &TrafficPolicy, now: u64) -> Vec<Arc<Host>> {
        let mut whole = self.known.lock();
        whole.rules.clone_from(&policy.outlier);
        let known = &mut whole.hosts;
        let first = known.is_empty();
        let mut next = HashMap::with_capacity(endpoints.len());
        let of = |endpoint: &Endpoint, known: &mut HashMap<SocketAddr, Arc<Host>>| {
            // At the start nobody is new: a slow start of all would be none, and those that come later no newer.
            let since_ms = if first { None } else { Some(now) };
            known.remove(&endpoint.address).unwrap_or_else(|| Arc::new(Host { since_ms, ..Host::default() }))
        };
        let mut all = Vec::with_capacity(endpoints.len());
        for endpoint in endpoints {
            let host = match next.get(&endpoint.address) {
                Some(host) => Arc::clone(host),
                None => of(endpoint, known),
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
