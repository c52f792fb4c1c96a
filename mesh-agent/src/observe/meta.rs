//! Facts about one connection, as metrics, the access log and the connection table need them.
//! Owns: their shape and text forms. Never: looks anything up.
//! Called by `proxy`, which fills them in, and by everything in `observe`.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use serde::{Deserialize, Serialize};

use crate::model::connection::ConnRule;
use crate::model::{Identity, Service, Workload};

/// Which end of the connection is a pod of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// A pod of this node connected to somewhere else.
    Outbound,
    /// Somewhere else connected to a pod of this node.
    Inbound,
    /// Both pods are on this node; one agent pass serves both ends.
    Local,
}

impl Direction {
    pub const ALL: [Self; 3] = [Self::Outbound, Self::Inbound, Self::Local];

    pub const fn label(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
            Self::Local => "local",
        }
    }
}

/// How the bytes travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Path {
    /// Through the mutual TLS tunnel between two nodes.
    Hbone,
    /// Relayed by this agent between two pods of the node.
    Local,
    /// Plaintext to or from a peer outside the mesh, with a known workload or Service at one end.
    Plain,
    /// Plaintext to an address that the mesh knows nothing about.
    Passthrough,
    /// Straight through the kernel between two pods of the node.
    Bypass,
}

impl Path {
    pub const ALL: [Self; 5] = [Self::Hbone, Self::Local, Self::Plain, Self::Passthrough, Self::Bypass];

    pub const fn label(self) -> &'static str {
        match self {
            Self::Hbone => "hbone",
            Self::Local => "local",
            Self::Plain => "plain",
            Self::Passthrough => "passthrough",
            Self::Bypass => "bypass",
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.label())
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.label())
    }
}

/// One end of a connection.
#[derive(Clone, Debug, PartialEq)]
pub struct Party {
    /// The pod, if the world knows one.
    pub workload: Option<Arc<Workload>>,
    /// The identity it proved (or, on this node, that the agent knows it to have); None for plaintext peers.
    pub identity: Option<Identity>,
    pub address: SocketAddr,
}

impl Party {
    /// A peer of which only the address is known.
    pub const fn unknown(address: SocketAddr) -> Self {
        Self { workload: None, identity: None, address }
    }

    /// A pod of this node, whose identity needs no proof.
    pub fn local(workload: Arc<Workload>, address: SocketAddr) -> Self {
        Self { identity: Some(workload.identity.clone()), workload: Some(workload), address }
    }
}

/// Everything that is told about one connection.
#[derive(Clone, Debug, PartialEq)]
pub struct ConnMeta {
    pub direction: Direction,
    pub path: Path,
    pub source: Party,
    /// The pod that serves; its address is the one the application sees.
    pub destination: Party,
    /// The tunnel's far end, for [`Path::Hbone`].
    pub hbone_address: Option<SocketAddr>,
    pub service: Option<Arc<Service>>,
    /// The rule for connections that sent it there.
    pub rule: Option<Arc<ConnRule>>,
    /// Shared with the other node over the tunnel, so that both logs can be joined.
    pub decision_id: DecisionId,
}

/// Names one decision in logs, answers and refusals: 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DecisionId(pub u64);

impl DecisionId {
    /// A new id, unlike any other of this process and most likely of the mesh. It is a name, not a secret.
    pub fn new() -> Self {
        static SEED: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(std::process::id()));
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let mut z =
            SEED.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        // SplitMix64's finaliser is a bijection: distinct counters stay distinct.
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Self(z ^ (z >> 31))
    }
}

impl Default for DecisionId {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for DecisionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Why a text is no [`DecisionId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a decision id is 16 hexadecimal digits in lower case")]
pub struct DecisionIdError;

impl FromStr for DecisionId {
    type Err = DecisionIdError;

    /// Strict, because the text comes from a peer's header.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() != 16 || !text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(DecisionIdError);
        }
        u64::from_str_radix(text, 16).map(Self).map_err(|_bad_digit| DecisionIdError)
    }
}

#[cfg(test)]
mod tests;
