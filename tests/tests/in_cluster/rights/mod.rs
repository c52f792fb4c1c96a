//! That the mesh needs each right it is given: every RBAC rule and every capability of the agent is taken away in turn,
//! and something breaks.
pub(crate) mod capabilities;
pub(crate) mod rules;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::mesh::Mesh;

/// The one object of a kind and name among what `mesh-agent install` prints.
fn shipped(mesh: &Mesh, kind: &str, name: &str) -> Result<Value> {
    let text = mesh.agent(&["install"])?;
    let all: Vec<Value> = serde_saphyr::from_multiple(&text).context("the manifests are no YAML")?;
    let found = all.into_iter().find(|one| one["kind"] == kind && one["metadata"]["name"] == name);
    found.with_context(|| format!("no {kind} {name} among the manifests"))
}

/// Installs the mesh with its agent on node-a only: node-b is for agents of these tests.
pub(crate) fn install_on_node_a(mesh: &Mesh) -> Result<()> {
    let mut text = mesh.agent(&["install", "--crds"])?;
    let daemonset =
        text.find("kind: DaemonSet\nmetadata:\n  name: nodemesh-agent").context("no DaemonSet")?;
    const SELECTOR: &str = "      nodeSelector:\n";
    let at = daemonset + text[daemonset..].find(SELECTOR).context("no nodeSelector")? + SELECTOR.len();
    text.insert_str(at, "        kubernetes.io/hostname: node-a\n");
    mesh.load_image()?;
    mesh.cluster.apply(&text)?;
    mesh.cluster.wait_ready(crate::mesh::SYSTEM, "app=nodemesh-controller", 2)?;
    mesh.cluster.wait_ready(crate::mesh::SYSTEM, "app=nodemesh-agent", 1)
}
