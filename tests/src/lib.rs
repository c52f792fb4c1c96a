//! The lab: nodes and pods made of real network namespaces, real agents as processes, real applications.
//!
//! Owns everything a scenario in `tests/tests` needs to build a small cluster on this machine and to look at it from
//! outside. It mocks nothing and knows nothing of the agent's inside: agents are started, asked and stopped by the
//! names in the README. A lab leaves nothing behind, not even after a panic or a kill: what a dead process left is
//! swept by the next lab that starts.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use mesh_tests::{Lab, PodSpec, apps::App};
//! let lab = Lab::two_nodes("example")?;
//! let client = lab.pod(PodSpec::new("shop", "client", "node-a"))?;
//! let server = lab.pod(PodSpec::new("shop", "server", "node-b"))?;
//! let echo = App::echo(&server, 8080)?;
//! let stream = client.connect(server.v6(8080))?;
//! # Ok(())
//! # }
//! ```
pub mod agent;
pub mod apps;
mod cgroups;
pub mod client;
pub mod cluster;
pub mod guide;
pub mod helm;
pub mod http2;
mod ip;
pub mod lab;
pub mod leaks;
pub mod manifests;
pub mod netns;
pub mod process;
mod remains;
pub mod sniff;
pub mod wait;

pub use agent::{Agent, AgentSpec};
pub use apps::App;
pub use cluster::{ApiServer, Cluster};
pub use lab::{Lab, Node, Pod, PodSpec};
pub use manifests::{Manifests, ServiceSpec};
pub use netns::NetNs;
pub use process::Process;
pub use wait::{eventually, hold};
