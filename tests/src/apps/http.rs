//! An HTTP server, versions 1.1 and 2, that says who it is and what it saw, and does what a request's query asks it to:
//! `status=503`, `delay=MS`, `size=BYTES`, `bad=POD` (status 500 from that pod); `fail=N&key=K` fails the first N requests with that key, `reset=N&key=K` breaks
//! off their connections. `/grpc` sends every frame back and ends with trailers; an Upgrade is answered with 101 and an echo.
use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Map, Value, json};
use tokio::net::TcpStream;

use super::{SeenConn, Stats, canonical};

/// Who the server says it is.
#[derive(Debug)]
pub(super) struct Name {
    pub(super) pod: String,
    pub(super) version: Option<String>,
}

/// `patience` is how long a connection may say nothing at first.
pub(super) async fn serve(
    stream: TcpStream,
    stats: Arc<Stats>,
    name: Arc<Name>,
    patience: Duration,
) -> io::Result<()> {
    let conn = SeenConn { peer: canonical(stream.peer_addr()?), local: canonical(stream.local_addr()?) };
    let mut first = [0; 4];
    let Ok(peeked) = tokio::time::timeout(patience, stream.peek(&mut first)).await else { return Ok(()) };
    let peeked = peeked?;
    let app = Rc::new(Http { conn, name, stats });
    let service = service_fn(move |request| answer(request, Rc::clone(&app)));
    let io = TokioIo::new(stream);
    if &first[..peeked] == b"PRI " {
        return http2::Builder::new(Local).serve_connection(io, service).await.map_err(io::Error::other);
    }
    http1::Builder::new()
        .half_close(true)
        .serve_connection(io, service)
        .with_upgrades()
        .await
        .map_err(io::Error::other)
}

struct Http {
    conn: SeenConn,
    name: Arc<Name>,
    stats: Arc<Stats>,
}

async fn answer(request: Request<Incoming>, app: Rc<Http>) -> io::Result<Response<Said>> {
    app.stats.requested(request.headers(), request.uri());
    let query = request.uri().query().unwrap_or_default().to_owned();
    let query: HashMap<&str, &str> = query.split('&').filter_map(|pair| pair.split_once('=')).collect();
    let number = |name: &str| query.get(name).and_then(|text| text.parse::<u64>().ok());
    if let Some(delay) = number("delay") {
        tokio::time::sleep(Duration::from_millis(delay)).await;
    }
    let key = query.get("key").copied().unwrap_or_default();
    if number("reset").is_some_and(|first| app.stats.nth(key) <= first) {
        return Err(io::Error::other("told to break off"));
    }
    let failing = number("fail").is_some_and(|first| app.stats.nth(key) <= first);
    let bad = query.get("bad").is_some_and(|bad| *bad == app.name.pod);
    let status = match number("status") {
        _ if bad => 500,
        Some(status) if failing || !query.contains_key("fail") => status,
        _ if failing => 503,
        _ => 200,
    };
    if request.headers().contains_key("upgrade") {
        return Ok(switch(request));
    }
    if request.uri().path() == "/grpc" || request.uri().path().starts_with("/lab.Echo/") {
        return Ok(grpc(request));
    }
    let mut response = page(request, &app, number("size")).await;
    *response.status_mut() = u16::try_from(status)
        .ok()
        .and_then(|status| StatusCode::from_u16(status).ok())
        .unwrap_or(StatusCode::IM_A_TEAPOT);
    Ok(response)
}

async fn page(request: Request<Incoming>, app: &Http, size: Option<u64>) -> Response<Said> {
    let (head, body) = request.into_parts();
    let mut headers = Map::new();
    for (key, value) in &head.headers {
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        if let Some(all) = headers.entry(key.as_str()).or_insert_with(|| json!([])).as_array_mut() {
            all.push(Value::from(value));
        }
    }
    let body = body.collect().await;
    let trailers = body.as_ref().ok().and_then(|body| body.trailers().cloned());
    // A body that breaks off is shown as what came of it.
    let received = body.map(|body| body.to_bytes().len()).unwrap_or_default();
    app.stats.received.fetch_add(received as u64, Ordering::Relaxed);
    let authority = head.uri.authority().map(ToString::to_string);
    let said = json!({
        "pod": app.name.pod, "version": app.name.version,
        "peer": app.conn.peer.to_string(), "local": app.conn.local.to_string(),
        "protocol": format!("{:?}", head.version), "method": head.method.as_str(),
        "path": head.uri.path_and_query().map(ToString::to_string), "authority": authority,
        "headers": headers, "body_bytes": received, "trailers": trailers.is_some(),
    });
    let body = match size {
        Some(size) => Bytes::from(vec![b'x'; usize::try_from(size).unwrap_or_default()]),
        None => Bytes::from(said.to_string()),
    };
    let mut response = Response::new(Said::Full(body));
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/json"));
    response.headers_mut().insert("connection", HeaderValue::from_static("x-of-this-hop"));
    response.headers_mut().insert("x-of-this-hop", HeaderValue::from_static("1"));
    response
}

fn switch(mut request: Request<Incoming>) -> Response<Said> {
    let protocol = request.headers().get("upgrade").cloned();
    drop(tokio::task::spawn_local(async move {
        if let Ok(upgraded) = hyper::upgrade::on(&mut request).await {
            let (mut read, mut write) = tokio::io::split(TokioIo::new(upgraded));
            // The client's end ends it.
            drop(tokio::io::copy(&mut read, &mut write).await);
            drop(tokio::io::AsyncWriteExt::shutdown(&mut write).await);
        }
    }));
    let mut response = Response::new(Said::Full(Bytes::new()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert("connection", HeaderValue::from_static("upgrade"));
    if let Some(protocol) = protocol {
        response.headers_mut().insert("upgrade", protocol);
    }
    response
}

fn grpc(request: Request<Incoming>) -> Response<Said> {
    let status = request.headers().get("x-grpc-status").cloned();
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", status.unwrap_or(HeaderValue::from_static("0")));
    let mut response = Response::new(Said::Echo { body: request.into_body(), trailers: Some(trailers) });
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    // Without it HTTP/1.1 has no place for them (RFC 9110, 6.6.2).
    response.headers_mut().insert("trailer", HeaderValue::from_static("grpc-status"));
    response
}

/// A body of an answer.
pub(super) enum Said {
    Full(Bytes),
    /// What comes, frame by frame, then trailers.
    Echo {
        body: Incoming,
        trailers: Option<HeaderMap>,
    },
}

impl Body for Said {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Self::Full(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Full(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Echo { body, trailers } => match Pin::new(body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) if frame.is_data() => Poll::Ready(Some(Ok(frame))),
                Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(error))),
                Poll::Ready(_) => Poll::Ready(trailers.take().map(|trailers| Ok(Frame::trailers(trailers)))),
                Poll::Pending => Poll::Pending,
            },
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Echo { .. } => SizeHint::default(),
        }
    }
}

/// Runs hyper's tasks on the app's thread.
#[derive(Clone, Copy)]
pub(super) struct Local;

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for Local {
    fn execute(&self, task: F) {
        drop(tokio::task::spawn_local(task));
    }
}
