//! What becomes of a request, in the order in which it becomes so. Owns: that order, and nothing that it calls.
//! Called by `proxy::http::server`, once per request.

use std::borrow::Cow;
use std::rc::Rc;
use std::sync::Arc;

use http::header::LOCATION;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use tokio::time::{Instant, sleep};

use super::answer::Local;
use super::body::Answer;
use super::cluster::{Cluster, Wanted};
use super::downstream::{Downstream, Place, Side};
use super::exchange::{Exchange, snapshot};
use super::forward::{NO_RETRY, Unanswered, Way, forward};
use super::mirror::{self, Copy};
use super::said::Said;
use crate::decide::connection::draw;
use crate::decide::cors::{self, Cors};
use crate::decide::outbound::{OutboundPlan, backend_port, canonical, plan};
use crate::decide::{Snapshot as _, fault, headers, rewrite, route};
use crate::model::route::{
    Abort, Backend, DirectResponse, HttpMatch, HttpRule, Redirect, RuleAction, WeightedBackend,
};
use crate::model::{Endpoint, Reason, Workload};

/// Answers one request.
pub async fn respond(down: &Rc<Downstream>, request: Request<Incoming>) -> Response<Answer> {
    let exchange = match Exchange::read(down, request) {
        Ok(exchange) => exchange,
        Err(answer) => return answer,
    };
    match &down.side {
        Side::Outbound { source, .. } => {
            let source = Arc::clone(source);
            outbound(exchange, &source).await
        }
        Side::Inbound { .. } => super::application::inbound(exchange).await,
    }
}

/// A request of a pod of this node. The snapshot is loaded where it is needed and held no longer: an answer may take
/// hours.
async fn outbound(mut exchange: Exchange, source: &Arc<Workload>) -> Response<Answer> {
    let down = Rc::clone(&exchange.down);
    let place = match place(&exchange, source) {
        Ok(place) => place,
        Err(reason) => return exchange.refuse(Local::of(reason)),
    };

    // Which rule: the first that matches.
    let selected = route::select(&place.rules, source, &exchange.view(place.port));
    let Some((rule, matched)) = selected else {
        if !place.rules.is_empty() {
            return exchange.refuse(Local::of(Reason::NoRoute));
        }
        let way = Way { cluster: &place.cluster, retry: None, try_timeout: None, deadline: None };
        return match forward(&mut exchange, &way).await {
            Ok(answered) => exchange.deliver(answered, None, |_, _, _| {}),
            Err(unanswered) => exchange.give_up(&unanswered),
        };
    };
    exchange.record.rule = Some(Arc::clone(rule));

    // Cross-origin requests: a preflight ends here.
    let cross = |policy| cors::decide(policy, exchange.method.as_str(), &exchange.headers);
    let decorated = match rule.cors.as_ref().map(cross) {
        Some(Cors::Answer(fields)) => return exchange.say(answer_of(StatusCode::OK, fields, "")),
        Some(Cors::Decorate(fields)) => Some(fields),
        Some(Cors::Pass) | None => None,
    };

    // Faults: a pause, then an end.
    if !rule.fault.is_empty()
        && let Some(local) = suffer(&mut exchange, rule).await
    {
        return exchange.refuse(local);
    }

    // Whom to ask, or what to say at once.
    let backends = match &rule.action {
        RuleAction::Redirect(to) => return redirect(exchange, to, rule, matched, place.port),
        RuleAction::Respond(with) => return respond_directly(exchange, with, rule),
        RuleAction::Forward(backends) => backends,
    };
    let Some(chosen) = draw(backends, |backend| backend.weight, down.worker.random()) else {
        return exchange.refuse(Local::of(Reason::BackendInvalid));
    };
    let (cluster, try_timeout) = match cluster(&exchange, source, &place, &chosen.backend) {
        Ok(found) => found,
        Err(reason) => return exchange.refuse(Local::of(reason)),
    };

    // What is sent on. A copy is taken of that, with nothing of the rule's answer.
    if let Err(reason) = edit(&mut exchange, rule, chosen, matched) {
        return exchange.refuse(Local::of(reason));
    }
    let copies = copies(&mut exchange, source, &place, rule);

    // What the rule's answer says of the request is known now, and not when the answer comes.
    let mut said = Said::of(&exchange, rule, &[&chosen.response_headers, &rule.response_headers]);

    // Balance, circuit, tries: the answer's head, or why there is none.
    let (deadline, retry) = match rule.fault.may_happen() {
        // A rule that injects faults has neither (Istio's API).
        true => (None, Some(&NO_RETRY)),
        false => (rule.timeout.map(|timeout| Instant::now() + timeout), rule.retry.as_ref()),
    };
    let way = Way { cluster: &cluster, retry, try_timeout, deadline };
    let answered = forward(&mut exchange, &way).await;
    for copy in copies {
        copy.send(&exchange);
    }

    // Back to the client; metrics and log when its last byte is delivered.
    match answered {
        Ok(answered) => exchange.deliver(answered, deadline, |fields, status, upstream| {
            if let Some(said) = &mut said {
                said.answer = Some((status, upstream));
            }
            // What they say of Host has no meaning in an answer.
            drop(headers::apply(&chosen.response_headers, fields, &said));
            drop(headers::apply(&rule.response_headers, fields, &said));
            if let Some(decorated) = decorated {
                cors::decorate(decorated, fields);
            }
        }),
        Err(unanswered) => exchange.give_up(&unanswered),
    }
}

