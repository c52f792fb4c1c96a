//! HTTP from a client: hyper's server on one connection, from its first byte to its end. Owns: hyper's settings on that
//! side, how long a client may be silent, drain, and what follows an upgrade. Never: looks into a request (`pipeline`
//! does). Called by `proxy::{outbound, inbound}`.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, Sleep, sleep_until, timeout};

use super::body::Answer;
use super::checks::{HEADER_FIELDS_MAX, HEADER_LIST_MAX_BYTES};
use super::client::{CONNECTION_WINDOW_BYTES, OnWorker, SEND_BUFFER_BYTES, STREAM_WINDOW_BYTES};
use super::downstream::Downstream;
use super::h2c;
use super::io::HttpIo;
use super::pipeline;
use super::sniff::Sniffed;
use crate::model::{Limit, Reason};

/// A request's head has to be there this long after its first byte.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// A client's connection without a request is closed after this long (Istio: 1 h).
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
/// Streams that a client may have open at once.
pub const STREAMS_MAX: u32 = 100;
/// Streams that a client reset before anybody looked at them (rapid reset, CVE-2023-44487).
pub const PENDING_RESETS_MAX: usize = 20;
/// Streams that a client made us reset by breaking the protocol (MadeYouReset, CVE-2025-8671).
pub const ERROR_RESETS_MAX: usize = 1024;
/// Requests that a client gave up before their answer, if they are more than half of all it sent (CVE-2023-44487 at a
/// pace that no queue notices).
pub const GIVEN_UP_MAX: u32 = 500;
/// After the last answer, what a client still sends is read for this long and this far: closing on unread bytes would
/// reset the connection, and the answer might be lost with it.
pub const LINGER: Duration = Duration::from_secs(1);
pub const LINGER_MAX_BYTES: usize = 256 * 1024;

type Answering = Pin<Box<dyn Future<Output = Result<Response<Answer>, Infallible>>>>;

/// Why a client's connection ended.
enum Ended {
    Closed(hyper::Result<()>),
    Cut(Reason),
    Silent(Reason),
}

/// What the driver asks of a connection.
enum Step<'a, 'b> {
    Go(&'a mut Context<'b>),
    /// No further request.
    Finish,
}

/// Serves a client to the end of its connection.
pub async fn serve(down: &Rc<Downstream>, io: HttpIo, spoken: Sniffed) {
    down.conn.carries_http();
    let read = io.bytes_read();
    let ended = match spoken {
        Sniffed::Http2 => serve_http2(down, io).await,
        Sniffed::Http1 | Sniffed::Other => serve_http1(down, io, read).await,
    };
    down.conn.end(ended);
}

async fn serve_http1(down: &Rc<Downstream>, io: HttpIo, read: Rc<Cell<u64>>) -> Option<Reason> {
    let mut builder = http1::Builder::new();
    builder
        // A client may finish sending before it reads: half-open as any TCP connection.
        .half_close(true)
        .auto_date_header(false)
        .max_headers(HEADER_FIELDS_MAX)
        .max_header_size(HEADER_LIST_MAX_BYTES)
        .header_read_timeout(None);
    let mut conn = builder.serve_connection(TokioIo::new(io), service_fn(answering(down)));
    let ended = drive(down, Quiet::new(Some(read)), |step| match step {
        Step::Go(cx) => conn.poll_without_shutdown(cx),
        Step::Finish => {
            Pin::new(&mut conn).graceful_shutdown();
            Poll::Pending
        }
    })
    .await;
    let parts = conn.into_parts();
    let io = parts.io.into_inner();
    match ended {
        Ended::Closed(Ok(())) => {
            if let Some(first) = down.take_first_stream() {
                return go_on_in_http2(down, io.rewound(parts.read_buf), &first).await;
            }
            let switched = down.take_switched();
            if let Some(lease) = switched {
                return super::upgrade::relay(down, io.rewound(parts.read_buf), lease).await;
            }
            linger(io).await;
            None
        }
        Ended::Closed(Err(error)) if error.is_parse() => {
            if error.is_parse_too_large() {
                down.worker.shared.connections.metrics().limit_hit(Limit::HttpHead);
            }
            tracing::debug!(conn = down.conn.id(), %error, "not a request");
            // hyper has answered it.
            linger(io).await;
            Some(Reason::RequestMalformed)
        }
        Ended::Closed(Err(error)) => {
            tracing::debug!(conn = down.conn.id(), %error, "a client's connection broke");
            io.reset();
            Some(if down.broken.get() { Reason::ServerReset } else { Reason::ClientReset })
        }
        Ended::Silent(reason) | Ended::Cut(reason) => {
            io.reset();
            Some(reason)
        }
    }
}

