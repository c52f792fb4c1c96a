//! The chained CNI plugin (`nodemesh-cni`), by which a new pod is in the mesh before its first packet. Owns: both ends
//! of the plugin's socket, the plugin's own rules for when no agent answers, and the plugin's files on the node.
//! Never: enrols (the agent's control loop does), makes interfaces or addresses (the plugins before it do).
//!
//! The container runtime calls the plugin when the pod's network stands and no process of the pod runs yet, and waits
//! for it. The plugin hands the open namespace to the agent and waits in turn. Without an agent it refuses the pod, so
//! that the kubelet tries again, unless the pod's namespace was not in the mesh when an agent last knew ([`roll`]).
//!
//! Called by `main` ([`plugin`]), by `agent` ([`server`], [`roll`], [`keeper`]) and by the verbs that install ([`files`]).

use std::time::Duration;

pub mod files;
mod json;
pub mod keeper;
pub mod plugin;
pub mod protocol;
pub mod roll;
pub mod server;
mod spec;

/// The plugin's `type` in network configurations, and the name of its program.
pub const PLUGIN: &str = "nodemesh-cni";
/// Nodemesh's own namespace: its pods must be able to start without an agent.
pub const OWN_NAMESPACE: &str = "nodemesh-system";

/// How long the agent waits for its source to tell of a pod that the plugin asks about. The kubelet has the pod from
/// the API server already, so this is the time that two watches may lie apart, or a bad moment may last.
pub const KNOWN_WITHIN: Duration = Duration::from_secs(10);
/// How long the plugin waits for an answer. More than [`KNOWN_WITHIN`], less than the two minutes a kubelet waits.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause before the plugin asks again after an agent went away without an answer: another one may be taking over.
pub const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// Questions that the agent answers at a time; a node starts pods in tens, not in hundreds.
pub const QUESTIONS_MAX: usize = 64;
/// Bytes of one question or answer.
pub const MESSAGE_MAX_BYTES: usize = 256 * 1024;
/// Bytes of a network configuration on standard input, or in a file.
pub const CONFIG_MAX_BYTES: u64 = 1 << 20;
