//! The life of an agent: start, readiness, drain, planned restart, sudden death with and without a holder.
#[path = "life/death.rs"]
mod death;
#[path = "life/drain.rs"]
mod drain;
#[path = "life/flood.rs"]
mod flood;
#[path = "life/limits.rs"]
mod limits;
#[path = "life/outside.rs"]
mod outside;
#[path = "life/preflight.rs"]
mod preflight;
#[path = "life/restart.rs"]
mod restart;
#[path = "life/shop.rs"]
mod shop;
#[path = "life/start.rs"]
mod start;
