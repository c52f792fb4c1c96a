//! A request to a destination until one of its endpoints answers: balance, circuit, tries with their times and pauses.
//! Owns: the count of tries. Never: decides what is worth another (`decide::retry`). Called by `proxy::http::pipeline`
//! and `mirror`.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::Version;
use http::uri::Authority;
use tokio::time::{Instant, sleep, timeout};

use super::answer;
use super::attempt::{self, Failed, Kind, Try};
use super::cluster::Cluster;
use super::downstream::{Downstream, Side};
use super::exchange::{Answered, Exchange, Source, snapshot};
use super::headers::XFCC;
use super::target::{Of, Target};
use crate::decide::balance::hash_key;
use crate::decide::inbound::{ConnFacts, HttpFacts, admit_request};
use crate::decide::outbound::Transport;
use crate::decide::{Snapshot as _, outlier, retry};
use crate::model::route::{RetryOn, RetryPolicy};
use crate::model::traffic::LoadBalance;
use crate::model::{Reason, Workload};
use crate::proxy::upstream;
use crate::world::World;

/// What is sent once: copies, and requests of a rule that injects faults.
pub const NO_RETRY: RetryPolicy = RetryPolicy {
    attempts: 0,
    per_try_timeout: None,
    on: RetryOn {
        server_error: false,
        gateway_error: false,
        reset: false,
        reset_before_request: false,
        connect_failure: false,
        retriable_4xx: false,
        refused_stream: false,
        statuses: Vec::new(),
        grpc: Vec::new(),
    },
    backoff: Duration::ZERO,
    exclude_previous_hosts: false,
};

/// Where a request goes and how long that may take.
pub struct Way<'a> {
    pub cluster: &'a Rc<Cluster>,
    /// None = the mesh's default.
    pub retry: Option<&'a RetryPolicy>,
    /// For one try.
    pub try_timeout: Option<Duration>,
    /// For all of it.
    pub deadline: Option<Instant>,
}

/// Why nobody answered.
pub struct Unanswered {
    pub reason: Reason,
    /// All tries that were allowed have been made.
    pub exhausted: bool,
}

impl From<Reason> for Unanswered {
    fn from(reason: Reason) -> Self {
        Self { reason, exhausted: false }
    }
}

/// Tries until an endpoint answers, the policy has enough or the time is over.
pub async fn forward(exchange: &mut Exchange, way: &Way<'_>) -> Result<Answered, Unanswered> {
    let Some(deadline) = way.deadline else { return tries(exchange, way).await };
    match tokio::time::timeout_at(deadline, tries(exchange, way)).await {
        Ok(answered) => answered,
        Err(_elapsed) => Err(Reason::UpstreamTimeout.into()),
    }
}

async fn tries(exchange: &mut Exchange, way: &Way<'_>) -> Result<Answered, Unanswered> {
    let down = Rc::clone(&exchange.down);
    let defaults = snapshot(&down).defaults();
    let policy = way.retry.unwrap_or(&defaults.retry);
    let hash = hash(exchange, way.cluster);
    // What may have to be sent again has to be kept from the start.
    let again = sends_again(policy, exchange);
    let resets = policy.on.server_error || policy.on.gateway_error || policy.on.reset;
    if again && policy.attempts > 0 {
        exchange.keep_body();
    }
    // Whom a key leads to, a retry asks again: another endpoint would not know what the key stands for.
    let avoids =
        policy.exclude_previous_hosts && !matches!(way.cluster.policy.balance, LoadBalance::Hash { .. });
    let mut tried: Vec<usize> = Vec::new();
    let mut retries = 0;
    loop {
        let avoided: &[usize] = if avoids { &tried } else { &[] };
        let Some(index) = way.cluster.pick(&down.worker, hash, avoided) else {
            return Err(Reason::NoEndpoint.into());
        };
        tried.push(index);
        let last = retries >= policy.attempts;
        let after = After { again: !last && again, repeat: !resets };
        let tried_once = one(exchange, way, policy, index, after).await?;
        let outcome = retried_as(&tried_once, exchange.record.grpc);
        if !retry::worth_retry(policy, outcome) {
            return tried_once.map_err(|failed| failed.reason.into());
        }
        let exhausted = |failed: Failed| Unanswered { reason: failed.reason, exhausted: retries > 0 };
        if last || !sendable(exchange) {
            if last && retries > 0 {
                exchange.record.flag = Some("URX");
            }
            return tried_once.map_err(exhausted);
        }
        let cluster = way.cluster;
        let limits = &cluster.policy.pool;
        match cluster.destination.circuit.try_retry(limits, cluster.policy.retry_budget.as_ref()) {
            Ok(place) => exchange.record.places[1] = Some(place),
            Err(_full) => {
                exchange.record.flag = Some("UO");
                return tried_once.map_err(exhausted);
            }
        }
        // The answer that is not good enough goes, and its connection with it.
        drop(tried_once);
        retries += 1;
        sleep(retry::backoff(policy, retries, down.worker.random())).await;
    }
}