/// A client that was answered 101 (`h2c`).
async fn go_on_in_http2(down: &Rc<Downstream>, io: HttpIo, first: &[u8]) -> Option<Reason> {
    let begun = tokio::select! {
        biased;
        reason = down.conn.cancelled() => return Some(reason),
        begun = timeout(HEAD_TIMEOUT, h2c::begin(io, first)) => begun,
    };
    match begun {
        Ok(Ok(io)) => serve_http2(down, io).await,
        Ok(Err(error)) => {
            tracing::debug!(conn = down.conn.id(), %error, "a client did not go on");
            Some(Reason::ClientReset)
        }
        Err(_elapsed) => Some(Reason::RequestTimeout),
    }
}

async fn serve_http2(down: &Rc<Downstream>, io: HttpIo) -> Option<Reason> {
    let mut builder = http2::Builder::new(OnWorker);
    builder
        .timer(TokioTimer::new())
        .auto_date_header(false)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(STREAMS_MAX)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .max_header_list_size(u32::try_from(HEADER_LIST_MAX_BYTES).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(PENDING_RESETS_MAX)
        .max_local_error_reset_streams(ERROR_RESETS_MAX);
    let mut conn = pin!(builder.serve_connection(TokioIo::new(io), service_fn(answering(down))));
    let ended = drive(down, Quiet::new(None), |step| match step {
        Step::Go(cx) => conn.as_mut().poll(cx),
        Step::Finish => {
            conn.as_mut().graceful_shutdown();
            Poll::Pending
        }
    })
    .await;
    match ended {
        Ended::Closed(Ok(())) => None,
        Ended::Closed(Err(error)) => {
            if is_flood(&error) {
                down.worker.shared.connections.metrics().limit_hit(Limit::HttpFlood);
            }
            tracing::debug!(conn = down.conn.id(), %error, "a client's connection broke");
            Some(Reason::ClientReset)
        }
        Ended::Silent(reason) | Ended::Cut(reason) => Some(reason),
    }
}

/// What the HTTP/2 engine says when it has had enough of a client.
fn is_flood(error: &hyper::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(cause) = cause.downcast_ref::<h2::Error>() {
            return cause.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM);
        }
        source = cause.source();
    }
    false
}

/// Notices a request that its client gave up before there was an answer.
struct Answered {
    down: Rc<Downstream>,
    done: bool,
}

impl Answered {
    fn is_done(&mut self) {
        self.done = true;
    }
}

impl Drop for Answered {
    fn drop(&mut self) {
        self.down.asked.set(self.down.asked.get().saturating_add(1));
        if !self.done {
            self.down.given_up.set(self.down.given_up.get().saturating_add(1));
        }
    }
}

/// Whether a client asks only to make work: what it resets before the answer costs us a request and it nothing, however
/// slowly it goes about it.
fn wastes(down: &Downstream) -> bool {
    let given_up = down.given_up.get();
    given_up >= GIVEN_UP_MAX && given_up > down.asked.get() / 2
}

fn answering(down: &Rc<Downstream>) -> impl Fn(Request<Incoming>) -> Answering + use<> {
    let down = Rc::clone(down);
    move |request| {
        let down = Rc::clone(&down);
        let mut answered = Answered { down: Rc::clone(&down), done: false };
        if let Some(frame) = h2c::first_stream(&asked(&request)) {
            answered.is_done();
            down.leave_first_stream(frame);
            return Box::pin(std::future::ready(Ok(h2c::switching())));
        }
        Box::pin(async move {
            let answer = pipeline::respond(&down, request).await;
            answered.is_done();
            Ok(answer)
        })
    }
}

