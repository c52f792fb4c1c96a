//! Nodemesh's agent. See `ARCHITECTURE.md` for the map of this crate.
pub mod identity;
pub mod model;
pub mod proxy;
pub mod tunnel;
