//! `install.istio.io`: of an IstioOperator only `spec.meshConfig` means anything to Nodemesh.

pub const GROUP: &str = "install.istio.io";
pub const VERSIONS: [&str; 1] = ["v1alpha1"];
