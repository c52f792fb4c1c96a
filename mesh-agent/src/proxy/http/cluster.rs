//! A Service's port, or a subset of it, as one workload of this worker calls it: endpoints, policy, and how they stand.
//! Owns: picking one, and remembering how it did. Never: connects. Called by `proxy::http::{pipeline, forward}`.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::Http;
use super::destination::{Destination, Host};
use crate::decide::balance::{Draw, Roster, Standing};
use crate::decide::outlier::{self, Detected};
use crate::decide::{Destination as Named, Snapshot as _};
use crate::model::traffic::TrafficPolicy;
use crate::model::{AppProtocol, Endpoint, Reason, Service, ServiceId, Workload, WorkloadId};
use crate::proxy::worker::Worker;
use crate::world::World;

/// How long a worker remembers what it calls: as long as an ejection may last.
const REMEMBERED: Duration = Duration::from_secs(600);

/// What a cluster is found by. Limits and ejections are each client's own, as if it had a proxy of its own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    pub(super) source: WorkloadId,
    pub(super) service: ServiceId,
    pub(super) port: u16,
    pub(super) subset: Option<Arc<str>>,
    v4: bool,
}

/// See the module's header.
pub struct Cluster {
    /// None where an address was dialled that belongs to no Service.
    pub service: Option<Arc<Service>>,
    pub port: u16,
    pub protocol: AppProtocol,
    pub endpoints: Arc<[Endpoint]>,
    pub policy: Arc<TrafficPolicy>,
    pub destination: Arc<Destination>,
    roster: Roster,
    hosts: Vec<Arc<Host>>,
    loads: Vec<Rc<Cell<u32>>>,
    turn: Arc<AtomicU64>,
    version: Cell<u64>,
    used: Cell<Instant>,
}

/// Requests under way of this worker, by endpoint.
#[derive(Default)]
pub struct Loads(RefCell<HashMap<SocketAddr, Rc<Cell<u32>>>>);

/// Counts one request until it drops: where this worker balances, and for people to see.
pub struct Load {
    own: Rc<Cell<u32>>,
    host: Arc<Host>,
}

impl Loads {
    fn of(&self, endpoint: SocketAddr) -> Rc<Cell<u32>> {
        Rc::clone(self.0.borrow_mut().entry(endpoint).or_default())
    }

    pub(super) fn sweep(&self) {
        self.0.borrow_mut().retain(|_, load| Rc::strong_count(load) > 1);
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.own.set(self.own.get().saturating_sub(1));
        self.host.active.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Which part of a Service is meant.
pub struct Wanted<'a> {
    pub service: &'a Arc<Service>,
    pub port: u16,
    pub subset: Option<&'a Arc<str>>,
    /// What the client dialled: endpoints are of its family, or, where nobody lists any, it is the endpoint.
    pub dialled: SocketAddr,
}

impl Http {
    /// The cluster as `world` has it; found again until something about it changes.
    pub fn cluster(
        &self,
        worker: &Worker,
        world: &World,
        source: &Workload,
        wanted: &Wanted<'_>,
    ) -> Result<Rc<Cluster>, Reason> {
        let key = Key {
            source: source.id.clone(),
            service: wanted.service.id.clone(),
            port: wanted.port,
            subset: wanted.subset.cloned(),
            v4: wanted.dialled.is_ipv4(),
        };
        if world.goes_as_dialled(wanted.service) {
            return self.as_dialled(worker, world, source, (key, wanted));
        }
        let known = self.clusters.borrow().get(&key).cloned();
        if let Some(known) = &known {
            known.used.set(Instant::now());
            if known.version.get() == world.version {
                return Ok(Rc::clone(known));
            }
        }
        let service_port = wanted.service.port(wanted.port).ok_or(Reason::NoSuchPort)?;
        let to = Named {
            service: wanted.service,
            port: wanted.port,
            subset: wanted.subset.map(|subset| &**subset),
        };
        let policy = world.traffic(source, &to).map_err(|_missing| Reason::NoSubset)?;
        let endpoints =
            world.endpoints(source, &to, wanted.dialled.ip()).map_err(|_missing| Reason::NoSubset)?;
        if let Some(known) = known
            && (Arc::ptr_eq(&known.endpoints, &endpoints) || *known.endpoints == *endpoints)
            && (Arc::ptr_eq(&known.policy, &policy) || *known.policy == *policy)
            && known.service.as_ref().is_some_and(|service| Arc::ptr_eq(service, wanted.service))
            && known.roster.is_current(world, source, &endpoints, &policy)
        {
            known.version.set(world.version);
            return Ok(known);
        }
        let destination = worker.shared.destinations.of(&key);
        let cluster = Rc::new(Cluster {
            service: Some(Arc::clone(wanted.service)),
            port: wanted.port,
            protocol: service_port.protocol,
            loads: endpoints.iter().map(|endpoint| self.loads.of(endpoint.address)).collect(),
            hosts: destination.hosts(&endpoints, &policy, worker.shared.now_ms()),
            roster: Roster::new(world, source, &endpoints, &policy),
            destination,
            endpoints,
            policy,
            turn: worker.turn(&wanted.service.id, wanted.port),
            version: Cell::new(world.version),
            used: Cell::new(Instant::now()),
        });
        self.clusters.borrow_mut().insert(key, Rc::clone(&cluster));
        Ok(cluster)
    }

