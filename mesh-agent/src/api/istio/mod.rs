//! Istio's resources.

pub mod security;
pub mod status;
