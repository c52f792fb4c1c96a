//! Nodemesh's agent. See `ARCHITECTURE.md` for the map of this crate.
pub mod admin;
pub mod agent;
pub mod api;
pub mod capture;
pub mod cli;
pub mod cni;
pub mod compile;
pub mod config;
pub mod decide;
pub mod identity;
pub mod model;
pub mod net;
pub mod observe;
pub mod proxy;
pub mod source;
pub mod tunnel;
pub mod world;
