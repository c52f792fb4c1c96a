//! Nodemesh's agent. See `ARCHITECTURE.md` for the map of this crate.
pub mod admin;
pub mod agent;
pub mod cli;
pub mod config;
pub mod model;
pub mod observe;
