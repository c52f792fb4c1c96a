//! RBAC of the agent. For each verb of each resource an agent runs against the real API server without just that one.
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::{REFUSED, Right, all_rights, refusals, user};
use crate::mesh::{Mesh, SYSTEM};
use anyhow::{Context, Result, bail, ensure};
use mesh_tests::agent;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Agents at once: each takes a processor for a moment when it starts.
const AT_ONCE: usize = 5;
const NODE: usize = 1;
const PATIENCE: Duration = Duration::from_secs(30);
pub(crate) fn each_is_needed(mesh: &Mesh) -> Result<()> {
    let all = all_rights(mesh, "nodemesh-agent")?;
    let cases: Vec<Option<usize>> = [None].into_iter().chain((0..all.len()).map(Some)).collect();
    let name = |case: &Option<usize>| case.map_or("rights-all".to_owned(), |at| format!("rights-{at}"));
    mesh.cluster
        .apply(&cases.iter().map(|case| user(&name(case), SYSTEM, &all, *case)).collect::<String>())?;
    let mut unneeded = Vec::new();
    for some in cases.chunks(AT_ONCE) {
        let agents = thread::scope(|scope| {
            let running: Vec<_> =
                some.iter().map(|case| scope.spawn(|| observe(mesh, &name(case)))).collect();
            running
                .into_iter()
                .map(|one| one.join().unwrap_or_else(|_| bail!("an observer panicked")))
                .collect::<Vec<_>>()
        });
        for (case, seen) in some.iter().zip(agents) {
            let seen = seen.with_context(|| name(case))?;
            match case.and_then(|at| all.get(at)) {
                None => ensure!(seen.is_whole(), "with all rights an agent is not whole: {seen:?}"),
                Some(right) if seen.lacks(right) => {}
                Some(right) => unneeded.push(format!("{right:?}: {seen:?}")),
            }
        }
    }
    ensure!(unneeded.is_empty(), "without these nothing breaks:\n{}", unneeded.join("\n"));
    println!("        {} rights of the agent, each of them needed", all.len());
    Ok(())
}

/// What an agent did from its start to its end.
#[derive(Debug)]
struct Seen {
    /// It has read everything it wanted to read.
    read: bool,
    /// What the API server refused it.
    refused: Vec<String>,
    /// It left its programs in place for the next agent: told to end while its DaemonSet lives.
    stayed: bool,
}

impl Seen {
    fn is_whole(&self) -> bool {
        self.read && self.refused.is_empty() && self.stayed
    }

    /// It breaks by what this right is for: it cannot read or follow a kind, or cannot tell a restart from the end.
    fn lacks(&self, right: &Right) -> bool {
        if right.verb == "get" { !self.stayed } else { right.is_refused_in(&self.refused) }
    }
}

/// Runs an agent as this user on node-b, until it has read everything or was refused; then tells it to end.
fn observe(mesh: &Mesh, user: &str) -> Result<Seen> {
    let node = mesh.cluster.node(NODE)?;
    let (run, pins) = (format!("/run/{user}"), format!("/sys/fs/bpf/{user}"));
    node.exec(&["mkdir", "-p", &run])?;
    let log = mesh.cluster.dir().join(format!("{user}.log"));
    let mut agent = Local::start(mesh, user, &run, &pins, &log)?;
    let start = Instant::now();
    let said = loop {
        let said = fs::read_to_string(&log).unwrap_or_default();
        // A watch that is refused comes after a list that was not.
        let done = said.contains(REFUSED)
            || said.contains("\"everything has been read\"") && start.elapsed() > Duration::from_secs(3);
        if done {
            break said;
        }
        ensure!(agent.child.try_wait()?.is_none(), "it has ended: {said}");
        ensure!(start.elapsed() < PATIENCE, "it has neither read everything nor been refused: {said}");
        thread::sleep(Duration::from_millis(50));
    };
    let read = said.contains("everything has been read");
    agent.end()?;
    let said = fs::read_to_string(&log).unwrap_or_default();
    let refused = refusals(&said);
    let stayed = !node.exec(&["sh", "-c", &format!("ls {pins} 2>/dev/null; true")])?.trim().is_empty();
    node.exec(&["rm", "-rf", &pins])?;
    Ok(Seen { read, refused, stayed })
}

/// An agent as a process of the node. Dropping it kills it.
struct Local {
    child: Child,
}

impl Local {
    fn start(mesh: &Mesh, user: &str, run: &str, pins: &str, log: &PathBuf) -> Result<Self> {
        let kubeconfig = mesh.cluster.node_kubeconfig_for(NODE, user)?;
        let mut command = mesh.cluster.node(NODE)?.command("unshare")?;
        // Mounts of its own, as in a container: the agent takes the node's root of cgroups for one by what node's first
        // process has mounted.
        command.arg("--mount").arg(agent::binary()?).arg("run").arg("--kubeconfig").arg(&kubeconfig);
        command.args([
            "--node",
            "node-b",
            "--daemonset",
            "nodemesh-system/nodemesh-agent",
            "--log-format",
            "json",
        ]);
        command.args(["--bpf-dir", pins, "--ca-dir", &format!("{run}/ca")]);
        command.args([
            "--admin-socket",
            &format!("{run}/admin.sock"),
            "--cni-socket",
            &format!("{run}/cni.sock"),
        ]);
        command.args(["--metrics", "127.0.0.1:0", "--readiness", "127.0.0.1:0", "--drain-deadline", "1s"]);
        command.env("KUBECONFIG", kubeconfig);
        let out = File::create(log).context("cannot make a log")?;
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        Ok(Self { child: command.spawn().context("cannot start an agent on a node")? })
    }

    /// `nsenter` waits for the agent and passes no signal on.
    fn end(&mut self) -> Result<()> {
        let outer = self.child.id();
        let children = fs::read_to_string(format!("/proc/{outer}/task/{outer}/children")).unwrap_or_default();
        let own: i32 = children.split_whitespace().next().context("no agent under nsenter")?.parse()?;
        kill(Pid::from_raw(own), Signal::SIGTERM).context("cannot end an agent")?;
        let start = Instant::now();
        while self.child.try_wait()?.is_none() {
            ensure!(start.elapsed() < PATIENCE, "the agent does not end");
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        // What is left of it goes with the node.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
