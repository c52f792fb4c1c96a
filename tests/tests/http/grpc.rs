//! gRPC between a client and a server that nobody here wrote (tonic, both).
use std::future::{Ready, ready};
use std::io;
use std::net::TcpStream;
use std::task::{Context, Poll};

use anyhow::{Context as _, Result, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use http::Uri;
use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use mesh_tests::{App, eventually};
use tokio::sync::mpsc;
use tonic::client::Grpc;
use tonic::codegen::Service;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request};
use tonic_prost::ProstCodec;

use crate::shop::{NS, Pair, SOON};

/// Gives a channel the one connection it has.
struct Connected(Option<TokioIo<tokio::net::TcpStream>>);

impl Service<Uri> for Connected {
    type Response = TokioIo<tokio::net::TcpStream>;
    type Error = io::Error;
    type Future = Ready<io::Result<Self::Response>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _to: Uri) -> Self::Future {
        ready(self.0.take().ok_or_else(|| io::Error::other("the connection was lost")))
    }
}

struct Talk {
    grpc: Grpc<Channel>,
}

type Codec = ProstCodec<String, String>;

impl Talk {
    async fn new(stream: TcpStream, host: &str) -> Result<Self> {
        stream.set_nonblocking(true)?;
        let io = TokioIo::new(tokio::net::TcpStream::from_std(stream)?);
        let endpoint = Endpoint::from_shared(format!("http://{host}"))?;
        Ok(Self { grpc: Grpc::new(endpoint.connect_with_connector(Connected(Some(io))).await?) })
    }

    async fn method(&mut self, name: &str) -> Result<PathAndQuery> {
        self.grpc.ready().await?;
        Ok(format!("/lab.Talk/{name}").parse()?)
    }

    async fn one(&mut self, method: &str, word: &str) -> Result<Result<String, tonic::Status>> {
        let path = self.method(method).await?;
        let said = self.grpc.unary(Request::new(word.to_owned()), path, Codec::default()).await;
        Ok(said.map(tonic::Response::into_inner))
    }

    /// All four kinds of call, and the ways in which one fails.
    async fn all(&mut self) -> Result<()> {
        ensure!(self.one("Shout", "word").await?? == "WORD");
        let path = self.method("Spell").await?;
        let spelt = self.grpc.server_streaming(Request::new("spell".to_owned()), path, Codec::default());
        let letters: Vec<String> = spelt.await?.into_inner().try_collect().await?;
        ensure!(letters == ["s", "p", "e", "l", "l"]);
        let path = self.method("Join").await?;
        let words = stream::iter(["a", "b", "c"].map(str::to_owned));
        let joined = self.grpc.client_streaming(Request::new(words), path, Codec::default()).await?;
        ensure!(joined.into_inner() == "a b c");
        let path = self.method("Echo").await?;
        let (send, words) = mpsc::channel::<String>(1);
        let words = stream::unfold(words, async |mut words| Some((words.recv().await?, words)));
        let mut echoed = self.grpc.streaming(Request::new(words), path, Codec::default()).await?.into_inner();
        for word in ["one", "two", "three"] {
            send.send(word.to_owned()).await?;
            // Each answer before the next question.
            let said = echoed.next().await.context("the stream ended")??;
            ensure!(said == word.to_uppercase(), "{said}");
        }
        drop(send);
        ensure!(echoed.next().await.is_none());
        let failed = self.one("Fail", "thing").await?.err().context("it did not fail")?;
        ensure!((failed.code(), failed.message()) == (Code::NotFound, "no thing"), "{failed}");
        let path = self.method("Break").await?;
        let broken = self.grpc.server_streaming(Request::new("last".to_owned()), path, Codec::default());
        let mut broken = broken.await?.into_inner();
        ensure!(broken.next().await.context("the stream ended")?? == "last");
        let failed = broken.next().await.context("the stream ended")?.err().context("it did not fail")?;
        ensure!((failed.code(), failed.message()) == (Code::DataLoss, "no more"), "{failed}");
        let unknown = self.one("Nothing", "").await?.err().context("it did not fail")?;
        ensure!(unknown.code() == Code::Unimplemented, "{unknown}");
        Ok(())
    }
}

fn within<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

/// On ports that are called `grpc`, `http` and nothing: unary calls, streams each way and both ways, errors with and
/// without a message before them.
#[test]
fn every_kind_of_call_goes_through() -> Result<()> {
    for protocol in [Some("grpc"), Some("http"), None] {
        let pair = Pair::serving("grpc calls", protocol, App::grpc)?;
        pair.each(|pair, service| {
            let stream = pair.shop.connect(service.at(0))?;
            within(async { Talk::new(stream, service.name).await?.all().await })
        })?;
    }
    Ok(())
}

/// What the mesh refuses, a gRPC client understands: a route that nobody has is UNIMPLEMENTED, a policy's refusal is
/// PERMISSION_DENIED, a fault is what it says.
#[test]
fn refusals_are_grpc_statuses() -> Result<()> {
    let pair = Pair::serving("grpc refusals", Some("grpc"), App::grpc)?;
    let routes = |host: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {host}, namespace: {NS}}}\nspec:\n  hosts: [{host}]\n  http:\n  \
             - match: [{{uri: {{exact: /lab.Talk/Fault}}}}]\n    fault: {{abort: {{grpcStatus: RESOURCE_EXHAUSTED, percentage: {{value: 100}}}}}}\n    \
             route: [{{destination: {{host: {host}}}}}]\n  - match: [{{uri: {{exact: /lab.Talk/Shout}}}}, {{uri: {{exact: /lab.Talk/Fail}}}}]\n    \
             route: [{{destination: {{host: {host}}}}}]\n---\n"
        )
    };
    pair.shop.apply("routes", &format!("{}{}", routes("near"), routes("far")))?;
    pair.shop.apply(
        "policy",
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: no-fail, namespace: production}\n\
         spec: {action: DENY, rules: [{to: [{operation: {paths: [/lab.Talk/Fail]}}]}]}\n",
    )?;
    for service in &pair.services {
        let code = |method: &'static str| {
            let stream = pair.shop.connect(service.at(0))?;
            within(async {
                let said = Talk::new(stream, service.name).await?.one(method, "word").await?;
                Ok(said.map_or_else(|status| status.code(), |_word| Code::Ok))
            })
        };
        eventually("the policy to hold", SOON, || Ok(code("Fail")? == Code::PermissionDenied))?;
        for (method, expected) in [
            ("Shout", Code::Ok),
            ("Fail", Code::PermissionDenied),
            ("Fault", Code::ResourceExhausted),
            ("Join", Code::Unimplemented),
        ] {
            let found = code(method)?;
            ensure!(found == expected, "{} {method}: {found:?}", service.name);
        }
    }
    Ok(())
}