/// Whether any outcome after something was sent would have the request sent again.
fn sends_again(policy: &RetryPolicy, exchange: &Exchange) -> bool {
    let on = &policy.on;
    on.server_error
        || on.gateway_error
        || on.reset
        || on.retriable_4xx
        || !on.statuses.is_empty()
        || (exchange.record.grpc && !on.grpc.is_empty())
}

fn sendable(exchange: &Exchange) -> bool {
    if exchange.spent {
        return false;
    }
    match &exchange.body {
        Source::Empty => true,
        Source::Once(body) => body.is_some(),
        Source::Kept(kept) => {
            if kept.overflowed() {
                let metrics = exchange.down.worker.shared.connections.metrics();
                metrics.limit_hit(crate::model::Limit::HttpReplay);
            }
            kept.replayable()
        }
    }
}

fn hash(exchange: &mut Exchange, cluster: &Cluster) -> Option<u64> {
    let LoadBalance::Hash { key, .. } = &cluster.policy.balance else { return None };
    let source = exchange.down.client.ip();
    let random = exchange.down.worker.random();
    let keyed = hash_key::keyed(key, &exchange.view(cluster.port), source, random);
    exchange.record.cookie = keyed.set_cookie.and_then(|cookie| cookie.parse().ok());
    keyed.hash
}

/// One endpoint: judged where this agent is the destination's too, asked, and remembered how it did. An error of the
/// outer kind is final.
async fn one(
    exchange: &mut Exchange,
    way: &Way<'_>,
    policy: &RetryPolicy,
    index: usize,
    after: After,
) -> Result<Result<Answered, Failed>, Unanswered> {
    let down = Rc::clone(&exchange.down);
    let cluster = way.cluster;
    let target = {
        let world = snapshot(&down);
        let address = cluster.endpoints[index].address;
        let asked = exchange.authority.as_ref().map(Authority::host);
        let of = Of { service: cluster.service.as_ref(), tls: &cluster.policy.tls, asked };
        let target = down.target(&world, address, &of)?;
        exchange.record.target = Some(Rc::clone(&target));
        match &target.transport {
            Transport::Local(workload) => judge(exchange, &world, &target, workload)?,
            // A connection from before may still stand; the destination's agent judges the rest.
            Transport::Hbone(workload) if world.denied(&workload.identity) => {
                return Err(Reason::IdentityDenied.into());
            }
            Transport::Hbone(_) | Transport::Plain => {}
        }
        target
    };
    let limits = &cluster.policy.pool;
    exchange.record.places[0] = None;
    match cluster.destination.circuit.try_request(limits) {
        Ok(place) => exchange.record.places[0] = Some(place),
        Err(_full) => return Err(Reason::LimitReached.into()),
    }
    exchange.record.load = cluster.load(index);
    let limit = match (policy.per_try_timeout, way.try_timeout) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    };
    let asked = ask(exchange, cluster, &target, after);
    let answered = match limit {
        None => asked.await,
        Some(limit) => match timeout(limit, asked).await {
            Ok(answered) => answered,
            Err(_elapsed) => {
                Err(Failed { reason: Reason::UpstreamTimeout, kind: Kind::TimedOut, unsent: None })
            }
        },
    };
    if let Some(outcome) = remembered_as(&answered, exchange.record.grpc) {
        cluster.result(&down.worker, index, outcome);
    }
    Ok(answered)
}

/// The destination's policy, on what the destination will read.
pub fn judge(
    exchange: &Exchange,
    world: &World,
    target: &Target,
    workload: &Arc<Workload>,
) -> Result<(), Reason> {
    let peer = match &exchange.down.side {
        Side::Outbound { source, .. } => Some(&source.identity),
        Side::Inbound { peer, .. } => peer.as_ref(),
    };
    let conn = ConnFacts { peer, source_ip: exchange.down.client.ip(), destination: target.endpoint };
    let facts = HttpFacts { conn, request: exchange.view(target.endpoint.port()) };
    admit_request(world, workload, &facts)
}

