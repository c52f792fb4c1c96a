//! Capabilities of the agent. On node-b runs the shipped DaemonSet's pod without one of them, and the mesh does not work.
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::shipped;
use crate::mesh::{APP, Mesh, PodOf, SYSTEM, namespace};

pub(super) const NS: &str = "tenant";
/// Much longer than the agent takes with all its capabilities.
const PATIENCE: Duration = Duration::from_secs(12);
const POD: &str = "without";

/// A client whose processes are another user's, and an application, both on node-b; an application on node-a.
fn tenants() -> String {
    let pod = PodOf { namespace: NS, args: "[serve]", ..PodOf::default() };
    let user = "securityContext: {runAsUser: 1000},";
    [
        namespace(NS, true, &["app"]),
        PodOf { name: "client", node: "node-b", args: "[sleep]", of_container: user, ..pod }.yaml(),
        PodOf { name: "near", node: "node-b", ..pod }.yaml(),
        PodOf { name: "far", node: "node-a", ..pod }.yaml(),
        format!(
            "---\n{{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {{name: default, \
             namespace: {NS}}}, spec: {{mtls: {{mode: STRICT}}}}}}\n"
        ),
    ]
    .concat()
}

pub(crate) fn each_is_needed(mesh: &Mesh) -> Result<()> {
    mesh.cluster.apply(&tenants())?;
    mesh.cluster.wait_ready(NS, "", 3)?;
    let daemonset = shipped(mesh, "DaemonSet", "nodemesh-agent")?;
    let context = "/spec/containers/0/securityContext/capabilities/add";
    let template = daemonset["spec"]["template"].clone();
    let all = template.pointer(context).and_then(Value::as_array).context("no capabilities")?.clone();
    ensure!(all.len() > 1, "capabilities: {all:?}");
    for without in all.iter().map(Some).chain([None]) {
        let mut pod = template.clone();
        let kept: Vec<&Value> = all.iter().filter(|one| Some(*one) != without).collect();
        *pod.pointer_mut(context).context("no capabilities")? = json!(kept);
        let broken = run(mesh, pod)?;
        match (without, broken) {
            (Some(without), Some(how)) => println!("        without {without}: {how}"),
            (Some(without), None) => anyhow::bail!("without {without} nothing breaks"),
            (None, Some(how)) => anyhow::bail!("with all capabilities: {how}"),
            (None, None) => {}
        }
    }
    Ok(())
}

/// Runs the agent's pod on node-b; what does not work, if anything. Nothing of it is left.
fn run(mesh: &Mesh, mut pod: Value) -> Result<Option<String>> {
    // Not of the DaemonSet, which would take it for its own: an end by itself takes everything back.
    pod["metadata"] = json!({"name": POD, "namespace": SYSTEM, "labels": {"app": POD}});
    (pod["apiVersion"], pod["kind"]) = (json!("v1"), json!("Pod"));
    pod["spec"]["nodeName"] = json!("node-b");
    pod["spec"]["restartPolicy"] = json!("Never");
    let env = pod["spec"]["containers"][0]["env"].as_array_mut().context("no environment")?;
    env.retain(|one| one["name"] != "NODEMESH_DAEMONSET");
    mesh.cluster.apply(&pod.to_string())?;
    let start = Instant::now();
    let broken = loop {
        match works(mesh) {
            Ok(()) => break None,
            Err(Check::Ended(how)) => break Some(how),
            Err(Check::NotYet(how)) if start.elapsed() > PATIENCE => break Some(how),
            Err(Check::NotYet(_)) => thread::sleep(Duration::from_millis(200)),
        }
    };
    mesh.kubectl(&format!("delete pod -n {SYSTEM} {POD} --grace-period=8 --wait=true"))?;
    mesh.cluster.exec_in_node(1, &["rm", "-rf", "/sys/fs/bpf/nodemesh"])?;
    Ok(broken)
}

enum Check {
    NotYet(String),
    Ended(String),
}

fn not_yet(error: anyhow::Error) -> Check {
    let text = format!("{error:#}");
    Check::NotYet(text.trim().lines().last().unwrap_or_default().to_owned())
}

/// The agent is ready, has captured the node's pods, and their connections stand: to the same node and to the other one.
fn works(mesh: &Mesh) -> Result<(), Check> {
    let path = format!("/api/v1/namespaces/{SYSTEM}/pods/{POD}");
    let pod = mesh.cluster.object(&path).map_err(not_yet)?.unwrap_or_default();
    let state = &pod["status"]["containerStatuses"][0];
    if !state["state"]["terminated"].is_null() {
        let said = mesh.kubectl(&format!("logs -n {SYSTEM} {POD} --tail=3")).unwrap_or_default();
        return Err(Check::Ended(format!("it ends: {}", said.trim().lines().last().unwrap_or_default())));
    }
    if state["ready"] != true {
        return Err(Check::NotYet("it does not become ready".to_owned()));
    }
    let rows =
        mesh.kubectl(&format!("exec -n {SYSTEM} {POD} -- /mesh-agent workloads -o json")).map_err(not_yet)?;
    let rows: Value = serde_json::from_str(&rows).map_err(|error| not_yet(error.into()))?;
    for name in ["client", "near"] {
        let row =
            rows.as_array().into_iter().flatten().find(|row| row["namespace"] == NS && row["name"] == name);
        let row = row.cloned().unwrap_or_default();
        if row["enrolment"] != "captured" {
            return Err(Check::NotYet(format!("{name} is not captured: {}", row["problem"])));
        }
    }
    for (to, by_tunnel) in [("near", false), ("far", true)] {
        let ip = mesh.ip(NS, to).map_err(not_yet)?;
        let get = || {
            mesh.cluster
                .kubectl(&["exec", "-n", NS, "client", "--", APP, "get", &format!("http://{ip}:8080/")])
                .map(drop)
        };
        let done = if by_tunnel { mesh.by_tunnel(&ip, 8080, get) } else { get() };
        done.map_err(not_yet)?;
    }
    Ok(())
}