/// The Service that was dialled decides where a request may go; an address that is no Service's, the Host.
fn place(exchange: &Exchange, source: &Workload) -> Result<Place, Reason> {
    let down = &exchange.down;
    let Side::Outbound { original, chosen, .. } = &down.side else { return Err(Reason::NoRoute) };
    let world = snapshot(down);
    let authority = exchange.authority.as_ref().map(|authority| authority.as_str());
    if let Some(known) = down.place(None).or_else(|| down.place(authority.filter(|text| !text.is_empty()))) {
        return Ok(known);
    }
    let port = original.port();
    let of_service = |service| -> Result<Place, Reason> {
        let dialled = canonical(*original);
        let wanted = Wanted { service, port, subset: None, dialled };
        let cluster = down.worker.http.cluster(&down.worker, &world, source, &wanted)?;
        Ok(Place {
            rules: world.http_rules(source, service, port),
            service: Some(Arc::clone(service)),
            port,
            cluster,
        })
    };
    if let Some(chosen) = chosen {
        let plan = chosen.plan(&world, source, *original)?;
        let service = plan.service.ok_or(Reason::BackendInvalid)?;
        let wanted = Wanted {
            service: &service,
            port: plan.port,
            subset: plan.subset.as_ref(),
            dialled: canonical(*original),
        };
        let cluster = down.worker.http.cluster(&down.worker, &world, source, &wanted)?;
        let place = Place { port: plan.port, rules: Arc::default(), cluster, service: Some(service) };
        down.learn_place(None, &place);
        return Ok(place);
    }
    let of_address = |endpoint: Endpoint| {
        let cluster = down.worker.http.single(&world, source, endpoint);
        Place { service: None, port, rules: Arc::default(), cluster }
    };
    let (place, by_host) = match plan(&*world, source, *original) {
        // It may have routes that lead elsewhere.
        OutboundPlan::Refuse(Reason::NoEndpoint) => match world.service_at(original.ip()) {
            Some(service) => (of_service(service)?, false),
            None => return Err(Reason::NoEndpoint),
        },
        OutboundPlan::Refuse(reason) => return Err(reason),
        OutboundPlan::Tcp(plan) => match (&plan.service, plan.endpoints.first()) {
            (Some(service), _) => (of_service(service)?, false),
            (None, Some(endpoint)) => (of_address(endpoint.clone()), false),
            (None, None) => return Err(Reason::NoEndpoint),
        },
        OutboundPlan::Passthrough(address) => {
            match authority.and_then(|host| world.entry_by_host(host, port, &source.namespace)) {
                Some(service) => (of_service(service)?, true),
                None => {
                    let endpoint = Endpoint::outside(address);
                    (of_address(endpoint), true)
                }
            }
        }
    };
    // Where the Host decides, what holds without one holds for no other request of the connection.
    if !by_host {
        down.learn_place(None, &place);
    } else if let Some(authority) = authority.filter(|text| !text.is_empty()) {
        down.learn_place(Some(authority), &place);
    }
    Ok(place)
}

/// Draws the rule's faults: waits, and says how the request ends if it does.
async fn suffer(exchange: &mut Exchange, rule: &HttpRule) -> Option<Local> {
    let worker = &exchange.down.worker;
    let drawn = fault::draw(&rule.fault, [worker.random(), worker.random()]);
    if let Some(delay) = drawn.delay {
        exchange.record.flag = Some("DI");
        sleep(delay).await;
    }
    let local = Local::of(Reason::FaultAborted);
    let local = match drawn.abort? {
        Abort::Http(status) => local.with_status(status),
        Abort::Grpc(code) => Local { grpc_status: code, status: 200, ..local },
    };
    exchange.record.flag = None;
    Some(local)
}

