//! An endpoint as a client's connection reaches it: transport, pooled connections, what is told about its requests.
//! Owns: opening a connection to it. Never: picks it. Called by `proxy::http::attempt`.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use http::HeaderValue;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::downstream::{Downstream, Side};
use super::io::HttpIo;
use super::pool::{Key, Lease, Opened, Slot, Source, Via};
use super::{client, headers};
use crate::decide::Snapshot as _;
use crate::decide::outbound::{Transport, secured, transport};
use crate::model::traffic::{ClientTls, PoolLimits};
use crate::model::{Reason, Service, Workload};
use crate::observe::{ConnMeta, DecisionId, Direction, Party, Path, RequestHandles};
use crate::proxy::originate::{Inside, Origination};
use crate::proxy::upstream;
use crate::proxy::worker::Worker;
use crate::tunnel::Failure;
use crate::world::World;

/// See the module's header.
pub struct Target {
    pub endpoint: SocketAddr,
    pub transport: Transport,
    pub service: Option<Arc<Service>>,
    /// What the destination's policy says of the transport.
    policy: ClientTls,
    /// TLS that the agent speaks inside.
    pub tls: Option<Origination>,
    /// For metrics and logs.
    pub meta: ConnMeta,
    pub handles: RequestHandles,
    /// What the application may read about its client; none where another agent, or nobody, vouches for it.
    pub client_cert: Option<HeaderValue>,
    slots: [Rc<Slot>; 2],
}

/// What a target is of.
#[derive(Clone, Copy)]
pub struct Of<'a> {
    pub service: Option<&'a Arc<Service>>,
    pub tls: &'a ClientTls,
    /// The host that the request names.
    pub asked: Option<&'a str>,
}

/// How a request's connection begins.
pub struct How<'a> {
    pub http2: bool,
    pub limits: &'a PoolLimits,
    /// One that has been made already.
    pub first: Option<TcpStream>,
}

impl Of<'_> {
    fn origination(&self, asked: Option<&str>) -> Option<Origination> {
        let ClientTls::Originate(rule) = self.tls else { return None };
        // Without a Service there is no DestinationRule.
        let host = self.service.map_or("*", |service| &*service.hostname);
        Some(Origination::new(rule, host, asked))
    }

    /// Whether a target that is known is the one that is meant.
    pub fn means(&self, target: &Target) -> bool {
        target.service.as_ref().map(Arc::as_ptr) == self.service.map(Arc::as_ptr)
            && target.policy == *self.tls
            && target.tls == self.origination(self.asked)
    }
}

impl Target {
    /// An endpoint that a pod of this node calls.
    pub fn outbound(
        down: &Downstream,
        world: &World,
        endpoint: SocketAddr,
        of: &Of<'_>,
    ) -> Result<Rc<Self>, Reason> {
        let Of { service, tls: policy, asked } = *of;
        let Side::Outbound { source, .. } = &down.side else { return Err(Reason::ConnectFailed) };
        let worker = &down.worker;
        let transport = secured(transport(world, &worker.shared.node, endpoint), policy)?;
        let tls = of.origination(asked);
        let owner = world.workload_at(endpoint.ip());
        let (path, destination, via) = match &transport {
            Transport::Local(workload) => (Path::Local, Some(workload), Via::Leg(workload.id.clone())),
            Transport::Hbone(workload) => {
                (Path::Hbone, Some(workload), Via::Hbone(workload.identity.clone(), workload.id.clone()))
            }
            Transport::Plain if service.is_some() || owner.is_some() => (Path::Plain, None, Via::Plain),
            Transport::Plain => (Path::Passthrough, None, Via::Plain),
        };
        let from = upstream::Origin { source, client: down.client }.address(endpoint);
        let from = from.ok_or(Reason::ConnectFailed)?;
        let meta = ConnMeta {
            direction: if path == Path::Local { Direction::Local } else { Direction::Outbound },
            path,
            source: Party {
                identity: Some(source.identity.clone()),
                workload: Some(Arc::clone(source)),
                address: down.client,
            },
            destination: Party {
                identity: destination.map(|workload| workload.identity.clone()),
                workload: destination.or(owner).map(Arc::clone),
                address: endpoint,
            },
            hbone_address: (path == Path::Hbone)
                .then(|| SocketAddr::new(endpoint.ip(), mesh_common::PORT_HBONE)),
            service: service.map(Arc::clone),
            rule: None,
            decision_id: DecisionId::new(),
        };
        let client_cert = match &transport {
            Transport::Local(workload) => headers::client_cert(&workload.identity, &source.identity),
            Transport::Hbone(_) | Transport::Plain => None,
        };
        let key = |http2| Key {
            source: Source::Pod(source.id.clone()),
            from,
            endpoint,
            via: via.clone(),
            tls: tls.clone(),
            http2,
        };
        let slots = [worker.http.pool.slot(&key(false)), worker.http.pool.slot(&key(true))];
        let handles = RequestHandles::new(worker.shared.connections.metrics(), &meta);
        Ok(Rc::new(Self {
            endpoint,
            transport,
            service: service.map(Arc::clone),
            policy: policy.clone(),
            tls,
            meta,
            handles,
            client_cert,
            slots,
        }))
    }

