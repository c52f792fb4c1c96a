//! Capture of the pods' sockets.

pub mod handover;
