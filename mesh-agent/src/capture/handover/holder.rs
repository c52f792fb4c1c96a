//! The holder: a process that does nothing but keep listeners open, so that an agent's sudden death closes
//! none. Owns: its socket and a duplicate of every set put. Never: accepts a pod's connection, decides which
//! pods exist, writes to disk. Called by `mesh-agent hold`.
//!
//! It is kept this small because it must not have a reason to restart: when it does, the agents still have
//! their listeners and put them again.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use parking_lot::Mutex;
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use super::channel::Channel;
use super::message::{Assembler, Message, Service, SetPart};
use super::socket::{Bound, check_peer};
use super::{ACCEPT_PAUSE, Count, HandoverError, ListenerSet, MAX_SETS, Refusal};

/// Agents connected at once: during a planned restart two, the rest is for the command line.
pub const MAX_CONNECTIONS: usize = 8;

/// How much a holder keeps.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Pods' sets.
    pub pods: usize,
    /// Descriptors of all sets together.
    pub descriptors: usize,
}

impl Limits {
    /// The same, in a process that may open so many files. Where that is little, half of it is kept free.
    fn under(self, open_files: usize) -> Self {
        let room = open_files.saturating_sub(SPARE_DESCRIPTORS).max(open_files / 2);
        Self { descriptors: self.descriptors.min(room), ..self }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { pods: MAX_SETS, descriptors: 65_536 }
    }
}

/// Descriptors beyond the sets': the sockets, the runtime's own, a message on its way for each connection.
const SPARE_DESCRIPTORS: usize = 64 + MAX_CONNECTIONS * super::MAX_DESCRIPTORS_PER_POD;

/// Holds listeners until SIGTERM or SIGINT; blocks. One thread.
pub fn run(path: &Path) -> Result<(), HandoverError> {
    let limits = raise_open_files(Limits::default());
    let failed = |source| HandoverError::Io { doing: "start the holder", source };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let holder = Holder::bind(path, limits)?;
        tracing::info!(path = %path.display(), pods = limits.pods, descriptors = limits.descriptors, "holding listeners");
        holder
            .serve(async move {
                tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
            })
            .await
    })
}

/// Raises the soft limit of open files to the hard one and fits the holder's own limit under it, so that a
/// put is refused by name instead of failing inside the kernel.
fn raise_open_files(limits: Limits) -> Limits {
    let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return limits };
    if let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
    let Ok((soft, _)) = getrlimit(Resource::RLIMIT_NOFILE) else { return limits };
    let fitted = limits.under(usize::try_from(soft).unwrap_or(usize::MAX));
    if fitted.descriptors < limits.descriptors {
        tracing::warn!(
            limit = fitted.descriptors,
            "fewer descriptors than usual: raise RLIMIT_NOFILE for more"
        );
    }
    fitted
}

/// A bound holder, for callers with a runtime and an end of their own.
#[derive(Debug)]
pub struct Holder {
    socket: Bound,
    kept: Arc<Mutex<Kept>>,
}

impl Holder {
    /// Makes the socket (mode 0600), replacing a dead holder's file. Needs a tokio runtime.
    pub fn bind(path: &Path, limits: Limits) -> Result<Self, HandoverError> {
        let kept = Kept { sets: BTreeMap::new(), descriptors: 0, limits };
        Ok(Self { socket: Bound::bind(path)?, kept: Arc::new(Mutex::new(kept)) })
    }

