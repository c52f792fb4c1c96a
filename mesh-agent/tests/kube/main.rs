//! The Kubernetes source against a real kube-apiserver and etcd. Needs root and the cluster's programs, which
//! `cargo xtask setup` builds.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod gate;
mod kit;
mod outage;
mod reading;
mod settings;