    /// The application in the pod that a client of another node, or one outside the mesh, has reached.
    pub fn inbound(down: &Downstream, workload: &Arc<Workload>) -> Option<Rc<Self>> {
        let Side::Inbound { peer, destination } = &down.side else { return None };
        let meta = down.conn.meta();
        let key = |http2| Key {
            source: Source::Peer(peer.clone()),
            from: down.client.ip(),
            endpoint: *destination,
            via: Via::Leg(workload.id.clone()),
            tls: None,
            http2,
        };
        let pool = &down.worker.http.pool;
        let handles = RequestHandles::new(down.worker.shared.connections.metrics(), &meta);
        Some(Rc::new(Self {
            endpoint: *destination,
            transport: Transport::Local(Arc::clone(workload)),
            service: None,
            policy: ClientTls::Mesh,
            tls: None,
            client_cert: peer.as_ref().and_then(|peer| headers::client_cert(&workload.identity, peer)),
            meta,
            handles,
            slots: [pool.slot(&key(false)), pool.slot(&key(true))],
        }))
    }

    /// Whether its pooled connections are not to be used any more.
    pub fn is_retired(&self) -> bool {
        self.slots.iter().any(|slot| slot.is_closed())
    }

    /// The pooled connections of one version of HTTP.
    pub fn slot(&self, http2: bool) -> &Rc<Slot> {
        &self.slots[usize::from(http2)]
    }

    /// Opens a connection, whatever is spoken on it.
    pub async fn connect(&self, down: &Downstream, limit: std::time::Duration) -> Result<HttpIo, Failure> {
        match timeout(limit, self.open(down, limit)).await {
            Ok(opened) => opened,
            Err(_elapsed) => Err(Failure::new(
                Reason::ConnectTimeout,
                format!("no connection to {} in time", self.endpoint),
            )),
        }
    }

    async fn open(&self, down: &Downstream, limit: std::time::Duration) -> Result<HttpIo, Failure> {
        let worker: &Worker = &down.worker;
        let Side::Outbound { source, .. } = &down.side else {
            let stream = upstream::leg(worker, &down.pod, down.client.ip(), self.endpoint, None).await?;
            return Ok(HttpIo::tcp(stream));
        };
        let limit = Some(limit);
        let origin = upstream::Origin { source, client: down.client };
        match &self.transport {
            Transport::Local(workload) => {
                upstream::local(worker, &origin, workload, self.endpoint, limit).await.map(HttpIo::tcp)
            }
            // The destination's agent refuses too; a stolen key answers from elsewhere.
            Transport::Hbone(workload) if worker.shared.store.load().denied(&workload.identity) => {
                Err(Failure::new(Reason::IdentityDenied, "the destination's identity is on the deny list"))
            }
            Transport::Hbone(workload) => {
                let headers = upstream::headers(down.client, self.service.as_deref(), self.meta.decision_id);
                let way = upstream::Way { endpoint: self.endpoint, workload, headers };
                upstream::hbone(worker, &down.pod, &origin, way).await.map(HttpIo::tunnel)
            }
            Transport::Plain => {
                upstream::plain(worker, &down.pod, self.endpoint, limit).await.map(HttpIo::tcp)
            }
        }
    }

    /// Begins HTTP on a connection that has carried none.
    pub async fn dial(&self, down: &Downstream, how: How<'_>, opened: Opened) -> Result<Lease, Failure> {
        let How { http2, limits, first } = how;
        let waited = first.is_some();
        let mut io = match first {
            Some(stream) => HttpIo::tcp(stream),
            None => self.connect(down, limits.connect_timeout).await?,
        };
        if let Some(tls) = &self.tls {
            let inside = if http2 { Inside::Http2 } else { Inside::Http1 };
            io = down.worker.shared.originator.begin(io, tls, inside).await?;
        }
        let broke = |error: hyper::Error| Failure::new(Reason::UpstreamReset, error.to_string());
        let slot = self.slot(http2);
        if http2 {
            let sender = client::http2(io, limits.max_concurrent_streams).await.map_err(broke)?;
            return Ok(slot.begin_http2(sender, opened, waited));
        }
        client::http1(io, opened).await.map_err(broke).map(|conn| slot.begin_http1(conn, waited))
    }
}
