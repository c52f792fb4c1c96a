//! A Service's port, or a subset of it, as one workload of this worker calls it: endpoints, policy, and how busy they
//! are. Owns: picking one. Never: connects. Called by `proxy::http::pipeline`.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Http;
use crate::decide::{Destination, Snapshot as _, balance};
use crate::model::traffic::{LoadBalance, TrafficPolicy};
use crate::model::{AppProtocol, Balance, Endpoint, Reason, Service, ServiceId, Workload, WorkloadId};
use crate::proxy::worker::Worker;
use crate::world::World;

/// What a cluster is found by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    source: WorkloadId,
    service: ServiceId,
    port: u16,
    subset: Option<Arc<str>>,
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
    loads: Vec<Rc<Cell<u32>>>,
    turn: Arc<AtomicU64>,
    version: Cell<u64>,
}

/// Requests under way of this worker, by endpoint.
#[derive(Default)]
pub struct Loads(RefCell<HashMap<SocketAddr, Rc<Cell<u32>>>>);

/// Counts one request until it drops.
pub struct Load(Rc<Cell<u32>>);

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
        self.0.set(self.0.get().saturating_sub(1));
    }
}

/// Which part of a Service is meant.
pub struct Wanted<'a> {
    pub service: &'a Arc<Service>,
    pub port: u16,
    pub subset: Option<&'a Arc<str>>,
    /// An address of the family that the client dialled.
    pub family: IpAddr,
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
            v4: wanted.family.is_ipv4(),
        };
        let known = self.clusters.borrow().get(&key).cloned();
        if let Some(known) = &known
            && known.version.get() == world.version
        {
            return Ok(Rc::clone(known));
        }
        let service_port = wanted.service.port(wanted.port).ok_or(Reason::NoSuchPort)?;
        let to = Destination {
            service: wanted.service,
            port: wanted.port,
            subset: wanted.subset.map(|subset| &**subset),
        };
        let policy = world.traffic(source, &to).map_err(|_missing| Reason::NoSubset)?;
        let endpoints = world.endpoints(source, &to, wanted.family).map_err(|_missing| Reason::NoSubset)?;
        if let Some(known) = known
            && Arc::ptr_eq(&known.endpoints, &endpoints)
            && known.policy == policy
            && known.service.as_ref().is_some_and(|service| Arc::ptr_eq(service, wanted.service))
        {
            known.version.set(world.version);
            return Ok(known);
        }
        let cluster = Rc::new(Cluster {
            service: Some(Arc::clone(wanted.service)),
            port: wanted.port,
            protocol: service_port.protocol,
            loads: endpoints.iter().map(|endpoint| self.loads.of(endpoint.address)).collect(),
            endpoints,
            policy,
            turn: worker.turn(&wanted.service.id, wanted.port),
            version: Cell::new(world.version),
        });
        self.clusters.borrow_mut().insert(key, Rc::clone(&cluster));
        Ok(cluster)
    }

    /// The one endpoint that was dialled.
    pub fn single(&self, endpoint: Endpoint, version: u64) -> Rc<Cluster> {
        Rc::new(Cluster {
            service: None,
            port: endpoint.address.port(),
            protocol: AppProtocol::Auto,
            loads: vec![self.loads.of(endpoint.address)],
            endpoints: Arc::new([endpoint]),
            policy: Arc::default(),
            turn: Arc::default(),
            version: Cell::new(version),
        })
    }
}

impl Cluster {
    /// The next endpoint to try; none when all have been, or none is ready.
    pub fn pick(&self, worker: &Worker, tried: &[usize]) -> Option<usize> {
        let simple = match (&self.policy.balance, &self.service) {
            (LoadBalance::RoundRobin, _) => Balance::RoundRobin,
            (_, Some(service)) if self.policy.origin.is_none() => service.balance,
            _ => Balance::LeastRequest,
        };
        match simple {
            Balance::RoundRobin => {
                balance::round_robin(&self.endpoints, self.turn.fetch_add(1, Ordering::Relaxed), tried)
            }
            Balance::LeastRequest => {
                let load = |index: usize| self.loads.get(index).map_or(0, |load| u64::from(load.get()));
                balance::least_request(&self.endpoints, worker.random(), tried, load)
            }
        }
    }

    /// Counts a request to an endpoint.
    pub fn load(&self, index: usize) -> Option<Load> {
        let load = self.loads.get(index)?;
        load.set(load.get() + 1);
        Some(Load(Rc::clone(load)))
    }
}
