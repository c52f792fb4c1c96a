//! What becomes of a request, in the order in which it becomes so. Owns: that order, and nothing that it calls.
//! Called by `proxy::http::server`, once per request.

use std::rc::Rc;
use std::sync::Arc;

use http::{Request, Response};
use hyper::body::Incoming;

use super::answer::Local;
use super::attempt::{self, Failed, Kind, Try};
use super::body::Answer;
use super::cluster::{Cluster, Wanted};
use super::downstream::{Downstream, Place, Side};
use super::exchange::{Answered, Exchange, snapshot};
use super::target::Target;
use crate::decide::Snapshot as _;
use crate::decide::inbound::{ConnFacts, HttpFacts, admit_request};
use crate::decide::outbound::{OutboundPlan, Transport, plan};
use crate::model::{Reason, Workload};
use crate::proxy::upstream;
use crate::world::World;

/// Endpoints tried for one request where no retry policy says otherwise.
const CONNECT_TRIES: usize = 3;

/// Answers one request.
pub async fn respond(down: &Rc<Downstream>, request: Request<Incoming>) -> Response<Answer> {
    let world = snapshot(down);
    let exchange = match Exchange::read(down, request) {
        Ok(exchange) => exchange,
        Err(answer) => return answer,
    };
    match &down.side {
        Side::Outbound { source, .. } => {
            let source = Arc::clone(source);
            outbound(exchange, world, &source).await
        }
        Side::Inbound { .. } => inbound(exchange, world).await,
    }
}

/// A request of a pod of this node.
async fn outbound(mut exchange: Exchange, world: Arc<World>, source: &Arc<Workload>) -> Response<Answer> {
    let place = match place(&exchange, &world, source) {
        Ok(place) => place,
        Err(reason) => return exchange.refuse(Local::of(reason)),
    };
    let cluster = Rc::clone(&place.cluster);
    match send(&mut exchange, &world, &cluster).await {
        Ok(answered) => exchange.deliver(answered, None),
        Err(reason) => exchange.refuse(Local::of(reason)),
    }
}

/// A request to a pod of this node: judged, then handed to its application.
async fn inbound(mut exchange: Exchange, world: Arc<World>) -> Response<Answer> {
    let down = Rc::clone(&exchange.down);
    let Some(workload) = world.workload(&down.pod.id) else {
        return exchange.refuse(Local::of(Reason::UnknownWorkload));
    };
    let Some(target) = down.application(workload) else {
        return exchange.refuse(Local::of(Reason::UnknownWorkload));
    };
    if let Err(reason) = judge(&exchange, &world, &target, workload) {
        exchange.record.target = Some(target);
        return exchange.refuse(Local::of(reason));
    }
    let cluster = down.worker.http.single(
        crate::model::Endpoint {
            address: target.endpoint,
            workload: Some(workload.id.clone()),
            ready: true,
            node: Arc::clone(&workload.node),
        },
        world.version,
    );
    drop(world);
    let mut answered = try_one(&mut exchange, &cluster, &target, false).await;
    if matches!(answered, Err(Failed { kind: Kind::Stale, .. })) && may_repeat(&exchange) {
        answered = try_one(&mut exchange, &cluster, &target, true).await;
    }
    match answered {
        Ok(answered) => exchange.deliver(answered, None),
        Err(failed) => exchange.refuse(Local::of(failed.reason)),
    }
}

/// The Service that was dialled decides where a request may go; an address that is no Service's, the Host.
fn place(exchange: &Exchange, world: &World, source: &Workload) -> Result<Place, Reason> {
    let down = &exchange.down;
    let Side::Outbound { original, .. } = &down.side else { return Err(Reason::NoRoute) };
    if let Some(known) = down.place(None) {
        return Ok(known);
    }
    let place = match plan(world, source, *original) {
        OutboundPlan::Refuse(reason) => return Err(reason),
        OutboundPlan::Tcp(plan) => match &plan.service {
            Some(service) => {
                let wanted =
                    Wanted { service, port: original.port(), subset: None, family: original.ip() };
                let cluster = down.worker.http.cluster(&down.worker, world, source, &wanted)?;
                let rules = world.http_rules(source, service, original.port());
                Place { service: Some(Arc::clone(service)), port: original.port(), rules, cluster }
            }
            None => {
                let Some(endpoint) = plan.endpoints.first() else { return Err(Reason::NoEndpoint) };
                let cluster = down.worker.http.single(endpoint.clone(), world.version);
                Place { service: None, port: original.port(), rules: Arc::default(), cluster }
            }
        },
        OutboundPlan::Passthrough(address) => {
            let endpoint = crate::model::Endpoint { address, workload: None, ready: true, node: "".into() };
            let cluster = down.worker.http.single(endpoint, world.version);
            Place { service: None, port: original.port(), rules: Arc::default(), cluster }
        }
    };
    down.learn_place(None, &place);
    Ok(place)
}

