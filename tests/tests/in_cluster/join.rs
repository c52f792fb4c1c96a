//! A namespace with running pods joins the mesh and leaves it, and the mesh is removed.
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::mesh::{APP, Mesh, SOON};

const SHOP: &str = include_str!("shop.yaml");
const STRICT: &str = include_str!("strict.yaml");
const NEW_POD: &str = include_str!("new-pod.yaml");
const POLICY: &str = "/apis/security.istio.io/v1/namespaces/shop/peerauthentications/default";

/// From the pod `client` of `shop`, on node-a, to the Service `web`, whose pod is on node-b. The request arrives from
/// the client's own address.
fn get(mesh: &Mesh, path: &str) -> Result<()> {
    let said = mesh.app("shop", "client", &["get", &format!("http://web/{path}")])?;
    let client = mesh.ip("shop", "client")?;
    ensure!(said.contains(&format!("client={client}:")), "the server saw another client: {said}");
    Ok(())
}

fn on_the_link(mesh: &Mesh, marker: &str, clear: bool) -> Result<()> {
    mesh.on_the_link(marker, clear, || get(mesh, marker))
}

pub(crate) fn in_clear(mesh: &Mesh) -> Result<()> {
    mesh.cluster.apply(SHOP)?;
    mesh.cluster.wait_ready("shop", "", 2)?;
    mesh.cluster.wait("kube-proxy to know the Service", SOON, || Ok(get(mesh, "").is_ok()))?;
    on_the_link(mesh, "before-the-mesh", true)
}

pub(crate) fn unlabelled(mesh: &Mesh) -> Result<()> {
    on_the_link(mesh, "unlabelled", true)
}

pub(crate) fn enrolled(mesh: &Mesh) -> Result<()> {
    mesh.label("shop", true)?;
    mesh.wait_captured("shop", &["client", "web"])?;
    on_the_link(mesh, "in-the-mesh", false)?;
    let restarts = mesh.cluster.kubectl(&[
        "get",
        "pods",
        "-n",
        "shop",
        "-o",
        "jsonpath={.items[*].status.containerStatuses[*].restartCount}",
    ])?;
    ensure!(restarts.split_whitespace().all(|count| count == "0"), "pods were restarted: {restarts}");
    Ok(())
}

pub(crate) fn strict(mesh: &Mesh) -> Result<()> {
    mesh.cluster.apply(STRICT)?;
    mesh.cluster.wait("a pod outside the mesh to be refused", SOON, || {
        let outside = ["exec", "-n", "outside", "stranger", "--", APP, "get", "http://web.shop/"];
        Ok(mesh.cluster.kubectl(&outside).is_err())
    })?;
    on_the_link(mesh, "strict", false)?;
    // Longer than a failing readiness probe takes to show: it asks every second and gives up after three.
    std::thread::sleep(Duration::from_secs(5));
    mesh.cluster.wait_ready("shop", "", 2)
}

/// The pod's only process asks a STRICT pod at once, and ends with what became of it.
pub(crate) fn new_pod(mesh: &Mesh) -> Result<()> {
    mesh.cluster.apply(NEW_POD)?;
    mesh.ended("shop", "new").map(drop)
}

pub(crate) fn left(mesh: &Mesh) -> Result<()> {
    ensure!(mesh.cluster.object(POLICY)?.is_some(), "the policy of this step is not there");
    mesh.kubectl("delete peerauthentication -n shop default")?;
    mesh.label("shop", false)?;
    mesh.wait_captured("shop", &[])?;
    on_the_link(mesh, "left-the-mesh", true)
}

pub(crate) fn uninstall(mesh: &Mesh) -> Result<()> {
    mesh.agent(&["uninstall", "--crds"])?;
    for node in [0, 1] {
        let left = mesh.cluster.exec_in_node(
            node,
            &[
                "sh",
                "-c",
                "ls -d /sys/fs/bpf/nodemesh /opt/cni/bin/nodemesh-cni 2>/dev/null; \
                 grep -l nodemesh-cni /etc/cni/net.d/* 2>/dev/null; true",
            ],
        )?;
        ensure!(left.trim().is_empty(), "left on node {node}: {left}");
    }
    on_the_link(mesh, "after-the-mesh", true)
}
