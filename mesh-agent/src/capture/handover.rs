//! Passing of the pods' listening sockets from one agent to the next, so that a connection opened during a
//! restart waits in a backlog instead of being refused.
//!
//! Two ways, one wire format ([`wire`], [`message`]):
//! - planned restart: the running agent's [`HandoverServer`] gives its sets to a successor ([`Predecessor`]);
//! - unplanned: a holder process ([`holder`]) keeps a duplicate of every set; the next agent fetches them
//!   ([`HolderClient`]).
//!
//! Owns: both Unix sockets and the descriptors while they travel. Never: opens, accepts on or closes anybody's
//! listener, or touches the kernel programs. Called by the agent's composition root and `mesh-agent hold`.
//!
//! A passed descriptor is the same open socket, flags and backlog included: its `O_NONBLOCK` is shared by
//! everybody who holds it, and an epoll registration outlives a plain `close` of one duplicate. An owner that
//! stops accepting must therefore deregister (dropping a tokio listener does), not only close.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

mod channel;
pub mod holder;
mod holder_client;
mod message;
mod predecessor;
mod server;
mod socket;
pub(crate) mod wire;

pub use holder_client::{Count, HolderClient};
pub use message::{Kind, Refusal, Service};
pub use predecessor::Predecessor;
pub use server::{Event, HandoverServer};

/// Version of the wire format. Both ends must have the same.
pub const PROTOCOL_VERSION: u32 = 1;
/// Descriptors in one message: the kernel's `SCM_MAX_FD`. Larger sets travel in several messages.
pub const MAX_DESCRIPTORS_PER_MESSAGE: usize = 253;
/// Bytes of one message's JSON text.
pub const MAX_MESSAGE_BYTES: usize = 64 * 1024;
/// Bytes of a pod's name in a set.
pub const MAX_POD_NAME_BYTES: usize = 1024;
/// Descriptors in one pod's set (three per worker).
pub const MAX_DESCRIPTORS_PER_POD: usize = 1024;
/// Sets in one transfer. The kubelet's own default limit is 110 pods on a node.
pub const MAX_SETS: usize = 4096;
/// How long a peer may take for one step of the conversation.
pub const STEP_LIMIT: Duration = Duration::from_secs(10);
/// How long a successor that took the sets may take until it is ready; then the predecessor forgets it.
pub const READY_LIMIT: Duration = Duration::from_secs(120);
/// How long to leave the backlog alone after `accept` failed (out of descriptors, most likely).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// All pods' sets.
pub type Sets = Vec<ListenerSet>;

/// The listeners of one pod, per kind in the order of the workers.
#[derive(Debug)]
pub struct ListenerSet {
    /// The pod, in whatever text form the caller knows it by.
    pub pod: String,
    /// The network namespace's cookie: tells a pod from an earlier one with the same name.
    pub cookie: u64,
    pub outbound: Vec<OwnedFd>,
    pub inbound: Vec<OwnedFd>,
    pub hbone: Vec<OwnedFd>,
}

impl ListenerSet {
    pub fn empty(pod: impl Into<String>, cookie: u64) -> Self {
        Self { pod: pod.into(), cookie, outbound: Vec::new(), inbound: Vec::new(), hbone: Vec::new() }
    }

    /// How many descriptors it holds.
    pub fn descriptors(&self) -> usize {
        self.outbound.len() + self.inbound.len() + self.hbone.len()
    }

    /// The same sockets under new descriptors of this process.
    pub fn try_clone(&self) -> Result<Self, HandoverError> {
        let clone = |fds: &[OwnedFd]| {
            fds.iter()
                .map(|fd| {
                    fd.try_clone()
                        .map_err(|source| HandoverError::Io { doing: "duplicate a listener", source })
                })
                .collect::<Result<Vec<_>, _>>()
        };
        Ok(Self {
            pod: self.pod.clone(),
            cookie: self.cookie,
            outbound: clone(&self.outbound)?,
            inbound: clone(&self.inbound)?,
            hbone: clone(&self.hbone)?,
        })
    }

    /// Every listener.
    pub fn listeners(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.each().map(|(_, _, listener)| listener)
    }

    fn of_kind(&self, kind: Kind) -> &[OwnedFd] {
        match kind {
            Kind::Outbound => &self.outbound,
            Kind::Inbound => &self.inbound,
            Kind::Hbone => &self.hbone,
        }
    }