    /// Serves agents until `stop` is done, then closes everything.
    pub async fn serve(self, stop: impl Future<Output = ()>) -> Result<(), HandoverError> {
        tokio::pin!(stop);
        let mut agents = JoinSet::new();
        loop {
            tokio::select! {
                () = &mut stop => return Ok(()),
                Some(_ended) = agents.join_next() => {}
                stream = self.socket.accept() => match stream {
                    Ok(stream) => self.open(stream, &mut agents).await,
                    Err(error) => {
                        // Out of descriptors, most likely. The peer waits in the backlog meanwhile.
                        tracing::warn!(%error, "cannot take a connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
    }

    async fn open(&self, stream: UnixStream, agents: &mut JoinSet<()>) {
        if let Err(error) = check_peer(&stream) {
            tracing::warn!(%error, "refused a connection");
            return;
        }
        let mut channel = Channel::new(stream);
        if agents.len() >= MAX_CONNECTIONS {
            channel.refuse(Refusal::Busy).await;
            return;
        }
        agents.spawn(converse(channel, Arc::clone(&self.kept)));
    }
}

/// One agent, until it goes. What it put stays.
async fn converse(mut channel: Channel, kept: Arc<Mutex<Kept>>) {
    let Err(error) = answer_all(&mut channel, &kept).await else { return };
    tracing::warn!(%error, "an agent's connection ended");
    if !matches!(error, HandoverError::Closed { .. } | HandoverError::Version { .. }) {
        channel.refuse(Refusal::Protocol { error: error.to_string() }).await;
    }
}

async fn answer_all(channel: &mut Channel, kept: &Mutex<Kept>) -> Result<(), HandoverError> {
    channel.welcome(Service::Holder).await?;
    let mut assembler = Assembler::default();
    while let Some((message, fds)) = channel.next().await? {
        let answer = match message {
            Message::Put(part) => match put(part, fds, &mut assembler, kept)? {
                Some(answer) => answer,
                None => continue,
            },
            other if assembler.unfinished() => {
                return Err(HandoverError::Unexpected { got: other.name(), wanted: "the rest of a set" });
            }
            Message::Drop { pod, cookie } => kept.lock().forget(pod, cookie),
            Message::Count => kept.lock().count(),
            Message::Fetch => {
                let sets: Vec<_> = kept.lock().sets.values().map(Arc::clone).collect();
                for set in &sets {
                    channel.send_set(set, Message::Set).await?;
                }
                Message::End { sets: sets.len() }
            }
            other => {
                return Err(HandoverError::Unexpected {
                    got: other.name(),
                    wanted: "put, drop, fetch or count",
                });
            }
        };
        channel.send(&answer, &[]).await?;
    }
    Ok(())
}

/// Takes a part of a set; the answer once the set is whole.
fn put(
    part: SetPart,
    fds: Vec<std::os::fd::OwnedFd>,
    assembler: &mut Assembler,
    kept: &Mutex<Kept>,
) -> Result<Option<Message>, HandoverError> {
    Ok(assembler.add(part, fds)?.map(|set| kept.lock().keep(set)))
}

/// The sets, by pod and namespace cookie.
#[derive(Debug)]
struct Kept {
    sets: BTreeMap<(String, u64), Arc<ListenerSet>>,
    descriptors: usize,
    limits: Limits,
}

impl Kept {
    fn keep(&mut self, set: ListenerSet) -> Message {
        let key = (set.pod.clone(), set.cookie);
        let before = self.sets.get(&key).map(|old| old.descriptors());
        let full =
            |what: &str, limit| Message::Refused { refusal: Refusal::Full { what: what.to_owned(), limit } };
        if before.is_none() && self.sets.len() >= self.limits.pods {
            return full("pods", self.limits.pods);
        }
        let descriptors = self.descriptors - before.unwrap_or(0) + set.descriptors();
        if descriptors > self.limits.descriptors {
            return full("descriptors", self.limits.descriptors);
        }
        self.descriptors = descriptors;
        self.sets.insert(key, Arc::new(set));
        self.count()
    }

    fn forget(&mut self, pod: String, cookie: u64) -> Message {
        if let Some(set) = self.sets.remove(&(pod, cookie)) {
            self.descriptors -= set.descriptors();
        }
        self.count()
    }

    fn count(&self) -> Message {
        let Count { pods, descriptors } = Count { pods: self.sets.len(), descriptors: self.descriptors };
        Message::Holding { pods, descriptors }
    }
}

#[cfg(test)]
mod tests;
