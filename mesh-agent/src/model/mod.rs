//! Value types that every other module speaks: identities, workloads, services, policies, reasons, limits.
//! Owns: their shape and their text forms. Never: I/O, clocks, locks, randomness.
//! Called by everything below it in `ARCHITECTURE.md`'s list of modules.

pub mod connection;
pub mod endpoint;
pub mod identity;
pub mod limit;
pub mod pattern;
pub mod policy;
pub mod reason;
pub mod route;
pub mod service;
pub mod traffic;
pub mod workload;

pub use endpoint::Endpoint;
pub use identity::{Identity, IdentityError};
pub use limit::{Hits, Limit};
pub use policy::{AuthzAction, AuthzPolicy, MtlsMode, PeerAuth, PolicyRef};
pub use reason::Reason;
pub use service::{AppProtocol, Balance, Service, ServiceId, ServicePort};
pub use workload::{Labels, Workload, WorkloadId};
