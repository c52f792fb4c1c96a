//! Istio's resources.

pub mod install;
pub mod mesh;
pub mod networking;
pub mod security;
pub mod status;
