//! Where a live agent's settings come from: flag before environment before file.
use std::process::Command;

use anyhow::{Context, Result, ensure};
use mesh_tests::client::{self, Dial};
use mesh_tests::{Lab, Process, eventually};

use crate::shop::{PATIENCE, PORT, Shop};

fn start(lab: &Lab, name: &str, command: Command) -> Result<Process> {
    lab.spawn(lab.node("node-a")?.netns(), name, command)
}

/// An answer of the CLI, which finds the agent by the variable alone.
fn status(lab: &Lab, socket: &std::path::Path) -> Result<serde_json::Value> {
    let mut command = Command::new(mesh_tests::agent::binary()?);
    command.args(["status", "-o", "json"]);
    command.env("NODEMESH_ADMIN_SOCKET", socket).env("NODEMESH_LAB", lab.name());
    let output = lab.node("node-a")?.run(|| command.output().context("cannot start the CLI"))?;
    serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())
}

fn ready(lab: &Lab, process: &mut Process, socket: &std::path::Path) -> Result<serde_json::Value> {
    let mut last = serde_json::Value::Null;
    eventually("the agent to be ready", PATIENCE, || {
        process.check_alive()?;
        last = status(lab, socket)?;
        Ok(last["state"] == "ready")
    })?;
    Ok(last)
}

/// A file alone is enough to run an agent, by the names of the flags.
#[test]
fn a_file_is_enough() -> Result<()> {
    let shop = Shop::new("configuration file")?;
    let lab = &shop.lab;
    let (file, socket, bpf_dir) =
        (lab.dir().join("agent.yaml"), lab.dir().join("f.sock"), lab.bpf_dir("node-a"));
    let text = format!(
        "node: node-a\nmanifests: {}\nca-dir: {}\nadmin-socket: {}\nmetrics: 127.0.0.1:16020\n\
         readiness: 127.0.0.1:16021\ntrust-domain: file.example\nbpf-dir: {}\nworkers: 3\nlog-format: json\n\
         drain-deadline: 2s\n",
        lab.manifests().dir().display(),
        lab.ca_dir().display(),
        socket.display(),
        bpf_dir.display(),
    );
    std::fs::write(&file, text)?;
    let mut command = Command::new(mesh_tests::agent::binary()?);
    command.arg("run").arg("--config").arg(&file);
    let mut process = start(lab, "from-file", command)?;
    let said = ready(lab, &mut process, &socket)?;
    ensure!(said["workers"] == 3 && said["trust_domain"] == "file.example", "{said}");
    let reply = lab.node("node-a")?.run(|| {
        let stream = client::dial(([127, 0, 0, 1], 16020).into(), &Dial::default())?;
        client::get(stream, "localhost", "/metrics")
    })?;
    ensure!(reply.status == 200 && reply.text().contains("istio_build"), "no metrics on the file's address");
    ensure!(process.log().lines().all(|line| line.starts_with('{')), "not the file's log format");
    let mut stream = shop.echoing(shop.near.v4(PORT))?;
    client::echo(&mut stream, b"by a file")?;
    drop(stream);
    ensure!(process.terminate(PATIENCE)?.success(), "it ended badly");
    ensure!(!bpf_dir.exists(), "pins are left");
    Ok(())
}

/// Variables stand in for flags and go before the file; a flag goes before a variable.
#[test]
fn variables_go_before_the_file() -> Result<()> {
    let lab = Lab::new("variables", &["node-a"])?;
    let (file, socket) = (lab.dir().join("agent.yaml"), lab.dir().join("v.sock"));
    std::fs::write(&file, "trust-domain: file.example\nworkers: 1\nnode: from-the-file\n")?;
    let mut command = Command::new(mesh_tests::agent::binary()?);
    command.args(["run", "--workers", "2"]);
    command.env("NODEMESH_CONFIG", &file).env("NODEMESH_NODE", "node-a").env("NODEMESH_WORKERS", "3");
    command.env("NODEMESH_MANIFESTS", lab.manifests().dir()).env("NODEMESH_CA_DIR", lab.ca_dir());
    command.env("NODEMESH_ADMIN_SOCKET", &socket).env("NODEMESH_BPF_DIR", lab.bpf_dir("node-a"));
    command.env("NODEMESH_LOG_FORMAT", "json").env("NODEMESH_METRICS", "127.0.0.1:16020");
    let mut process = start(&lab, "from-variables", command)?;
    let said = ready(&lab, &mut process, &socket)?;
    ensure!(
        said["node"] == "node-a" && said["trust_domain"] == "file.example" && said["workers"] == 2,
        "{said}"
    );
    ensure!(process.log().lines().all(|line| line.starts_with('{')), "not the variable's log format");
    ensure!(process.terminate(PATIENCE)?.success(), "it ended badly");
    Ok(())
}
