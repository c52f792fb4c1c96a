//! Nodemesh's agent. See `ARCHITECTURE.md` for the map of this crate.
pub mod api;
pub mod compile;
pub mod decide;
pub mod model;
pub mod source;
pub mod world;
