//! One request and what is known of it. Owns: its head and body between client and upstream, and the end of both: an
//! answer delivered, or one of the mesh's own. Never: decides. Called by `proxy::http::pipeline`.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use http::header::HOST;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use hyper::body::{Body as _, Incoming};
use tokio::time::Instant;

use super::answer::{self, Local};
use super::body::{Answer, Kept, Outgoing};
use super::checks::{self, Malformed};
use super::downstream::Downstream;
use super::headers;
use super::pool::Lease;
use super::record::Record;
use crate::decide::Snapshot as _;
use crate::decide::path::{self, PathNormalization};
use crate::decide::route::RequestView;
use crate::model::{Limit, Reason};
use crate::world::World;

/// See the module's header.
pub struct Exchange {
    pub down: Rc<Downstream>,
    pub method: Method,
    pub path: PathAndQuery,
    pub authority: Option<Authority>,
    pub version: Version,
    pub headers: HeaderMap,
    /// The protocol that the client asks to switch to.
    pub upgrade: Option<HeaderValue>,
    pub body: Source,
    /// Of a copy: the whole body.
    pub copied_body: Option<bytes::Bytes>,
    /// Sent, and nothing of it was kept.
    pub spent: bool,
    pub record: Box<Record>,
}

/// Where a request's body comes from.
pub enum Source {
    /// There is none.
    Empty,
    /// Sent once.
    Once(Option<Incoming>),
    /// Kept, up to a limit, for another try or a mirror.
    Kept(Kept),
}

/// An upstream's answer, or one made on its behalf, with the connection its body comes on.
pub struct Answered {
    pub response: Response<Incoming>,
    pub lease: Lease,
}

