//! The controller as a process against a real API server: issuance by real bound tokens and its refusals, the leader
//! lease, statuses and Events as `kubectl describe` shows them, rotation, and an API server that goes and comes.
//! It runs under the RBAC that it needs and no more.
mod issuance;
mod leader;
mod rotation;
mod stage;
mod status;