    fn of_kind_mut(&mut self, kind: Kind) -> &mut Vec<OwnedFd> {
        match kind {
            Kind::Outbound => &mut self.outbound,
            Kind::Inbound => &mut self.inbound,
            Kind::Hbone => &mut self.hbone,
        }
    }

    /// Every descriptor with its kind and worker, in the order in which it travels.
    fn each(&self) -> impl Iterator<Item = (Kind, usize, BorrowedFd<'_>)> {
        Kind::ALL.into_iter().flat_map(move |kind| {
            self.of_kind(kind).iter().enumerate().map(move |(worker, fd)| (kind, worker, fd.as_fd()))
        })
    }
}

/// Why a handover did not happen. Nothing that was received stays open after one.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    #[error(
        "{path}: cannot make the socket: {source}; check that the folder exists and is writable, and the path is shorter than 108 bytes"
    )]
    Bind { path: PathBuf, source: std::io::Error },
    #[error("{path}: another process already answers there; stop it, or choose another --socket")]
    InUse { path: PathBuf },
    #[error("{path}: exists and is not a socket; remove it, or choose another --socket")]
    NotASocket { path: PathBuf },
    #[error("{path}: nobody answers; start the process that serves it, or start without a handover")]
    NobodyThere { path: PathBuf },
    #[error("{path}: cannot connect: {source}; check the path's permissions")]
    Connect { path: PathBuf, source: std::io::Error },
    #[error("the peer runs as uid {uid}, this process as {expected}; run both as the same user")]
    PeerUid { uid: u32, expected: u32 },
    #[error(
        "the peer speaks handover protocol {theirs}, this process {ours}; run both ends from the same release, or restart without a handover"
    )]
    Version { theirs: u32, ours: u32 },
    #[error(
        "the peer serves `{theirs}`, `{ours}` was wanted; check which socket path each process was given"
    )]
    WrongService { theirs: Service, ours: Service },
    #[error(
        "the message ended after {got} of {wanted} bytes; the peer died or is not Nodemesh, start the handover again"
    )]
    Truncated { got: usize, wanted: usize },
    #[error(
        "a message of {bytes} bytes, at most {limit} are taken; the peer is not Nodemesh of the same release"
    )]
    TooLong { bytes: usize, limit: usize },
    #[error("a message that cannot be read: {source}; run both ends from the same release")]
    Unreadable { source: serde_json::Error },
    #[error("`{got}` came where {wanted} was due; run both ends from the same release")]
    Unexpected { got: &'static str, wanted: &'static str },
    #[error("a message with {came} descriptors names {named}; run both ends from the same release")]
    DescriptorCount { named: usize, came: usize },
    #[error(
        "the kernel could not hand over every descriptor; raise this process's limit of open files (RLIMIT_NOFILE)"
    )]
    DescriptorsLost,
    #[error(
        "too many descriptors of this user are in flight; raise this process's limit of open files (RLIMIT_NOFILE) or grant it CAP_SYS_RESOURCE"
    )]
    TooManyInFlight,
    #[error(
        "pod {pod}: descriptor {worker} of {kind} is not a listening TCP socket; run both ends from the same release"
    )]
    NotAListener { pod: String, kind: Kind, worker: usize },
    #[error(
        "pod {pod}: its descriptors of {kind} came out of order ({worker} where {wanted} was due); run both ends from the same release"
    )]
    OutOfOrder { pod: String, kind: Kind, worker: usize, wanted: usize },
    #[error(
        "pod {pod}: a message of it came inside the set of pod {inside}; run both ends from the same release"
    )]
    MixedSets { pod: String, inside: String },
    #[error("{what}: {value}, the limit is {limit}; {remedy}")]
    Limit { what: &'static str, value: usize, limit: usize, remedy: &'static str },
    #[error("the peer said {said} sets and sent {came}; start the handover again")]
    SetCount { said: usize, came: usize },
    #[error("the peer refused: {refusal}")]
    Refused { refusal: Refusal },
    #[error("the peer hung up while {wanted} was due; see its log, then start the handover again")]
    Closed { wanted: &'static str },
    #[error("waited {limit:?} in vain for the peer ({doing}); see its log, then start the handover again")]
    Late { doing: &'static str, limit: Duration },
    #[error("the sets were already handed to a successor; bind a new handover socket to hand over again")]
    Finished,
    #[error("cannot {doing}: {source}; see the system's log")]
    Io { doing: &'static str, source: std::io::Error },
}

#[cfg(test)]
mod tests;
