//! Asks the admin API. Owns: one connection per question. Never: caches. Called by `cli` and by tests.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;

use super::{ExplainQuery, Explanation, Problem};

/// Largest answer, bytes: some 500,000 connections.
pub const ANSWER_MAX_BYTES: usize = 256 << 20;
/// An agent that has not answered by then counts as not reached.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// A connection to an agent, whatever carries it.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// Why there is no connection.
#[derive(Debug)]
pub struct DialError {
    pub cause: String,
    pub remedy: &'static str,
}

pub type Dialling<'a> = Pin<Box<dyn Future<Output = Result<Box<dyn Stream>, DialError>> + Send + 'a>>;

/// A way to an agent that is not on this machine.
pub trait Dial: Send + Sync {
    fn dial(&self) -> Dialling<'_>;
    /// The agent's name in messages.
    fn place(&self) -> String;
}

/// Asks one agent.
#[derive(Clone)]
pub struct Client {
    way: Way,
}

#[derive(Clone)]
enum Way {
    Socket(PathBuf),
    Dial(Arc<dyn Dial>),
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("cannot reach the agent at {place}: {cause}; {remedy}")]
    Unreachable { place: String, cause: String, remedy: &'static str },
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    NotFound(String),
    #[error(
        "the agent at {place} answered what this version does not understand ({message}); compare `mesh-agent version`"
    )]
    Answer { place: String, message: String },
}

impl Client {
    pub fn new(socket: &Path) -> Self {
        Self { way: Way::Socket(socket.to_owned()) }
    }

    pub fn through(dial: Arc<dyn Dial>) -> Self {
        Self { way: Way::Dial(dial) }
    }

    /// Where the agent is.
    pub fn place(&self) -> String {
        match &self.way {
            Way::Socket(path) => path.display().to_string(),
            Way::Dial(dial) => dial.place(),
        }
    }

    /// GET of one view, e.g. `status`.
    pub async fn get<T: DeserializeOwned>(&self, view: &str) -> Result<T, ClientError> {
        match tokio::time::timeout(ANSWER_TIMEOUT, self.ask(view)).await {
            Ok(answer) => answer,
            Err(_elapsed) => Err(self.unreachable(
                format!("no answer within {} s", ANSWER_TIMEOUT.as_secs()),
                "it may be stuck; look at its log",
            )),
        }
    }

    pub async fn explain(&self, query: &ExplainQuery) -> Result<Explanation, ClientError> {
        self.get(&format!("explain?{}", query.to_url())).await
    }

    async fn ask<T: DeserializeOwned>(&self, view: &str) -> Result<T, ClientError> {
        let stream = self.connect().await?;
        let lost =
            |error: hyper::Error| self.unreachable(error.to_string(), "it may have just ended; try again");
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(lost)?;
        let driver = tokio::spawn(connection);
        let request = Request::get(format!("/v1/{view}"))
            .header(HOST, "nodemesh")
            .body(Empty::<Bytes>::new())
            .map_err(|error| ClientError::Refused(error.to_string()))?;
        let answer = sender.send_request(request).await.map_err(lost)?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_MAX_BYTES)
            .collect()
            .await
            .map_err(|error| self.not_understood(&error.to_string()))?
            .to_bytes();
        driver.abort();
        if status == StatusCode::OK {
            return serde_json::from_slice(&body).map_err(|error| self.not_understood(&error.to_string()));
        }
        let problem: Problem =
            serde_json::from_slice(&body).map_err(|error| self.not_understood(&error.to_string()))?;
        match status {
            StatusCode::NOT_FOUND => Err(ClientError::NotFound(problem.error)),
            // From the relay inside the agent's container: it found nobody on the socket.
            StatusCode::BAD_GATEWAY => {
                Err(self
                    .unreachable(problem.error, "look at the pod's log: the agent may be starting or ending"))
            }
            _ => Err(ClientError::Refused(problem.error)),
        }
    }

    async fn connect(&self) -> Result<Box<dyn Stream>, ClientError> {
        match &self.way {
            Way::Socket(path) => match UnixStream::connect(path).await {
                Ok(stream) => Ok(Box::new(stream)),
                Err(error) => Err(self.no_connection(&error)),
            },
            Way::Dial(dial) => dial.dial().await.map_err(|error| self.unreachable(error.cause, error.remedy)),
        }
    }

    fn no_connection(&self, error: &io::Error) -> ClientError {
        let remedy = match error.kind() {
            io::ErrorKind::PermissionDenied => "run the command as root, or as the agent's user",
            io::ErrorKind::ConnectionRefused => "the agent that made it has ended; start it again",
            _ => {
                "is it running? Name its socket with --admin-socket or NODEMESH_ADMIN_SOCKET, or ask a cluster with --context"
            }
        };
        self.unreachable(error.to_string(), remedy)
    }

    fn unreachable(&self, cause: String, remedy: &'static str) -> ClientError {
        ClientError::Unreachable { place: self.place(), cause, remedy }
    }

    fn not_understood(&self, message: &str) -> ClientError {
        ClientError::Answer { place: self.place(), message: message.to_owned() }
    }
}