/// The cluster of a backend, and how long one try there may take.
fn cluster(
    exchange: &Exchange,
    source: &Workload,
    place: &Place,
    backend: &Backend,
) -> Result<(Rc<Cluster>, Option<std::time::Duration>), Reason> {
    let Backend::Host { host, port, subset, timeout } = backend else { return Err(Reason::BackendInvalid) };
    let down = &exchange.down;
    let subset_key = subset.as_ref().map_or(std::ptr::null(), |subset| subset.as_ptr());
    let key = (host.as_ptr(), *port, subset_key);
    if let Some(known) = down.backend(key) {
        return Ok((known, *timeout));
    }
    let world = snapshot(down);
    let service = world.service_by_host(host, &source.namespace).ok_or(Reason::BackendInvalid)?;
    let port = backend_port(service, *port, place.port);
    let wanted = Wanted {
        service,
        port: port.ok_or(Reason::NoSuchPort)?,
        subset: subset.as_ref(),
        dialled: canonical(down.dialled()),
    };
    let cluster = down.worker.http.cluster(&down.worker, &world, source, &wanted)?;
    down.learn_backend(key, &cluster);
    Ok((cluster, *timeout))
}

/// Rewrites the request as its rule and its backend say.
fn edit(
    exchange: &mut Exchange,
    rule: &HttpRule,
    chosen: &WeightedBackend,
    matched: Option<&HttpMatch>,
) -> Result<(), Reason> {
    let mut authority: Option<Cow<'_, str>> = rule.rewrite.authority.as_deref().map(Cow::Borrowed);
    for ops in [&rule.request_headers, &chosen.request_headers] {
        if !ops.is_empty()
            && let Some(set) = {
                let said = Said::of(exchange, rule, &[ops]);
                headers::apply(ops, &mut exchange.headers, &said)
            }
        {
            authority = Some(Cow::Owned(set));
        }
    }
    if rule.rewrite.path.is_some() {
        let how = snapshot(&exchange.down).path_normalization();
        let path = rewrite::path(&rule.rewrite, matched, exchange.path.path(), how);
        let path = path.map_err(|_bad| Reason::RequestMalformed)?;
        let whole = match exchange.path.query() {
            Some(query) => format!("{path}?{query}"),
            None => path.into_owned(),
        };
        exchange.path = PathAndQuery::try_from(whole).map_err(|_bad| Reason::BackendInvalid)?;
    }
    if let Some(authority) = authority {
        exchange.authority = Some(authority.parse().map_err(|_bad| Reason::BackendInvalid)?);
    }
    exchange.remember();
    Ok(())
}

fn copies(exchange: &mut Exchange, source: &Workload, place: &Place, rule: &HttpRule) -> Vec<Copy> {
    let mut copies = Vec::new();
    for mirror in &rule.mirrors {
        if !mirror.share.hit(exchange.down.worker.random()) {
            continue;
        }
        match cluster(exchange, source, place, &mirror.backend) {
            Ok((cluster, _timeout)) => copies.push(mirror::copy(exchange, &cluster)),
            Err(reason) => tracing::debug!(rule = %rule.origin, %reason, "a mirror cannot be reached"),
        }
    }
    copies
}

fn redirect(
    exchange: Exchange,
    to: &Redirect,
    rule: &HttpRule,
    matched: Option<&HttpMatch>,
    port: u16,
) -> Response<Answer> {
    let location = rewrite::location(to, matched, &exchange.view(port));
    let Ok(location) = HeaderValue::from_str(&location) else {
        return exchange.refuse(Local::of(Reason::BackendInvalid));
    };
    let mut fields = HeaderMap::new();
    fields.insert(LOCATION, location);
    let status = StatusCode::from_u16(to.status).unwrap_or(StatusCode::MOVED_PERMANENTLY);
    let said = Said::answered(&exchange, rule, status);
    drop(headers::apply(&rule.response_headers, &mut fields, &said));
    exchange.say(answer_of(status, fields, ""))
}

fn respond_directly(exchange: Exchange, with: &DirectResponse, rule: &HttpRule) -> Response<Answer> {
    let mut fields = HeaderMap::new();
    if !with.body.is_empty() {
        fields.insert(http::header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    }
    let status = StatusCode::from_u16(with.status).unwrap_or(StatusCode::OK);
    let said = Said::answered(&exchange, rule, status);
    drop(headers::apply(&rule.response_headers, &mut fields, &said));
    exchange.say(answer_of(status, fields, with.body.to_vec()))
}

fn answer_of(status: StatusCode, fields: HeaderMap, body: impl Into<bytes::Bytes>) -> Response<Answer> {
    let mut response = Response::new(Answer::full(body));
    *response.status_mut() = status;
    *response.headers_mut() = fields;
    response
}

impl Exchange {
    /// Says in the upstream's place why there is no answer.
    fn give_up(mut self, unanswered: &Unanswered) -> Response<Answer> {
        if unanswered.exhausted && self.record.flag.is_none() {
            self.record.flag = Some("URX");
        }
        self.refuse(Local::of(unanswered.reason))
    }
}
