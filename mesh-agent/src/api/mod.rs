//! Kubernetes-facing types: Istio's resources as their CRDs define them, Kubernetes' own from `k8s-openapi`, and
//! the labels and annotations that Nodemesh reads. Owns shapes only: meaning is given by `compile`.
//! Called by `compile`, and by the cluster source and CRD generation later.

pub mod gateway;
pub mod istio;
pub mod names;

pub use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod, Service};
pub use k8s_openapi::api::discovery::v1::EndpointSlice;