impl Exchange {
    /// Takes a request apart and makes of it what is judged and forwarded alike. An error is already the answer.
    #[allow(
        clippy::result_large_err,
        reason = "it is returned as it is, once, and only where a request is refused"
    )]
    pub fn read(down: &Rc<Downstream>, request: Request<Incoming>) -> Result<Self, Response<Answer>> {
        let (head, body) = request.into_parts();
        let checked = checks::head(&head.method, &head.uri, head.version, &head.headers)
            .map_err(|malformed| (malformed.status(), malformed.to_string()));
        let path =
            checked.is_ok().then(|| normalised(&head.uri, snapshot(down).path_normalization())).transpose();
        let mut headers = head.headers;
        let upgrade = headers::upgrade(&headers);
        headers::strip_hop(&mut headers);
        headers.remove(HOST);
        let random = || [down.worker.random(), down.worker.random()];
        headers::vouch(&mut headers, None, random);
        let mut exchange = Self {
            down: Rc::clone(down),
            record: Box::new(Record::new(down, &head.method, head.version, headers::is_grpc(&headers))),
            method: head.method,
            path: PathAndQuery::from_static("/"),
            authority: None,
            version: head.version,
            headers,
            upgrade,
            copied_body: None,
            spent: false,
            body: if body.is_end_stream() { Source::Empty } else { Source::Once(Some(body)) },
        };
        match (checked, path) {
            (Ok(authority), Ok(Some(path))) => {
                exchange.record.id = exchange.headers.get(headers::REQUEST_ID).cloned();
                exchange.authority = authority;
                exchange.path = path;
                exchange.remember();
                Ok(exchange)
            }
            (Err((status, why)), _) => Err(exchange.malformed(status, &why)),
            (_, Err(why)) => Err(exchange.malformed(400, &why)),
            (Ok(_), Ok(None)) => Err(exchange.malformed(400, "no path")),
        }
    }

    fn malformed(self, status: u16, why: &str) -> Response<Answer> {
        tracing::debug!(conn = self.down.conn.id(), status, "{why}");
        if status == Malformed::Headers.status() || status == Malformed::TargetLength.status() {
            self.down.worker.shared.connections.metrics().limit_hit(Limit::HttpHead);
        }
        let http1 = self.version < Version::HTTP_2;
        let mut answer = self.refuse(Local::of(Reason::RequestMalformed).with_status(status));
        if http1 {
            // What comes after it on this connection is anybody's guess.
            answer.headers_mut().insert(http::header::CONNECTION, HeaderValue::from_static("close"));
        }
        answer
    }

    /// The log tells what is forwarded.
    pub fn remember(&mut self) {
        self.record.path = self.path.clone();
        self.record.authority.clone_from(&self.authority);
    }

    /// The request as routes and policies see it.
    pub fn view(&self, port: u16) -> RequestView<'_> {
        RequestView {
            method: self.method.as_str(),
            scheme: "http",
            authority: self.authority.as_ref().map_or("", |authority| authority.as_str()),
            path: self.path.path(),
            query: self.path.query(),
            headers: &self.headers,
            port,
        }
    }

    /// The same request once more, without its body.
    pub fn copied(&self) -> Self {
        let down = &self.down;
        Self {
            down: Rc::clone(down),
            method: self.method.clone(),
            path: self.path.clone(),
            authority: self.authority.clone(),
            version: self.version,
            headers: self.headers.clone(),
            upgrade: None,
            body: Source::Empty,
            copied_body: None,
            spent: false,
            record: Box::new(Record::new(down, &self.method, self.version, self.record.grpc)),
        }
    }

    /// Keeps the body for another try or a mirror.
    pub fn keep_body(&mut self) {
        if let Source::Once(body) = &mut self.body
            && let Some(body) = body.take()
        {
            self.body = Source::Kept(Kept::new(body, Rc::clone(&self.record.request_bytes)));
        }
    }

    /// The body for the next try; none if it has been sent already and cannot be sent again.
    pub fn outgoing(&mut self) -> Option<Outgoing> {
        if let Some(body) = self.copied_body.clone() {
            return Some(if body.is_empty() { Outgoing::Empty } else { Outgoing::Full(body) });
        }
        match &mut self.body {
            Source::Empty => Some(Outgoing::Empty),
            Source::Once(body) => body
                .take()
                .map(|body| Outgoing::Incoming { body, counted: Rc::clone(&self.record.request_bytes) }),
            Source::Kept(kept) if kept.replayable() => Some(Outgoing::Replay(kept.replay())),
            Source::Kept(kept) => {
                if kept.overflowed() {
                    self.down.worker.shared.connections.metrics().limit_hit(Limit::HttpReplay);
                }
                None
            }
        }
    }

    /// Takes a request back of which nothing was sent.
    pub fn restore(&mut self, request: Request<Outgoing>, headers: bool) {
        let (head, body) = request.into_parts();
        if headers {
            self.spent = false;
            self.headers = head.headers;
            for name in [HOST, headers::XFCC, http::header::CONNECTION, http::header::UPGRADE] {
                self.headers.remove(name);
            }
        }
        if let Outgoing::Incoming { body, .. } = body {
            self.body = Source::Once(Some(body));
        }
    }

    /// Whether the request may be sent twice without harm (RFC 9110, 9.2.2), and its body can be.
    pub fn may_repeat(&self) -> bool {
        self.method.is_idempotent() && matches!(self.body, Source::Empty)
    }

    /// The request as an upstream is asked, by version and by whether TLS carries it.
    pub fn request(
        &self,
        headers: HeaderMap,
        body: Outgoing,
        (http2, tls): (bool, bool),
    ) -> Request<Outgoing> {
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.headers_mut() = headers;
        let authority = self.authority.clone();
        if http2 {
            *request.version_mut() = Version::HTTP_2;
            *request.uri_mut() = absolute(authority.or_else(|| self.dialled()), &self.path, tls);
            return request;
        }
        *request.uri_mut() = Uri::from(self.path.clone());
        let host = authority.or_else(|| self.dialled());
        if let Some(host) = host.and_then(|host| HeaderValue::from_str(host.as_str()).ok()) {
            request.headers_mut().insert(HOST, host);
        }
        if let Some(protocol) = &self.upgrade {
            let headers = request.headers_mut();
            headers.insert(http::header::CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(http::header::UPGRADE, protocol.clone());
        }
        request
    }

    /// For HTTP/1.0, which may not say whom it wants.
    fn dialled(&self) -> Option<Authority> {
        self.down.dialled().to_string().parse().ok()
    }

    /// Hands an upstream's answer to the client. `edit` has the last word on its header fields, and is told the status and
    /// which endpoint answered.
    pub fn deliver(
        self,
        answered: Answered,
        deadline: Option<Instant>,
        edit: impl FnOnce(&mut HeaderMap, StatusCode, Option<SocketAddr>),
    ) -> Response<Answer> {
        let Self { down, mut record, upgrade, version, .. } = self;
        let Answered { response, lease } = answered;
        let (mut head, body) = response.into_parts();
        record.status = head.status.as_u16();
        record.grpc_status = answer::grpc_status(&head.headers);
        let switched = head.status == StatusCode::SWITCHING_PROTOCOLS;
        let protocol = if switched { headers::upgrade(&head.headers).or(upgrade) } else { None };
        headers::strip_hop(&mut head.headers);
        head.version = version.max(Version::HTTP_11);
        if let Some(cookie) = record.cookie.take() {
            head.headers.append(http::header::SET_COOKIE, cookie);
        }
        edit(&mut head.headers, head.status, record.target.as_ref().map(|target| target.endpoint));
        if let Some(protocol) = protocol {
            head.headers.insert(http::header::CONNECTION, HeaderValue::from_static("upgrade"));
            head.headers.insert(http::header::UPGRADE, protocol);
            down.switch(lease);
            return Response::from_parts(head, Answer::full("").watched(record));
        }
        record.lease = Some(lease);
        Response::from_parts(head, Answer::incoming(body, deadline).watched(record))
    }

    /// Answers in the upstream's place.
    pub fn refuse(mut self, local: Local) -> Response<Answer> {
        self.record.reason = Some(local.reason);
        let response = local.response(self.record.grpc);
        self.say(response)
    }

    /// Delivers an answer of the mesh's own.
    pub fn say(mut self, response: Response<Answer>) -> Response<Answer> {
        self.record.status = response.status().as_u16();
        self.record.grpc_status = answer::grpc_status(response.headers());
        let (head, body) = response.into_parts();
        Response::from_parts(head, body.watched(self.record))
    }
}

fn absolute(authority: Option<Authority>, path: &PathAndQuery, tls: bool) -> Uri {
    let mut parts = http::uri::Parts::default();
    if authority.is_some() {
        parts.scheme = Some(if tls { Scheme::HTTPS } else { Scheme::HTTP });
        parts.authority = authority;
    }
    parts.path_and_query = Some(path.clone());
    // The parts come from a request that was read as one.
    Uri::from_parts(parts).unwrap_or_default()
}

/// The one path that is judged and forwarded (reference 4.6).
fn normalised(uri: &Uri, how: PathNormalization) -> Result<PathAndQuery, String> {
    let Some(asked) = uri.path_and_query() else { return Err("no path".to_owned()) };
    let normal = path::normalise(asked.as_str(), how).map_err(|bad| bad.to_string())?;
    if *normal == *asked.as_str() {
        return Ok(asked.clone());
    }
    PathAndQuery::try_from(&*normal).map_err(|bad| bad.to_string())
}

/// Which snapshot a request is decided from.
pub fn snapshot(down: &Downstream) -> Arc<World> {
    let world = down.worker.shared.store.load();
    down.at(&world);
    world
}
