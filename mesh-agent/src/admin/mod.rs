//! The agent's local API: typed JSON over a Unix socket, plus metrics and readiness over HTTP.
//! Owns: the views' shapes (the CLI reads them back), the routes, the socket's life. Never: holds state of
//! the mesh; an [`AdminSource`] answers.
//! Called by `agent` (implements the source, starts the servers) and by `cli` (client and views).

pub mod client;
#[cfg(test)]
pub(crate) mod fixtures;
pub mod query;
pub mod routes;
pub mod server;
pub mod socket;
pub mod views;
pub mod views_http;

pub use client::{Client, ClientError, Dial, DialError, Dialling, Stream};
pub use query::{AskedRequest, ExplainQuery};
pub use server::{AdminServer, HttpServer, Limits};
pub use socket::{SocketError, Takeover};
pub use views::*;
pub use views_http::*;

/// Answers the admin API. Each method takes a snapshot; none may block.
pub trait AdminSource: Send + Sync + 'static {
    fn status(&self) -> Status;
    /// The agent's own checks: capture, source, certificates, limits.
    fn checks(&self) -> Vec<Check>;
    fn workloads(&self) -> Vec<WorkloadView>;
    fn services(&self) -> Vec<ServiceView>;
    fn policies(&self) -> Vec<PolicyView>;
    fn certificates(&self) -> Vec<CertView>;
    /// Relayed and bypassed connections.
    fn connections(&self) -> Vec<ConnView>;
    fn explain(&self, query: &ExplainQuery) -> Result<Explanation, ExplainError>;
    /// The HTTP rules and the policy between a workload and a Service.
    fn routes(&self, query: &ExplainQuery) -> Result<RoutesView, ExplainError>;
    /// What is missing before the agent may take traffic; empty = ready.
    fn missing(&self) -> Vec<String>;
}

/// Why a question to `explain` has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExplainError {
    #[error("source: no workload `{0}` in the world; `mesh-agent workloads` lists them")]
    UnknownSource(String),
    #[error("destination: `{0}` is neither a workload, a Service nor an address; see `mesh-agent services`")]
    UnknownDestination(String),
    #[error(
        "destination: `{name}` is ambiguous: {candidates}; write the Service's host name or the pod's address"
    )]
    Ambiguous { name: String, candidates: String },
    #[error("destination: `{destination}` needs a port; one of {ports}")]
    PortNeeded { destination: String, ports: String },
}
