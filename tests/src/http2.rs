//! An HTTP/2 client with prior knowledge, gRPC's included: bodies are sent and read frame by frame.
use std::net::TcpStream;
use std::pin::Pin;
use std::task::{Context, Poll};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::sync::mpsc;

/// Frames that may wait to be sent.
const FRAMES: usize = 16;

/// A connection that requests can be sent on.
pub struct Http2 {
    sender: http2::SendRequest<Frames>,
}

/// A body that is sent as its frames come.
pub struct Frames(mpsc::Receiver<Bytes>);

impl Body for Frames {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.0.poll_recv(cx).map(|frame| frame.map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// What was answered, to its end.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub trailers: HeaderMap,
}

impl Reply {
    /// In trailers, or in the head of an answer that has nothing else.
    pub fn grpc_status(&self) -> Option<u16> {
        let value = self.trailers.get("grpc-status").or_else(|| self.headers.get("grpc-status"));
        value?.to_str().ok()?.parse().ok()
    }
}

/// Does `work` with a connection over a socket.
pub fn with<T>(stream: TcpStream, work: impl AsyncFnOnce(&mut Http2) -> Result<T>) -> Result<T> {
    stream.set_nonblocking(true).context("cannot make a socket non-blocking")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async move {
        let stream = tokio::net::TcpStream::from_std(stream)?;
        let (sender, conn) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        let conn = tokio::spawn(conn);
        let done = work(&mut Http2 { sender }).await;
        conn.abort();
        done
    })
}

impl Http2 {
    /// Begins a request; its body is what is sent into the channel, until that is dropped.
    pub async fn begin(&mut self, request: Request<()>) -> Result<(mpsc::Sender<Bytes>, Answering)> {
        let (send, frames) = mpsc::channel(FRAMES);
        self.sender.ready().await?;
        let answer = self.sender.send_request(request.map(|()| Frames(frames)));
        Ok((send, Box::pin(answer)))
    }

    /// A request with its whole body, and the whole answer.
    pub async fn ask(&mut self, request: Request<()>, body: &[u8]) -> Result<Reply> {
        let (send, answer) = self.begin(request).await?;
        if !body.is_empty() {
            send.send(Bytes::copy_from_slice(body)).await.context("the request's body has no reader")?;
        }
        drop(send);
        whole(answer.await?).await
    }
}

/// The head of an answer, some time.
pub type Answering = Pin<Box<dyn Future<Output = hyper::Result<Response<Incoming>>>>>;

/// Reads an answer to its end.
pub async fn whole(response: Response<Incoming>) -> Result<Reply> {
    let (head, body) = response.into_parts();
    let body = body.collect().await.context("reading a body")?;
    let trailers = body.trailers().cloned().unwrap_or_default();
    Ok(Reply { status: head.status.as_u16(), headers: head.headers, body: body.to_bytes(), trailers })
}
