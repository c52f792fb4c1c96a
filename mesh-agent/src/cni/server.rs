//! The agent's end of the plugin's socket. Owns: the socket, the conversations and their limits. Never: knows an answer;
//! each question goes to the control loop with a place for it. Called by `agent`.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::protocol::{Answer, Ask, PROTOCOL_VERSION, Question};
use super::{ANSWER_TIMEOUT, MESSAGE_MAX_BYTES, QUESTIONS_MAX};
use crate::admin::socket::{self, SocketError, SocketFile, Takeover};
use crate::capture::handover::wire;
use crate::net::netns::NetNs;
use crate::observe::{Limit, Metrics};

/// How long a plugin may take to put its question; it has it ready.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after a failed accept (out of descriptors): trying again at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Bytes of the length before each message.
const LENGTH_BYTES: usize = 4;

/// Why the plugin's socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum CniSocketError {
    #[error("cni-socket: an agent answers on {0} already; stop it, or give this one another --cni-socket")]
    InUse(PathBuf),
    #[error("cni-socket: {0} is not a socket and is left alone; remove it or name another path")]
    NotASocket(PathBuf),
    #[error("cni-socket: cannot use {path}: {source}; check that the folder can be written")]
    Io { path: PathBuf, source: io::Error },
}

impl From<SocketError> for CniSocketError {
    fn from(error: SocketError) -> Self {
        match error {
            SocketError::InUse(path) => Self::InUse(path),
            SocketError::NotASocket(path) => Self::NotASocket(path),
            SocketError::Io { path, source } => Self::Io { path, source },
        }
    }
}

/// A question for the control loop.
#[derive(Debug)]
pub struct Asked {
    pub ask: Ask,
    /// There for every question that has one, and known to be a network namespace.
    pub netns: Option<Arc<NetNs>>,
    /// Nobody may be waiting any more.
    pub answer: oneshot::Sender<Answer>,
}

/// The socket. Dropping it removes the socket's file, unless a successor has taken the name.
pub struct CniServer {
    listener: UnixListener,
    _file: SocketFile,
    questions: mpsc::Sender<Asked>,
    metrics: Arc<Metrics>,
}

impl CniServer {
    /// Binds the socket; must be called within a tokio runtime. Questions come out of the receiver.
    pub fn bind(
        path: &Path,
        takeover: Takeover,
        metrics: Arc<Metrics>,
    ) -> Result<(Self, mpsc::Receiver<Asked>), CniSocketError> {
        let bound = socket::bind(path, takeover)?;
        let listener = UnixListener::from_std(bound.listener)
            .map_err(|source| CniSocketError::Io { path: path.to_owned(), source })?;
        let (questions, asked) = mpsc::channel(QUESTIONS_MAX);
        Ok((Self { listener, _file: bound.file, questions, metrics }, asked))
    }

    /// Serves until dropped, or until nobody takes the questions.
    pub async fn run(self) {
        let places = Arc::new(Semaphore::new(QUESTIONS_MAX));
        loop {
            let stream = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = self.questions.closed() => return,
            };
            let stream = match stream {
                Ok((stream, _peer)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cni: cannot accept; raise the limit of open files if it persists");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                self.metrics.limit_hit(Limit::AdminConnections);
                continue;
            };
            let questions = self.questions.clone();
            tokio::spawn(async move {
                if let Err(error) = converse(&stream, &questions).await {
                    tracing::debug!(%error, "cni: a question was not answered");
                }
                drop(place);
            });
        }
    }
}

/// One question and its answer.
async fn converse(stream: &UnixStream, questions: &mpsc::Sender<Asked>) -> io::Result<()> {
    let late = |_elapsed| io::Error::from(io::ErrorKind::TimedOut);
    let read = tokio::time::timeout(QUESTION_TIMEOUT, question(stream)).await.map_err(late)?;
    let answer = match read {
        Ok((ask, netns)) => {
            let (answer, answered) = oneshot::channel();
            if questions.send(Asked { ask, netns, answer }).await.is_err() {
                // The agent ends: the plugin sees a closed connection, and asks whoever comes next.
                return Ok(());
            }
            match tokio::time::timeout(ANSWER_TIMEOUT, answered).await.map_err(late)? {
                Ok(answer) => answer,
                Err(_ending) => return Ok(()),
            }
        }
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            Answer::Refused { message: error.to_string() }
        }
        Err(error) => return Err(error),
    };
    let text = serde_json::to_vec(&answer)?;
    let mut bytes = u32::try_from(text.len()).map_err(io::Error::other)?.to_le_bytes().to_vec();
    bytes.extend_from_slice(&text);
    let mut sent = 0;
    while sent < bytes.len() {
        let write = || wire::send(stream.as_fd(), &bytes[sent..], &[]);
        sent += tokio::time::timeout(QUESTION_TIMEOUT, stream.async_io(Interest::WRITABLE, write))
            .await
            .map_err(late)??;
    }
    Ok(())
}

/// Reads a question and makes sure that what came along is what it needs.
async fn question(stream: &UnixStream) -> io::Result<(Ask, Option<Arc<NetNs>>)> {
    let mut fds = Vec::new();
    let mut length = [0; LENGTH_BYTES];
    fill(stream, &mut length, &mut fds).await?;
    let length = u32::from_le_bytes(length) as usize;
    if length > MESSAGE_MAX_BYTES {
        return Err(unusable(format!("the question is longer than {MESSAGE_MAX_BYTES} bytes")));
    }
    let mut text = vec![0; length];
    fill(stream, &mut text, &mut fds).await?;
    let unread = |error| unusable(format!("the question cannot be read: {error}"));
    let question: Question = serde_json::from_slice(&text).map_err(unread)?;
    if question.version != PROTOCOL_VERSION {
        return Err(unusable(format!(
            "the plugin speaks version {}, the agent {PROTOCOL_VERSION}: the agent installs the right one once it \
             is ready",
            question.version
        )));
    }
    if !question.ask.has_namespace() {
        return Ok((question.ask, None));
    }
    let fd = fds.pop().ok_or_else(|| unusable("no network namespace came along".to_owned()))?;
    let netns = NetNs::from_fd(fd)
        .map_err(|error| unusable(format!("what came along is no network namespace: {error}")))?;
    Ok((question.ask, Some(Arc::new(netns))))
}

async fn fill(stream: &UnixStream, buffer: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<()> {
    let mut filled = 0;
    while filled < buffer.len() {
        let rest = &mut buffer[filled..];
        let mut got = stream.async_io(Interest::READABLE, || wire::receive(stream.as_fd(), rest)).await?;
        if got.bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        filled += got.bytes;
        fds.append(&mut got.fds);
        if fds.len() > 1 {
            return Err(unusable("more than one descriptor came along".to_owned()));
        }
    }
    Ok(())
}

fn unusable(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

#[cfg(test)]
mod tests;
