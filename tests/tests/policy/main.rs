//! What policies say, observed by real connections: who gets in, who is cut, and what the agent says about it.
mod authorization;
mod cut;
mod enrolment;
mod explain;
mod manifests;
#[path = "../security/mesh.rs"]
mod mesh;
mod peer_authentication;
mod rotation;
mod steps;
