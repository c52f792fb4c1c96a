//! HTTP to an upstream: the handshake and the task that drives a connection. Owns: hyper's settings on that side.
//! Never: chooses whom to call. Called by `proxy::http::attempt`.

use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;

use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::oneshot;

use super::body::Outgoing;
use super::checks::HEADER_LIST_MAX_BYTES;
use super::io::HttpIo;
use super::pool::{Http1, Opened, Switched};

/// Header fields of one answer.
pub const ANSWER_FIELDS_MAX: usize = 200;
/// Bytes an upstream may send on one stream that its client does not read.
pub const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
/// The same for all streams of a connection: more than they can hold together, so that none stalls another.
pub const CONNECTION_WINDOW_BYTES: u32 = 32 * 1024 * 1024;
/// Bytes of one stream that wait to be sent.
pub const SEND_BUFFER_BYTES: usize = 256 * 1024;

/// Runs hyper's tasks on this worker.
#[derive(Clone, Copy, Debug)]
pub struct OnWorker;

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for OnWorker {
    fn execute(&self, task: F) {
        drop(tokio::task::spawn_local(task));
    }
}

/// Begins HTTP/1 on a connection.
pub async fn http1(io: HttpIo, opened: Opened) -> hyper::Result<Http1> {
    let mut builder = http1::Builder::new();
    builder.max_headers(ANSWER_FIELDS_MAX).max_header_size(HEADER_LIST_MAX_BYTES);
    let (sender, mut conn) = builder.handshake::<_, Outgoing>(TokioIo::new(io)).await?;
    let wanted = Rc::new(Cell::new(false));
    let (give, taken) = oneshot::channel();
    let switched = Switched { wanted: Rc::clone(&wanted), io: taken };
    drop(tokio::task::spawn_local(async move {
        let ended = poll_fn(|cx| conn.poll_without_shutdown(cx)).await;
        let parts = conn.into_parts();
        let mut io = parts.io.into_inner();
        if ended.is_ok() && wanted.get() {
            // Nobody may want it any more: then it closes here.
            drop(give.send(io.rewound(parts.read_buf)));
            return;
        }
        if let Err(error) = ended {
            tracing::debug!(%error, "an upstream connection broke");
        }
        // The other side may have closed already.
        drop(io.shutdown().await);
    }));
    Ok(Http1 { sender, switched, served: 0, opened })
}

/// Begins HTTP/2 with prior knowledge (RFC 9113, 3.3).
pub async fn http2(io: HttpIo, streams: Option<u32>) -> hyper::Result<http2::SendRequest<Outgoing>> {
    let mut builder = http2::Builder::new(OnWorker);
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .max_header_list_size(u32::try_from(HEADER_LIST_MAX_BYTES).unwrap_or(u32::MAX));
    if let Some(streams) = streams {
        builder.initial_max_send_streams(usize::try_from(streams).unwrap_or(usize::MAX));
    }
    let (sender, conn) = builder.handshake::<_, Outgoing>(TokioIo::new(io)).await?;
    drop(tokio::task::spawn_local(async move {
        if let Err(error) = conn.await {
            tracing::debug!(%error, "an upstream connection broke");
        }
    }));
    Ok(sender)
}