/// What there is to fall back to when a try fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct After {
    /// Another try may follow, for which the request is kept.
    pub again: bool,
    /// What is lost on a connection that had died before is repeated at once. Not where that counts as a try.
    pub repeat: bool,
}

/// Sends the request to one endpoint; once more on a fresh connection where a used one turned out to be dead.
pub async fn ask(
    exchange: &mut Exchange,
    cluster: &Cluster,
    target: &Rc<Target>,
    after: After,
) -> Result<Answered, Failed> {
    let After { again: keep, repeat } = after;
    let first = send(exchange, cluster, target, keep, false).await;
    match first {
        Err(Failed { kind: Kind::Stale, .. }) if repeat && exchange.may_repeat() => {
            send(exchange, cluster, target, keep, true).await
        }
        first => first,
    }
}

async fn send(
    exchange: &mut Exchange,
    cluster: &Cluster,
    target: &Rc<Target>,
    keep: bool,
    fresh: bool,
) -> Result<Answered, Failed> {
    let down: Rc<Downstream> = Rc::clone(&exchange.down);
    let limits = &cluster.policy.pool;
    let switches = exchange.upgrade.is_some();
    // A server behind TLS says what it speaks only in the handshake: what every one does, unless the request needs more.
    let spoken = match &target.tls {
        Some(_) if !exchange.record.grpc => Version::HTTP_11,
        _ => exchange.version,
    };
    let http2 = attempt::wants_http2(cluster.protocol, limits, spoken, switches);
    let lost = || Failed { reason: Reason::UpstreamReset, kind: Kind::Reset { sent: true }, unsent: None };
    let body = exchange.outgoing().ok_or_else(lost)?;
    // Left behind for another try, where there may be one after this has been sent.
    let keep = keep || http2 || !fresh && exchange.may_repeat();
    let mut headers = if keep { exchange.headers.clone() } else { std::mem::take(&mut exchange.headers) };
    exchange.spent = !keep;
    if let Some(name) = &target.client_cert {
        headers.insert(XFCC, name.clone());
    }
    let request = exchange.request(headers, body, (http2, target.tls.is_some()));
    exchange.record.attempts += 1;
    exchange.record.max_requests = limits.max_requests_per_connection;
    down.shows(target);
    let asked =
        Try { down: &down, target, limits, destination: &cluster.destination, http2, switches, fresh };
    match asked.send(request).await {
        Ok((response, lease)) => Ok(Answered { response, lease }),
        Err(mut failed) => {
            if let Some(unsent) = failed.unsent.take() {
                exchange.restore(unsent, !keep);
            }
            Err(failed)
        }
    }
}

fn retried_as(tried: &Result<Answered, Failed>, grpc: bool) -> retry::Outcome {
    match tried {
        Ok(answered) => {
            let headers = answered.response.headers();
            retry::Outcome::Answer {
                status: answered.response.status().as_u16(),
                grpc: if grpc { answer::grpc_status(headers) } else { None },
                rate_limited: headers.contains_key("x-envoy-ratelimited"),
            }
        }
        Err(failed) => match failed.kind {
            Kind::Connect if upstream::worth_another_endpoint(failed.reason) => retry::Outcome::ConnectFailed,
            // A policy's refusal is final.
            Kind::Connect | Kind::Overflow => retry::Outcome::Overflow,
            Kind::Refused => retry::Outcome::RefusedStream,
            Kind::Stale => retry::Outcome::Reset { sent: true },
            Kind::Reset { sent } => retry::Outcome::Reset { sent },
            Kind::TimedOut => retry::Outcome::TryTimedOut,
        },
    }
}

/// None: it says nothing about the endpoint.
fn remembered_as(tried: &Result<Answered, Failed>, grpc: bool) -> Option<outlier::Outcome> {
    match tried {
        Ok(answered) => {
            let status = answered.response.status().as_u16();
            let code = if grpc { answer::grpc_status(answered.response.headers()) } else { None };
            Some(code.map_or(outlier::Outcome::Status(status), outlier::Outcome::Grpc))
        }
        Err(failed) => match failed.kind {
            Kind::Connect if failed.reason == Reason::ConnectTimeout => Some(outlier::Outcome::TimedOut),
            Kind::Connect if upstream::worth_another_endpoint(failed.reason) => {
                Some(outlier::Outcome::ConnectFailed)
            }
            Kind::Connect | Kind::Overflow | Kind::Refused => None,
            Kind::Stale | Kind::Reset { .. } => Some(outlier::Outcome::Reset),
            Kind::TimedOut => Some(outlier::Outcome::TimedOut),
        },
    }
}
