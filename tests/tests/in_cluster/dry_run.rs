//! What is shipped, as the API server itself judges it.
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use mesh_tests::helm;

use crate::mesh::{Mesh, SYSTEM};

/// The Kustomize base, the chart and the example pass a server-side dry run on a cluster that has none of it, beside the
/// CRDs that they name; nothing is made by it.
pub(crate) fn deploy(mesh: &Mesh) -> Result<()> {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    let text = |path: &str| -> Result<String> {
        let path = deploy.join(path);
        mesh.cluster.kubectl(&["kustomize", path.to_str().context("a path that is no text")?])
    };
    // A dry run does not make what the next object stands in.
    mesh.cluster.apply(&format!(
        "{{apiVersion: v1, kind: Namespace, metadata: {{name: {SYSTEM}}}}}\n---\n{}",
        text("crds")?
    ))?;
    let mut chart = Command::new(helm::program()?);
    chart.env_remove("KUBECONFIG").args([
        "template",
        "nodemesh",
        "--kube-version=1.31.0",
        "--namespace",
        SYSTEM,
    ]);
    let chart = chart.arg(deploy.join("helm/nodemesh")).output().context("cannot start helm")?;
    ensure!(chart.status.success(), "helm template: {}", String::from_utf8_lossy(&chart.stderr));
    let chart = String::from_utf8(chart.stdout)?;
    for (name, manifests) in [("base", text("base")?), ("chart", chart), ("crds", text("crds")?)] {
        let said = mesh.cluster.apply_dry(&manifests).with_context(|| name.to_owned())?;
        let wanted: Vec<serde_json::Value> = serde_saphyr::from_multiple(&manifests)?;
        let wanted = wanted.iter().filter(|one| !one.is_null()).count();
        ensure!(said.lines().count() == wanted, "{name}: not all of {wanted} objects: {said}");
        ensure!(said.lines().all(|line| line.contains("dry run")), "{name}: {said}");
    }
    let made = mesh.kubectl("get daemonsets,deployments -A -o name")?;
    ensure!(!made.contains("nodemesh"), "a dry run made {made}");
    mesh.kubectl("delete namespace nodemesh-system --wait=true")?;
    mesh.kubectl(&format!("delete -k {}", deploy.join("crds").display())).map(drop)
}
