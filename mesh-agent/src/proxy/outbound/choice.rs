//! The endpoint of one connection: what it is chosen from, and how long the connection may take, rest and last. Owns:
//! the cluster's use by connections that are relayed as bytes. Never: connects. Called by `proxy::outbound`.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::{Accepted, IDLE_TIMEOUT};
use crate::decide;
use crate::decide::balance::hash_key;
use crate::decide::circuit::Guard;
use crate::decide::outbound::TcpPlan;
use crate::decide::outlier::Outcome;
use crate::model::traffic::{ClientTls, LoadBalance};
use crate::model::{Endpoint, Reason};
use crate::proxy::http::cluster::{self, Cluster};
use crate::proxy::originate::Origination;
use crate::proxy::upstream;
use crate::proxy::worker::Worker;
use crate::world::World;

/// What one connection's endpoint is chosen from: a Service's by its policy, or the one address that was dialled.
pub(super) struct Choice {
    pub(super) cluster: Option<Rc<Cluster>>,
    pub(super) endpoints: Arc<[Endpoint]>,
    hash: Option<u64>,
    pub(super) place: Option<Guard>,
}

impl Choice {
    pub(super) fn of(
        worker: &Worker,
        accepted: &Accepted,
        plan: &TcpPlan,
        world: &World,
    ) -> Result<Self, Reason> {
        let Some(service) = &plan.service else {
            return Ok(Self {
                cluster: None,
                endpoints: Arc::clone(&plan.endpoints),
                hash: None,
                place: None,
            });
        };
        let dialled = decide::outbound::canonical(accepted.original);
        let wanted = cluster::Wanted { service, port: plan.port, subset: plan.subset.as_ref(), dialled };
        let cluster = worker.http.cluster(worker, world, &accepted.source, &wanted)?;
        let circuit = &cluster.destination.circuit;
        let place = circuit.try_connection(&cluster.policy.pool).map_err(|_full| Reason::LimitReached)?;
        let hash = match &cluster.policy.balance {
            LoadBalance::Hash { key, .. } => hash_key::of_connection(key, accepted.client.ip()),
            _ => None,
        };
        let endpoints = Arc::clone(&cluster.endpoints);
        Ok(Self { cluster: Some(cluster), endpoints, hash, place: Some(place) })
    }

    /// The next endpoint; none when all that may be used have been tried.
    pub(super) fn pick(&self, worker: &Worker, tried: &[usize]) -> Option<usize> {
        let index = match &self.cluster {
            Some(cluster) => cluster.pick(worker, self.hash, tried)?,
            None => self.endpoints.iter().position(|endpoint| endpoint.ready)?,
        };
        (!tried.contains(&index)).then_some(index)
    }

    /// Remembers how an endpoint did. Policy's refusal says nothing of it.
    pub(super) fn remember(&self, worker: &Worker, index: usize, failed: Option<Reason>) {
        let Some(cluster) = &self.cluster else { return };
        let outcome = match failed {
            None => Outcome::Connected,
            Some(Reason::ConnectTimeout) => Outcome::TimedOut,
            Some(reason) if upstream::worth_another_endpoint(reason) => Outcome::ConnectFailed,
            Some(_) => return,
        };
        cluster.result(worker, index, outcome);
    }

    pub(super) fn tls(&self) -> &ClientTls {
        self.cluster.as_ref().map_or(&ClientTls::Mesh, |cluster| &cluster.policy.tls)
    }

    /// TLS that the agent speaks in the client's stead.
    pub(super) fn origination(&self) -> Option<Origination> {
        let ClientTls::Originate(rule) = self.tls() else { return None };
        let service = self.cluster.as_ref()?.service.as_ref()?;
        Some(Origination::new(rule, &service.hostname, None))
    }

    /// How long a connection may take, rest and last.
    pub(super) fn times(&self) -> Times {
        let Some(cluster) = &self.cluster else { return Times::default() };
        let pool = &cluster.policy.pool;
        Times {
            // The default is that of every other connection: nobody wrote it.
            connect: cluster.policy.origin.is_some().then_some(pool.connect_timeout),
            idle: pool.tcp_idle,
            longest: pool.max_connection_duration,
        }
    }
}

/// `connectionPool.tcp` as one connection meets it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    /// None = that of the transport.
    pub(super) connect: Option<Duration>,
    pub(super) idle: Duration,
    /// None = as long as both ends want.
    pub(super) longest: Option<Duration>,
}

impl Default for Times {
    fn default() -> Self {
        Self { connect: None, idle: IDLE_TIMEOUT, longest: None }
    }
}
