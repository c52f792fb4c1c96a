//! An HTTP/1.1 server that says who it is and what it saw.
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Map, Value, json};
use tokio::net::TcpStream;

use super::{SeenConn, Stats, canonical};

pub(super) async fn serve(stream: TcpStream, stats: Arc<Stats>, name: Arc<str>) -> io::Result<()> {
    let conn = SeenConn { peer: canonical(stream.peer_addr()?), local: canonical(stream.local_addr()?) };
    let service = service_fn(|request| answer(request, conn, &name, &stats));
    http1::Builder::new().serve_connection(TokioIo::new(stream), service).await.map_err(io::Error::other)
}

async fn answer(
    request: Request<Incoming>,
    conn: SeenConn,
    name: &str,
    stats: &Stats,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let mut headers = Map::new();
    for (key, value) in &head.headers {
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        if let Some(all) = headers.entry(key.as_str()).or_insert_with(|| json!([])).as_array_mut() {
            all.push(Value::from(value));
        }
    }
    // A body that breaks off is shown as what came of it.
    let received = body.collect().await.map(|body| body.to_bytes().len()).unwrap_or_default();
    stats.received.fetch_add(received as u64, Ordering::Relaxed);
    let said = json!({
        "pod": name, "peer": conn.peer.to_string(), "local": conn.local.to_string(), "method": head.method.as_str(),
        "path": head.uri.to_string(), "headers": headers, "body_bytes": received,
    });
    let mut response = Response::new(Full::new(Bytes::from(said.to_string())));
    response.headers_mut().insert("content-type", http::HeaderValue::from_static("application/json"));
    Ok(response)
}
