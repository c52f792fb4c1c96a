//! The mesh as its users run it: the shipped manifests and image on a real cluster of two nodes.
//!
//! A test is one cluster and many steps: a step that fails says which one it was. Tests run side by side.
mod authority;
mod dry_run;
mod join;
mod late;
mod mesh;
mod names;
mod policy;
mod rights;
mod traffic;
mod workloads;

use std::time::Duration;

use anyhow::{Context, Result};

use crate::mesh::Mesh;
use crate::traffic::Traffic;

/// How long there is no API server.
const AWAY: Duration = Duration::from_secs(60);

/// Installed from what is shipped, the mesh takes in running pods by their namespace's label without a restart, probes
/// of STRICT pods pass, a new pod's first packet is in the mesh, every name and address leads where it did, policies
/// are in force at once, and uninstalled it leaves pods connected and no trace.
#[test]
fn a_namespace_joins_and_leaves_the_mesh_on_a_real_cluster() -> Result<()> {
    let mesh = Mesh::boot()?;
    mesh.step("pods run without a mesh, in clear", join::in_clear)?;
    mesh.step("the mesh is installed", |mesh| mesh.install(&["--crds"]))?;
    mesh.step("without the label nothing changes", join::unlabelled)?;
    mesh.step("with it running pods talk by mutual TLS", join::enrolled)?;
    mesh.step("probes of STRICT pods pass, and strangers do not", join::strict)?;
    mesh.step("a new pod's first packet is in the mesh", join::new_pod)?;
    mesh.step("pods for names and addresses", names::start)?;
    mesh.step("ClusterIP by CoreDNS name", names::cluster_ip)?;
    mesh.step("a headless Service", names::headless)?;
    mesh.step("a pod's own Service", names::hairpin)?;
    mesh.step("a NodePort from outside", names::node_port)?;
    mesh.step("the API server from inside", names::api_server)?;
    mesh.step("probes of every kind", workloads::probes)?;
    mesh.step("a Job ends", workloads::job)?;
    mesh.step("init containers talk", workloads::init_containers)?;
    mesh.step("a container starts again in place", workloads::restart_in_place)?;
    mesh.step("pods for policies", policy::start)?;
    mesh.step("a PeerAuthentication is in force", policy::peer_authentication)?;
    mesh.step("an AuthorizationPolicy is in force", policy::authorization_policy)?;
    mesh.step("the guide's policy on requests holds", policy::requests)?;
    mesh.step("without the label pods talk in clear again", join::left)?;
    mesh.step("nothing is left of the mesh", join::uninstall)
}

/// Installed before Istio's kinds, the mesh takes them up when they come. Under steady traffic agents are killed, replaced
/// and drained, and the API server is away, without one failed new connection; afterwards new pods get certificates. A
/// killed node's pods come back into the mesh.
#[test]
fn agents_nodes_and_the_api_server_go_under_traffic() -> Result<()> {
    let mesh = Mesh::boot()?;
    mesh.step("the mesh is installed without CRDs", |mesh| mesh.install(&[]))?;
    mesh.step("pods join where there are no CRDs", late::without_crds)?;
    mesh.step("the CRDs are installed later", late::crds)?;
    mesh.step("what `kubectl describe` tells of policies", late::describe)?;
    let traffic = Traffic::start(&mesh).context("traffic to both nodes")?;
    mesh.step("agents are killed", |_| traffic.agent_killed())?;
    mesh.step("agents are replaced by a rollout", |_| traffic.rollout())?;
    mesh.step("a node is drained of its agent", |_| traffic.drained())?;
    mesh.step("the API server is away", |_| traffic.no_api_server(AWAY))?;
    mesh.step("a node is killed and boots again", |_| traffic.node_killed())
}

/// What is shipped is what an API server takes. The CA refuses whom it must. Agent and controller need each right that they are given.
#[test]
fn every_right_is_needed() -> Result<()> {
    let mesh = Mesh::boot()?;
    mesh.step("a server-side dry run of what is shipped", dry_run::deploy)?;
    mesh.step("the mesh is installed on one node", rights::install_on_node_a)?;
    mesh.step("the CA refuses", authority::refusals)?;
    mesh.step("Gateway API's kinds", rights::routes)?;
    mesh.step("RBAC rules of the agent", rights::rules::each_is_needed)?;
    mesh.step("capabilities of the agent", rights::capabilities::each_is_needed)?;
    mesh.step("RBAC rules of the controller", rights::controller::each_is_needed)
}
