//! Bodies on their way through: of requests to an upstream, of answers to a client. Owns: what is remembered of a body
//! for another try, and who is told when one ends. Never: buffers more than a named limit; everything else is asked for
//! frame by frame, as the other side takes it. Called by `proxy::http`.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};

/// Bytes of a request's body that are kept for another try, or for a mirror. A longer one is sent once.
pub const REPLAY_MAX_BYTES: usize = 64 * 1024;

/// Why a body ended early.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error("the peer's body broke off: {0}")]
    Peer(#[from] hyper::Error),
    #[error("the time for the whole answer is over")]
    Deadline,
    #[error("the request's body broke off before")]
    Lost,
}

/// A request's body as an upstream gets it.
pub enum Outgoing {
    Empty,
    Full(Bytes),
    Incoming { body: Incoming, counted: Rc<Cell<u64>> },
    Replay(Replay),
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        match this {
            Self::Empty => Poll::Ready(None),
            Self::Full(bytes) => {
                let frame = Frame::data(std::mem::take(bytes));
                *this = Self::Empty;
                Poll::Ready(Some(Ok(frame)))
            }
            Self::Incoming { body, counted } => {
                let frame = ready!(Pin::new(body).poll_frame(cx)).transpose()?;
                if let Some(data) = frame.as_ref().and_then(Frame::data_ref) {
                    counted.set(counted.get() + data.len() as u64);
                }
                Poll::Ready(frame.map(Ok))
            }
            Self::Replay(replay) => replay.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(bytes) => bytes.is_empty(),
            Self::Incoming { body, .. } => body.is_end_stream(),
            Self::Replay(replay) => replay.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Incoming { body, .. } => body.size_hint(),
            Self::Replay(replay) => replay.hint,
        }
    }
}

/// What has been read of a request's body, for the tries that may follow. One try reads at a time.
struct Tee {
    source: Incoming,
    counted: Rc<Cell<u64>>,
    kept: VecDeque<Bytes>,
    kept_bytes: usize,
    trailers: Option<HeaderMap>,
    /// More came than is kept: there is no further try.
    overflowed: bool,
    ended: bool,
    failed: bool,
}

/// A request's body that can be sent again, as long as it is not too long.
#[derive(Clone)]
pub struct Kept {
    tee: Rc<RefCell<Tee>>,
    hint: SizeHint,
}

/// One reading of it.
pub struct Replay {
    tee: Rc<RefCell<Tee>>,
    hint: SizeHint,
    at: usize,
    trailers_given: bool,
}

impl Kept {
    pub fn new(source: Incoming, counted: Rc<Cell<u64>>) -> Self {
        let hint = source.size_hint();
        let tee = Tee {
            source,
            counted,
            kept: VecDeque::new(),
            kept_bytes: 0,
            trailers: None,
            overflowed: false,
            ended: false,
            failed: false,
        };
        Self { tee: Rc::new(RefCell::new(tee)), hint }
    }

    /// Whether another try would send the same bytes.
    pub fn replayable(&self) -> bool {
        let tee = self.tee.borrow();
        !tee.overflowed && !tee.failed
    }

    pub fn overflowed(&self) -> bool {
        self.tee.borrow().overflowed
    }

    /// The body from its start.
    pub fn replay(&self) -> Replay {
        Replay { tee: Rc::clone(&self.tee), hint: self.hint, at: 0, trailers_given: false }
    }

    /// The whole body, if it has been read to its end and was kept.
    pub fn whole(&self) -> Option<Bytes> {
        let tee = self.tee.borrow();
        if !tee.ended || tee.overflowed || tee.failed {
            return None;
        }
        let mut all = BytesMut::with_capacity(tee.kept_bytes);
        tee.kept.iter().for_each(|chunk| all.extend_from_slice(chunk));
        Some(all.freeze())
    }
}

