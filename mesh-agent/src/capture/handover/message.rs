//! What the two ends say to each other, and the splitting and joining of a pod's set.
//! Owns: the messages' shape and every check of a received set. Never: I/O beyond asking a descriptor what it
//! is. Called by the clients and servers of [`super`].

use std::collections::VecDeque;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{SockType, getsockopt, sockopt};
use serde::{Deserialize, Serialize};

use super::{
    HandoverError, ListenerSet, MAX_DESCRIPTORS_PER_MESSAGE, MAX_DESCRIPTORS_PER_POD, MAX_POD_NAME_BYTES,
};

/// What a listener is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Outbound,
    Inbound,
    Hbone,
}

impl Kind {
    pub(super) const ALL: [Self; 3] = [Self::Outbound, Self::Inbound, Self::Hbone];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
            Self::Hbone => "hbone",
        })
    }
}

/// Which of the two sockets a process serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Service {
    Handover,
    Holder,
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Handover => "handover",
            Self::Holder => "holder",
        })
    }
}

/// Why one end does not go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// Another successor is being served, or all connections of the holder are taken.
    Busy,
    /// The holder's limit of pods, or of descriptors, is reached.
    Full { what: String, limit: usize },
    /// The peer broke the protocol; the text is the error of the end that noticed.
    Protocol { error: String },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Busy => {
                f.write_str("it already serves as many peers as it takes; end the other one or wait for it")
            }
            Self::Full { what, limit } => {
                write!(f, "it holds its limit of {limit} {what}; drop sets of pods that are gone")
            }
            Self::Protocol { error } => f.write_str(error),
        }
    }
}

/// One message; its descriptors travel beside it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Message {
    /// First from both ends. Its shape never changes between versions, or no end could name the other's.
    Hello { version: u32, service: Service },
    /// Successor: give me all sets.
    Take,
    /// A set, or a part of one (answer to `Take`, `Ready` and `Fetch`).
    Set(SetPart),
    /// That were all sets.
    End { sets: usize },
    /// Successor: I accept connections now. Answered by the sets that came since, `End` and `Done`.
    Ready,
    /// Predecessor: the socket's path is yours.
    Done,
    /// Agent to holder: keep this set. Parts are answered once, after the last.
    Put(SetPart),
    /// Agent to holder: forget this set.
    Drop { pod: String, cookie: u64 },
    /// Agent to holder: give me all sets (and keep them).
    Fetch,
    /// Agent to holder: how much do you hold?
    Count,
    /// Holder: done; this is what I hold now.
    Holding { pods: usize, descriptors: usize },
    /// No, and the connection ends (but after `Full`).
    Refused { refusal: Refusal },
}

impl Message {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Hello { .. } => "hello",
            Self::Take => "take",
            Self::Set(_) => "set",
            Self::End { .. } => "end",
            Self::Ready => "ready",
            Self::Done => "done",
            Self::Put(_) => "put",
            Self::Drop { .. } => "drop",
            Self::Fetch => "fetch",
            Self::Count => "count",
            Self::Holding { .. } => "holding",
            Self::Refused { .. } => "refused",
        }
    }

    /// How many descriptors must travel with it.
    pub(super) fn descriptors(&self) -> usize {
        match self {
            Self::Set(part) | Self::Put(part) => part.fds.len(),
            _ => 0,
        }
    }
}

/// A pod's set, or a part of one where it has more descriptors than one message carries.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SetPart {
    pub(super) pod: String,
    pub(super) cookie: u64,
    /// Kind and worker of each descriptor, in the order in which they travel.
    pub(super) fds: Vec<(Kind, usize)>,
    pub(super) last: bool,
}

/// A set as the messages that carry it.
pub(super) fn split(set: &ListenerSet) -> Result<Vec<(SetPart, Vec<BorrowedFd<'_>>)>, HandoverError> {
    check_size(&set.pod, set.descriptors())?;
    let mut rest: VecDeque<_> = set.each().collect();
    let mut parts = Vec::new();
    loop {
        let count = rest.len().min(MAX_DESCRIPTORS_PER_MESSAGE);
        let (mut kinds, mut fds) = (Vec::with_capacity(count), Vec::with_capacity(count));
        for (kind, worker, fd) in rest.drain(..count) {
            kinds.push((kind, worker));
            fds.push(fd);
        }
        let last = rest.is_empty();
        parts.push((SetPart { pod: set.pod.clone(), cookie: set.cookie, fds: kinds, last }, fds));
        if last {
            return Ok(parts);
        }
    }
}

fn check_size(pod: &str, descriptors: usize) -> Result<(), HandoverError> {
    if pod.len() > MAX_POD_NAME_BYTES {
        let remedy = "name the pod by its uid or by NAMESPACE/NAME";
        return Err(HandoverError::Limit {
            what: "bytes of a pod's name",
            value: pod.len(),
            limit: MAX_POD_NAME_BYTES,
            remedy,
        });
    }
    if descriptors > MAX_DESCRIPTORS_PER_POD {
        return Err(HandoverError::Limit {
            what: "descriptors of one pod",
            value: descriptors,
            limit: MAX_DESCRIPTORS_PER_POD,
            remedy: "run the agent with fewer workers",
        });
    }
    Ok(())
}

/// Joins parts to sets. Dropping it closes what an unfinished set brought.
#[derive(Debug, Default)]
pub(super) struct Assembler {
    open: Option<ListenerSet>,
}

impl Assembler {
    /// Whether a set has begun and not ended.
    pub(super) fn unfinished(&self) -> bool {
        self.open.is_some()
    }

    /// Takes a part; the whole set if it was the last.
    pub(super) fn add(
        &mut self,
        part: SetPart,
        fds: Vec<OwnedFd>,
    ) -> Result<Option<ListenerSet>, HandoverError> {
        let mut set = match self.open.take() {
            Some(set) if set.pod != part.pod || set.cookie != part.cookie => {
                return Err(HandoverError::MixedSets { pod: part.pod, inside: set.pod });
            }
            Some(set) => set,
            None => ListenerSet::empty(part.pod, part.cookie),
        };
        check_size(&set.pod, set.descriptors() + fds.len())?;
        for ((kind, worker), fd) in part.fds.into_iter().zip(fds) {
            if !is_listener(fd.as_fd()) {
                return Err(HandoverError::NotAListener { pod: set.pod, kind, worker });
            }
            let wanted = set.of_kind(kind).len();
            if worker != wanted {
                return Err(HandoverError::OutOfOrder { pod: set.pod, kind, worker, wanted });
            }
            set.of_kind_mut(kind).push(fd);
        }
        if part.last {
            return Ok(Some(set));
        }
        self.open = Some(set);
        Ok(None)
    }
}

/// Whether the descriptor is a TCP socket that listens, whatever namespace it is in.
fn is_listener(fd: BorrowedFd<'_>) -> bool {
    getsockopt(&fd, sockopt::AcceptConn).unwrap_or(false)
        && getsockopt(&fd, sockopt::SockType).is_ok_and(|kind| kind == SockType::Stream)
        && socket2::SockRef::from(&fd)
            .protocol()
            .is_ok_and(|protocol| protocol == Some(socket2::Protocol::TCP))
}

#[cfg(test)]
mod tests;
