//! The mesh as its users run it: the shipped manifests and image on a real cluster of two nodes.
//!
//! One cluster for all steps: a step that fails says which one it was.
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use mesh_tests::{Cluster, agent};

const SOON: Duration = Duration::from_secs(60);
const APP: &str = "nodemesh-test-app";
const SHOP: &str = include_str!("shop.yaml");
const STRICT: &str = include_str!("strict.yaml");
const NEW_POD: &str = include_str!("new-pod.yaml");

struct Mesh {
    cluster: Cluster,
}

/// Installed from what is shipped, the mesh takes in running pods by their namespace's label without a restart, probes
/// of STRICT pods pass, a new pod's first packet is in the mesh, and uninstalled it leaves pods connected and no trace.
#[test]
fn a_namespace_joins_and_leaves_the_mesh_on_a_real_cluster() -> Result<()> {
    let mesh = Mesh { cluster: Cluster::start()? };
    let step = |name: &str, done: Result<()>| done.with_context(|| format!("step: {name}"));
    step("pods run without a mesh, in clear", mesh.in_clear("before-the-mesh"))?;
    step("the mesh is installed", mesh.install())?;
    step("without the label nothing changes", mesh.on_the_link("unlabelled", true))?;
    step("with it running pods talk by mutual TLS", mesh.enrolled())?;
    step("probes of STRICT pods pass, and strangers do not", mesh.strict())?;
    step("a new pod's first packet is in the mesh", mesh.new_pod())?;
    step("without the label they talk in clear again", mesh.left())?;
    step("nothing is left of the mesh", mesh.uninstall())
}

impl Mesh {
    fn agent(&self, words: &[&str]) -> Result<String> {
        let mut command = Command::new(agent::binary()?);
        command.args(words).env("KUBECONFIG", self.cluster.admin_kubeconfig());
        let output = command.output()?;
        let (said, problem) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "mesh-agent {words:?}: {}: {said}{problem}", output.status);
        Ok(said.into_owned())
    }

    /// From the pod `client` of `shop`, on node-a, to the Service `web`, whose pod is on node-b.
    fn get(&self, path: &str) -> Result<String> {
        let url = format!("http://web/{path}");
        self.cluster.kubectl(&["exec", "-n", "shop", "client", "--", APP, "get", &url])
    }

    /// The request arrives from the client's own address; on the link between the nodes it is seen in clear or not.
    fn on_the_link(&self, marker: &str, clear: bool) -> Result<()> {
        let sniffer = self.cluster.sniff()?;
        let said = self.get(marker)?;
        let seen = sniffer.stop()?;
        let client = ["get", "pod", "-n", "shop", "client", "-o", "jsonpath={.status.podIP}"];
        let client = self.cluster.kubectl(&client)?;
        ensure!(
            said.contains(&format!("client={}:", client.trim())),
            "the server saw another client: {said}"
        );
        ensure!(seen.saw(marker.as_bytes()) == clear, "in clear on the link: {}", !clear);
        ensure!(clear || seen.tcp_to(15008), "no tunnel on the link");
        Ok(())
    }

    fn in_clear(&self, marker: &str) -> Result<()> {
        self.cluster.apply(SHOP)?;
        self.cluster.wait_ready("shop", "", 2)?;
        self.cluster.wait("kube-proxy to know the Service", SOON, || Ok(self.get("").is_ok()))?;
        self.on_the_link(marker, true)
    }

    fn install(&self) -> Result<()> {
        let archive = image()?;
        self.cluster.load_image(&fs::read(&archive).with_context(|| {
            format!("no image at {}; `cargo xtask image --dev` packs it", archive.display())
        })?)?;
        self.cluster.apply(&self.agent(&["install", "--crds"])?)?;
        self.cluster.wait_ready("nodemesh-system", "app=nodemesh-controller", 2)?;
        self.cluster.wait_ready("nodemesh-system", "app=nodemesh-agent", 2)
    }

    fn label(&self, enrolled: bool) -> Result<()> {
        let label = if enrolled { "nodemesh.io/mesh=enabled" } else { "nodemesh.io/mesh-" };
        self.cluster.kubectl(&["label", "namespace", "shop", label])?;
        let wanted = if enrolled { 2 } else { 0 };
        self.cluster.wait("the pods to be captured, or to be so no more", SOON, || {
            let all: serde_json::Value =
                serde_json::from_str(&self.agent(&["workloads", "--cluster", "-o", "json"])?)?;
            Ok(all.to_string().matches("\"captured\"").count() == wanted)
        })?;
        Ok(())
    }

    fn enrolled(&self) -> Result<()> {
        self.label(true)?;
        self.on_the_link("in-the-mesh", false)?;
        let restarts = ["get", "pods", "-n", "shop", "-o"];
        let restarts = self.cluster.kubectl(
            &[&restarts[..], &["jsonpath={.items[*].status.containerStatuses[*].restartCount}"]].concat(),
        )?;
        ensure!(restarts.split_whitespace().all(|count| count == "0"), "pods were restarted: {restarts}");
        Ok(())
    }

    fn strict(&self) -> Result<()> {
        self.cluster.apply(STRICT)?;
        self.cluster.wait("a pod outside the mesh to be refused", SOON, || {
            let outside = ["exec", "-n", "outside", "stranger", "--", APP, "get", "http://web.shop/"];
            Ok(self.cluster.kubectl(&outside).is_err())
        })?;
        self.on_the_link("strict", false)?;
        // Longer than a failing readiness probe takes to show: it asks every second and gives up after three.
        std::thread::sleep(Duration::from_secs(5));
        self.cluster.wait_ready("shop", "", 2)
    }

    /// The pod's only process asks a STRICT pod at once, and ends with what became of it.
    fn new_pod(&self) -> Result<()> {
        self.cluster.apply(NEW_POD)?;
        self.cluster.wait("the new pod's only request to be answered", SOON, || {
            let phase = ["get", "pod", "-n", "shop", "new", "-o", "jsonpath={.status.phase}"];
            match self.cluster.kubectl(&phase)?.trim() {
                "Succeeded" => Ok(true),
                "Failed" => bail!("it failed: {}", self.cluster.kubectl(&["logs", "-n", "shop", "new"])?),
                _ => Ok(false),
            }
        })?;
        Ok(())
    }

    fn left(&self) -> Result<()> {
        self.cluster.kubectl(&["delete", "peerauthentication", "-n", "shop", "default"])?;
        self.label(false)?;
        self.on_the_link("left-the-mesh", true)
    }

    fn uninstall(&self) -> Result<()> {
        self.agent(&["uninstall", "--crds"])?;
        for node in [0, 1] {
            let left = self.cluster.exec_in_node(
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
        self.on_the_link("after-the-mesh", true)
    }
}

/// Where `cargo xtask image --dev` leaves it; `cargo xtask test` calls that first.
fn image() -> Result<PathBuf> {
    let program = agent::binary()?;
    let target = program.ancestors().nth(2).unwrap_or(Path::new("target"));
    Ok(target.join(format!("image/mesh-agent-{}-dev.tar", env!("CARGO_PKG_VERSION"))))
}
