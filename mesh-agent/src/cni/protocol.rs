//! What plugin and agent say to each other: one question, one answer, each as a length (four bytes, little endian) and
//! JSON text. The pod's open network namespace travels with the first byte of a question (SCM_RIGHTS), so that the
//! agent need not see the runtime's mounts.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Version of the protocol. The plugin on a node may be older than the agent, or newer.
pub const PROTOCOL_VERSION: u32 = 1;

/// A question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    pub version: u32,
    pub ask: Ask,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ask {
    /// The pod's network stands; a namespace comes along.
    Add { pod: PodRef, addresses: Vec<IpAddr> },
    /// The pod's network goes.
    Del { sandbox: String },
    /// Is the pod as an `Add` has left it? A namespace comes along.
    Check { pod: PodRef },
    /// Only these sandboxes are left.
    Gc { sandboxes: Vec<String> },
}

impl Ask {
    /// Whether a network namespace must come along.
    pub fn has_namespace(&self) -> bool {
        matches!(self, Self::Add { .. } | Self::Check { .. })
    }
}

/// The pod as the runtime names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRef {
    pub namespace: String,
    pub name: String,
    /// Not every runtime tells it.
    pub uid: Option<String>,
    /// `CNI_CONTAINERID`.
    pub sandbox: String,
}

impl PodRef {
    /// The ids that the pod's workload may have: a manifest without UID makes one without.
    pub fn ids(&self) -> impl Iterator<Item = String> {
        let plain = format!("{}/{}", self.namespace, self.name);
        self.uid.as_ref().map(|uid| format!("{plain}/{uid}")).into_iter().chain([plain])
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// The pod is in the mesh: all that it opens or is sent is captured from now on.
    Enrolled,
    /// The pod is not to be in the mesh.
    Outside,
    /// `Del` and `Gc`.
    Done,
    /// Not now; why, and what to do.
    Refused { message: String },
}
