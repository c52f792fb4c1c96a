//! What the agent tells about itself: metrics with Istio's names, the access log, the table of live
//! connections, and the logs' set-up.
//! Owns: every counter and label that leaves the process, and the right to cut a live connection.
//! Never: decides anything about a connection, or reads the world (callers hand the facts in).
//! Called by `proxy` (once per connection), `agent` (probe and set-up) and `admin` (scrapes and listings).

pub mod access_log;
pub mod logging;
pub mod meta;
pub mod metrics;
pub mod table;

#[cfg(test)]
mod fixtures;

pub use access_log::{AccessLog, RequestLine};
pub use meta::{ConnMeta, DecisionId, Direction, Party, Path};
pub use metrics::request::{Effort, Outcome, RequestHandles};
pub use metrics::{Limit, Metrics, Probe};
pub use table::{BypassedFlow, Conn, ConnSnapshot, ConnectionTable};
