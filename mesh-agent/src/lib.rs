//! Nodemesh's agent. See `ARCHITECTURE.md` for the map of this crate.
pub mod capture;
pub mod model;
pub mod net;
