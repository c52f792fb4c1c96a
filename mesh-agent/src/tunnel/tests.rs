//! The tunnel over loopback with real TLS: `open` (CONNECT and its answers), `trust` (who is refused), `flow`
//! (flow control and coalescing), `life` (pool, keepalive, drain), `expiry` (certificates that end under a tunnel),
//! `full` (limits of a pool and of a tunnel), `floods` (limits under attack).

mod expiry;
mod floods;
mod flow;
mod full;
mod life;
mod open;
mod trust;