/// The destination's policy, on what the destination will read.
fn judge(exchange: &Exchange, world: &World, target: &Target, workload: &Workload) -> Result<(), Reason> {
    let peer = match &exchange.down.side {
        Side::Outbound { source, .. } => Some(&source.identity),
        Side::Inbound { peer, .. } => peer.as_ref(),
    };
    let conn = ConnFacts { peer, source_ip: exchange.down.client.ip(), destination: target.endpoint };
    let facts = HttpFacts { conn, request: exchange.view(target.endpoint.port()) };
    admit_request(world, workload, &facts)
}

/// Endpoint after endpoint until one answers.
async fn send(exchange: &mut Exchange, world: &Arc<World>, cluster: &Rc<Cluster>) -> Result<Answered, Reason> {
    let down = Rc::clone(&exchange.down);
    let mut tried: Vec<usize> = Vec::new();
    let mut last = Reason::NoEndpoint;
    while tried.len() < CONNECT_TRIES {
        let Some(index) = cluster.pick(&down.worker, &tried) else { break };
        tried.push(index);
        let address = cluster.endpoints[index].address;
        let target = down.target(world, address, cluster.service.as_ref()).ok_or(Reason::ConnectFailed)?;
        exchange.record.target = Some(Rc::clone(&target));
        if let Transport::Local(workload) = &target.transport {
            judge(exchange, world, &target, workload)?;
        }
        exchange.record.load = cluster.load(index);
        let mut fresh = false;
        loop {
            match try_one(exchange, cluster, &target, fresh).await {
                Ok(answered) => return Ok(answered),
                Err(Failed { kind: Kind::Stale, .. }) if !fresh && may_repeat(exchange) => fresh = true,
                Err(Failed { kind: Kind::Connect, reason, .. }) if upstream::worth_another_endpoint(reason) => {
                    last = reason;
                    break;
                }
                Err(failed) => return Err(failed.reason),
            }
        }
    }
    Err(last)
}

/// RFC 9110, 9.2.2: a request that may be sent twice without harm, and whose body can be.
fn may_repeat(exchange: &Exchange) -> bool {
    exchange.method.is_idempotent() && matches!(exchange.body, super::exchange::Source::Empty)
}

async fn try_one(
    exchange: &mut Exchange,
    cluster: &Cluster,
    target: &Rc<Target>,
    fresh: bool,
) -> Result<Answered, Failed> {
    let down = Rc::clone(&exchange.down);
    let limits = &cluster.policy.pool;
    let switches = exchange.upgrade.is_some();
    let http2 = attempt::wants_http2(cluster.protocol, limits, exchange.version, switches);
    let lost = || Failed { reason: Reason::UpstreamReset, kind: Kind::Reset, unsent: None };
    let body = exchange.outgoing().ok_or_else(lost)?;
    let mut headers = exchange.headers.clone();
    if let Some(name) = &target.client_cert {
        headers.insert(super::headers::XFCC, name.clone());
    }
    let request = exchange.request(headers, body, http2);
    exchange.record.attempts += 1;
    exchange.record.target = Some(Rc::clone(target));
    exchange.record.max_requests = limits.max_requests_per_connection;
    down.shows(target);
    match (Try { down: &down, target, limits, http2, switches, fresh }).send(request).await {
        Ok((response, lease)) => Ok(Answered { response, lease }),
        Err(mut failed) => {
            if let Some(unsent) = failed.unsent.take() {
                exchange.restore(unsent.into_body());
            }
            Err(failed)
        }
    }
}