impl Replay {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut tee = self.tee.borrow_mut();
        if let Some(chunk) = tee.kept.get(self.at) {
            self.at += 1;
            return Poll::Ready(Some(Ok(Frame::data(chunk.clone()))));
        }
        if tee.failed {
            return Poll::Ready(Some(Err(BodyError::Lost)));
        }
        if tee.ended {
            let trailers =
                tee.trailers.clone().filter(|_| !std::mem::replace(&mut self.trailers_given, true));
            return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
        }
        let frame = match ready!(Pin::new(&mut tee.source).poll_frame(cx)) {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => {
                tee.failed = true;
                return Poll::Ready(Some(Err(error.into())));
            }
            None => {
                tee.ended = true;
                return Poll::Ready(None);
            }
        };
        if let Some(data) = frame.data_ref() {
            tee.keep(data);
            self.at = tee.kept.len();
        } else if let Some(trailers) = frame.trailers_ref() {
            tee.trailers = Some(trailers.clone());
            tee.ended = true;
            self.trailers_given = true;
        }
        tee.ended |= tee.source.is_end_stream();
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        let tee = self.tee.borrow();
        tee.ended && self.at == tee.kept.len() && (tee.trailers.is_none() || self.trailers_given)
    }
}

impl Tee {
    fn keep(&mut self, data: &Bytes) {
        self.counted.set(self.counted.get() + data.len() as u64);
        self.kept_bytes += data.len();
        if self.overflowed || self.kept_bytes > REPLAY_MAX_BYTES {
            self.overflowed = true;
            self.kept.clear();
            return;
        }
        self.kept.push_back(data.clone());
    }
}

/// How an answer's body ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyEnd {
    /// Delivered to its last byte.
    Complete,
    /// The upstream broke it off.
    Upstream,
    /// It took too long.
    Deadline,
    /// The client went away.
    Client,
}

/// Who is told about an answer's body.
pub trait Watch {
    /// Told once.
    fn ended(&mut self, end: BodyEnd, bytes: u64, trailers: Option<&HeaderMap>);
}

/// An answer's body as the client gets it.
pub struct Answer {
    kind: Kind,
    watch: Option<Box<dyn Watch>>,
    bytes: u64,
    deadline: Option<Pin<Box<Sleep>>>,
}

enum Kind {
    Full(Bytes),
    Incoming(Incoming),
}

impl Answer {
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        Self { kind: Kind::Full(bytes.into()), watch: None, bytes: 0, deadline: None }
    }

    pub fn incoming(body: Incoming, deadline: Option<Instant>) -> Self {
        let deadline = deadline.filter(|_| !body.is_end_stream()).map(|at| Box::pin(sleep_until(at)));
        Self { kind: Kind::Incoming(body), watch: None, bytes: 0, deadline }
    }

    /// Tells `watch` how the body ends; at once if there is nothing of it.
    #[must_use]
    pub fn watched(mut self, watch: Box<dyn Watch>) -> Self {
        self.watch = Some(watch);
        if self.is_end_stream() {
            self.tell(BodyEnd::Complete, None);
        }
        self
    }

    fn tell(&mut self, end: BodyEnd, trailers: Option<&HeaderMap>) {
        if let Some(mut watch) = self.watch.take() {
            watch.ended(end, self.bytes, trailers);
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let polled = match &mut this.kind {
            Kind::Full(bytes) if bytes.is_empty() => Poll::Ready(None),
            Kind::Full(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Kind::Incoming(body) => Pin::new(body).poll_frame(cx),
        };
        match polled {
            Poll::Pending => {
                if let Some(deadline) = &mut this.deadline
                    && deadline.as_mut().poll(cx).is_ready()
                {
                    this.tell(BodyEnd::Deadline, None);
                    return Poll::Ready(Some(Err(BodyError::Deadline)));
                }
                Poll::Pending
            }
            Poll::Ready(None) => {
                this.tell(BodyEnd::Complete, None);
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(error))) => {
                this.tell(BodyEnd::Upstream, None);
                Poll::Ready(Some(Err(error.into())))
            }
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    this.bytes += data.len() as u64;
                }
                // hyper asks no further once it knows that this was the last.
                if let Some(trailers) = frame.trailers_ref() {
                    this.tell(BodyEnd::Complete, Some(trailers));
                } else if this.is_end_stream() {
                    this.tell(BodyEnd::Complete, None);
                }
                Poll::Ready(Some(Ok(frame)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Full(bytes) => bytes.is_empty(),
            Kind::Incoming(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Incoming(body) => body.size_hint(),
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.tell(BodyEnd::Client, None);
    }
}