fn asked(request: &Request<Incoming>) -> h2c::Asked<'_> {
    h2c::Asked {
        method: request.method(),
        uri: request.uri(),
        version: request.version(),
        headers: request.headers(),
        empty: request.body().is_end_stream(),
    }
}

/// Polls a connection with an eye on the clock, the drain and the table.
async fn drive(
    down: &Downstream,
    quiet: Quiet,
    mut step: impl FnMut(Step<'_, '_>) -> Poll<hyper::Result<()>>,
) -> Ended {
    let mut cut = pin!(down.conn.cancelled());
    let mut draining = down.worker.draining.clone();
    let mut draining = pin!(async move { drop(draining.wait_for(|draining| *draining).await) });
    let mut finishing = false;
    let mut quiet = quiet;
    poll_fn(|cx| {
        if let Poll::Ready(reason) = cut.as_mut().poll(cx) {
            return Poll::Ready(Ended::Cut(reason));
        }
        if !finishing && draining.as_mut().poll(cx).is_ready() {
            finishing = true;
            // It says by itself how it goes on: at the next poll.
            drop(step(Step::Finish));
        }
        if let Poll::Ready(ended) = step(Step::Go(cx)) {
            return Poll::Ready(Ended::Closed(ended));
        }
        if wastes(down) {
            down.worker.shared.connections.metrics().limit_hit(Limit::HttpFlood);
            return Poll::Ready(Ended::Cut(Reason::LimitReached));
        }
        match quiet.poll(cx, down.in_flight.get() > 0) {
            Poll::Ready(reason) => Poll::Ready(Ended::Silent(reason)),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// What a client does between requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// A request is under way: its own times count.
    Busy,
    Idle,
    /// Part of a head has come.
    Head,
}

/// Notices a client that is silent for too long. Looked at after every poll of the connection, so that it needs no
/// wake-ups of its own but the one at the end.
struct Quiet {
    /// None for HTTP/2, whose frames are not all parts of heads.
    read: Option<Rc<Cell<u64>>>,
    /// Bytes read when the client last became idle.
    mark: u64,
    phase: Phase,
    timer: Pin<Box<Sleep>>,
    armed: bool,
}

impl Quiet {
    fn new(read: Option<Rc<Cell<u64>>>) -> Self {
        let timer = Box::pin(sleep_until(Instant::now() + IDLE_TIMEOUT));
        Self { read, mark: 0, phase: Phase::Idle, timer, armed: true }
    }

    fn bytes(&self) -> u64 {
        self.read.as_ref().map_or(0, |read| read.get())
    }

    fn poll(&mut self, cx: &mut Context<'_>, busy: bool) -> Poll<Reason> {
        let phase = match busy {
            true => Phase::Busy,
            false if self.phase == Phase::Busy => Phase::Idle,
            false if self.bytes() != self.mark => Phase::Head,
            false => self.phase,
        };
        if phase != self.phase {
            self.phase = phase;
            let limit = match phase {
                Phase::Busy => None,
                Phase::Idle => Some(IDLE_TIMEOUT),
                Phase::Head => Some(HEAD_TIMEOUT),
            };
            self.armed = limit.is_some();
            if let Some(limit) = limit {
                self.mark = self.bytes();
                self.timer.as_mut().reset(Instant::now() + limit);
            }
        }
        if !self.armed || self.timer.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        Poll::Ready(if self.phase == Phase::Head { Reason::RequestTimeout } else { Reason::IdleTimeout })
    }
}

/// Closes after the last answer, see [`LINGER`].
async fn linger(mut io: HttpIo) {
    if io.shutdown().await.is_err() {
        return;
    }
    let mut taken = 0;
    let mut scrap = [0; 4096];
    // Whatever happens here: the connection is over.
    drop(
        timeout(LINGER, async {
            while taken < LINGER_MAX_BYTES
                && let Ok(more) = io.read(&mut scrap).await
                && more > 0
            {
                taken += more;
            }
        })
        .await,
    );
}

#[cfg(test)]
mod tests;
