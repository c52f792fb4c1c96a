//! A gRPC server that somebody else wrote (tonic). Service `lab.Talk`, messages are `google.protobuf.StringValue`:
//! `Shout` (one word, in capitals), `Spell` (a word, then its letters as a stream), `Join` (words as a stream, then all of
//! them), `Echo` (words both ways, each shouted as it comes), `Fail` (an error and nothing else), `Break` (one word, then
//! an error).
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use http::{Request as HttpRequest, Response as HttpResponse};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::server::Grpc;
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use super::Stats;
use super::http::Local;

pub(super) async fn serve(stream: TcpStream, stats: Arc<Stats>) -> io::Result<()> {
    let service = service_fn(move |request: HttpRequest<Incoming>| {
        stats.requested(request.headers(), request.uri());
        async move { Ok::<_, Infallible>(answer(request).await) }
    });
    let served = http2::Builder::new(Local).serve_connection(TokioIo::new(stream), service).await;
    served.map_err(io::Error::other)
}

/// A closure as a method of the service.
struct Method<F>(F);

impl<F, Q, A, R> Service<Request<Q>> for Method<F>
where
    F: FnMut(Request<Q>) -> R,
    R: Future<Output = Result<Response<A>, Status>>,
{
    type Response = Response<A>;
    type Error = Status;
    type Future = R;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Q>) -> R {
        (self.0)(request)
    }
}

async fn answer(request: HttpRequest<Incoming>) -> HttpResponse<Body> {
    let mut grpc = Grpc::new(ProstCodec::<String, String>::default());
    match request.uri().path() {
        "/lab.Talk/Shout" => {
            let shout = |word: Request<String>| async { Ok(Response::new(word.into_inner().to_uppercase())) };
            grpc.unary(Method(shout), request).await
        }
        "/lab.Talk/Spell" => {
            let spell = |word: Request<String>| async {
                let letters: Vec<String> = word.into_inner().chars().map(String::from).collect();
                Ok(Response::new(stream::iter(letters).map(Ok)))
            };
            grpc.server_streaming(Method(spell), request).await
        }
        "/lab.Talk/Join" => {
            let join = |words: Request<Streaming<String>>| async {
                let words: Vec<String> = words.into_inner().try_collect().await?;
                Ok(Response::new(words.join(" ")))
            };
            grpc.client_streaming(Method(join), request).await
        }
        "/lab.Talk/Echo" => {
            let echo = |words: Request<Streaming<String>>| async {
                Ok(Response::new(words.into_inner().map_ok(|word| word.to_uppercase())))
            };
            grpc.streaming(Method(echo), request).await
        }
        "/lab.Talk/Fail" => {
            let fail = |word: Request<String>| async move {
                Err::<Response<String>, _>(Status::not_found(format!("no {}", word.into_inner())))
            };
            grpc.unary(Method(fail), request).await
        }
        "/lab.Talk/Break" => {
            let broken = |word: Request<String>| async {
                let words = [Ok(word.into_inner()), Err(Status::data_loss("no more"))];
                Ok(Response::new(stream::iter(words)))
            };
            grpc.server_streaming(Method(broken), request).await
        }
        _ => Status::unimplemented("no such method").into_http(),
    }
}
