//! Istio's resources.

pub mod security;