    /// A Service whose one endpoint is what the client dialled. Not kept: there may be as many as there are addresses.
    /// Its limits are those of all of them together. Another Service's address is no place that anybody meant.
    fn as_dialled(
        &self,
        worker: &Worker,
        world: &World,
        source: &Workload,
        (key, wanted): (Key, &Wanted<'_>),
    ) -> Result<Rc<Cluster>, Reason> {
        let protocol = wanted.service.port(wanted.port).ok_or(Reason::NoSuchPort)?.protocol;
        if world.service_at(wanted.dialled.ip()).is_some_and(|other| other.id != wanted.service.id) {
            return Err(Reason::NoEndpoint);
        }
        let subset = wanted.subset.map(|subset| &**subset);
        let to = Named { service: wanted.service, port: wanted.port, subset };
        let policy = world.traffic(source, &to).map_err(|_missing| Reason::NoSubset)?;
        let endpoint = Endpoint::outside(wanted.dialled);
        let endpoints: Arc<[Endpoint]> = Arc::new([endpoint]);
        Ok(Rc::new(Cluster {
            service: Some(Arc::clone(wanted.service)),
            port: wanted.port,
            protocol,
            loads: vec![self.loads.of(wanted.dialled)],
            hosts: vec![Arc::default()],
            roster: Roster::new(world, source, &endpoints, &policy),
            destination: worker.shared.destinations.of(&key),
            endpoints,
            policy,
            turn: Arc::default(),
            version: Cell::new(world.version),
            used: Cell::new(Instant::now()),
        }))
    }

    /// The one endpoint that was dialled.
    pub fn single(&self, world: &World, source: &Workload, endpoint: Endpoint) -> Rc<Cluster> {
        let endpoints: Arc<[Endpoint]> = Arc::new([endpoint]);
        let policy: Arc<TrafficPolicy> = Arc::default();
        Rc::new(Cluster {
            service: None,
            port: endpoints[0].address.port(),
            protocol: AppProtocol::Auto,
            loads: vec![self.loads.of(endpoints[0].address)],
            hosts: vec![Arc::default()],
            roster: Roster::new(world, source, &endpoints, &policy),
            destination: Arc::default(),
            endpoints,
            policy,
            turn: Arc::default(),
            version: Cell::new(world.version),
            used: Cell::new(Instant::now()),
        })
    }

    pub(super) fn sweep_clusters(&self) {
        self.clusters
            .borrow_mut()
            .retain(|_, cluster| Rc::strong_count(cluster) > 1 || cluster.used.get().elapsed() < REMEMBERED);
    }
}

/// How a cluster's endpoints stand now.
struct Now<'a> {
    cluster: &'a Cluster,
    ms: u64,
}

impl Standing for Now<'_> {
    fn load(&self, endpoint: usize) -> u32 {
        self.cluster.loads.get(endpoint).map_or(0, |load| load.get())
    }

    fn is_ejected(&self, endpoint: usize) -> bool {
        self.cluster.hosts.get(endpoint).is_some_and(|host| host.state.is_ejected())
    }

    fn any_ejected(&self) -> bool {
        self.cluster.destination.outlier.ejected() > 0
    }

    fn age_ms(&self, endpoint: usize) -> u64 {
        let since = self.cluster.hosts.get(endpoint).and_then(|host| host.since_ms);
        since.map_or(u64::MAX, |since| self.ms.saturating_sub(since))
    }
}

impl Cluster {
    /// The next endpoint to try; none when there is none to use.
    pub fn pick(&self, worker: &Worker, hash: Option<u64>, tried: &[usize]) -> Option<usize> {
        let ms = worker.shared.now_ms();
        if let Some(rules) = &self.policy.outlier
            && self.destination.outlier.is_due(rules, ms)
        {
            self.destination.outlier.sweep(rules, self.hosts.iter().map(|host| &host.state), ms);
        }
        let draw = Draw {
            random: worker.random(),
            turn: self.turn.fetch_add(1, Ordering::Relaxed),
            hash,
            tried,
            again: !tried.is_empty(),
        };
        self.roster.pick(&Now { cluster: self, ms }, &draw)
    }

    /// Whether there is an endpoint at all, ejected or not.
    pub fn is_empty(&self) -> bool {
        self.roster.is_empty()
    }

    /// Counts a request to an endpoint.
    pub fn load(&self, index: usize) -> Option<Load> {
        let (own, host) = (Rc::clone(self.loads.get(index)?), Arc::clone(self.hosts.get(index)?));
        own.set(own.get() + 1);
        host.active.fetch_add(1, Ordering::Relaxed);
        Some(Load { own, host })
    }

    /// Remembers how an endpoint did.
    pub fn result(&self, worker: &Worker, index: usize, outcome: outlier::Outcome) {
        let (Some(rules), Some(host)) = (&self.policy.outlier, self.hosts.get(index)) else { return };
        let hosts = u32::try_from(self.roster.len()).unwrap_or(u32::MAX);
        let ms = worker.shared.now_ms();
        let detected = self.destination.outlier.result(
            &host.state,
            outcome,
            &outlier::Circumstances { hosts, rules, now: ms },
        );
        if let Some(Detected::Ejected(rule)) = detected {
            let endpoint = self.endpoints.get(index).map(|endpoint| endpoint.address);
            tracing::info!(service = ?self.service.as_ref().map(|service| &service.hostname), ?endpoint, ?rule,
                "an endpoint is ejected: it answers with errors");
        }
    }
}
