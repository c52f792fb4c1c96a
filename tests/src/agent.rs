//! The agent as a process on a node of the lab, and its CLI.
use std::env;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use crate::client::{self, Dial};
use crate::lab::{Lab, Node};
use crate::leaks;
use crate::netns::NetNs;
use crate::process::{LAB_VARIABLE, Process};
use crate::wait::eventually;

const READY_DEADLINE: Duration = Duration::from_secs(15);
/// Longer than the agent's own drain deadline would be in a test.
const STOP_DEADLINE: Duration = Duration::from_secs(30);
const METRICS: ([u8; 4], u16) = ([127, 0, 0, 1], 15020);
const READINESS: ([u8; 4], u16) = ([127, 0, 0, 1], 15021);

/// What an agent is started with besides what every agent of the lab has.
#[derive(Clone, Debug, Default)]
pub struct AgentSpec {
    pub trust_domain: Option<String>,
    pub workers: Option<usize>,
    /// Further arguments of `run`, for example `--cert-lifetime 4s`.
    pub arguments: Vec<String>,
    pub environment: Vec<(String, String)>,
    /// Instead of the lab's own folder.
    pub ca_dir: Option<PathBuf>,
    pub manifests: Option<PathBuf>,
    /// Another build of the agent.
    pub program: Option<PathBuf>,
}

/// A running agent. Dropping it kills it; the lab removes what it pinned.
#[derive(Debug)]
pub struct Agent {
    node: String,
    lab: String,
    netns: NetNs,
    socket: PathBuf,
    bpf_dir: PathBuf,
    process: Process,
}

/// What a CLI verb answered.
#[derive(Debug)]
pub struct CliOutput {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl CliOutput {
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_str(&self.stdout)
            .with_context(|| format!("exit code {}, not JSON: {}{}", self.code, self.stdout, self.stderr))
    }
}

impl Lab {
    /// Starts an agent on a node and waits until it is ready.
    pub fn agent(&self, node: &str) -> Result<Agent> {
        self.agent_with(node, &AgentSpec::default())
    }

    pub fn agent_with(&self, node: &str, spec: &AgentSpec) -> Result<Agent> {
        let mut agent = self.agent_unready(node, spec)?;
        agent.wait_ready()?;
        Ok(agent)
    }

    /// One agent on every node, started at the same time.
    pub fn agents(&self) -> Result<Vec<Agent>> {
        let spec = AgentSpec::default();
        let started: Result<Vec<Agent>> =
            self.nodes().iter().map(|node| self.agent_unready(node.name(), &spec)).collect();
        let mut agents = started?;
        for agent in &mut agents {
            agent.wait_ready()?;
        }
        Ok(agents)
    }

    /// Starts an agent and does not wait.
    pub fn agent_unready(&self, node: &str, spec: &AgentSpec) -> Result<Agent> {
        let node: &Node = self.node(node)?;
        let socket = self.dir().join(format!("{}.sock", node.name()));
        let bpf_dir = self.bpf_dir(node.name());
        let mut command = Command::new(spec.program.clone().map_or_else(binary, Ok)?);
        command.args(["run", "--node", node.name(), "--manifests"]);
        command.arg(spec.manifests.as_deref().unwrap_or_else(|| self.manifests().dir()));
        command.arg("--ca-dir").arg(spec.ca_dir.clone().unwrap_or_else(|| self.ca_dir()));
        command.arg("--admin-socket").arg(&socket).arg("--bpf-dir").arg(&bpf_dir);
        command.args(["--metrics", &SocketAddr::from(METRICS).to_string()]);
        if let Some(domain) = &spec.trust_domain {
            command.args(["--trust-domain", domain]);
        }
        if let Some(workers) = spec.workers {
            command.args(["--workers", &workers.to_string()]);
        }
        command.args(&spec.arguments).envs(spec.environment.iter().cloned());
        let process = self.spawn(node.netns(), &format!("agent-{}", node.name()), command)?;
        let netns = node.netns().try_clone()?;
        Ok(Agent {
            node: node.name().to_owned(),
            lab: self.name().to_owned(),
            netns,
            socket,
            bpf_dir,
            process,
        })
    }
}

/// The agent that cargo built beside the running test, or the one `NODEMESH_AGENT` names.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = env::var_os("NODEMESH_AGENT") {
        return Ok(PathBuf::from(path));
    }
    let own = env::current_exe().context("cannot find the running test")?;
    let path = own.ancestors().skip(1).take(3).map(|dir| dir.join("mesh-agent")).find(|path| path.is_file());
    path.context("mesh-agent is not built; run `cargo xtask test`, which builds it first")
}

impl Agent {
    pub fn node(&self) -> &str {
        &self.node
    }

    pub fn pid(&self) -> i32 {
        self.process.pid()
    }

    pub fn admin_socket(&self) -> &Path {
        &self.socket
    }

    pub fn bpf_dir(&self) -> &Path {
        &self.bpf_dir
    }

    /// All it logged, over restarts.
    pub fn log(&self) -> String {
        self.process.log()
    }

    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    pub fn wait_ready(&mut self) -> Result<()> {
        let (netns, process) = (&self.netns, &mut self.process);
        eventually(&format!("the agent of {} to be ready", self.node), READY_DEADLINE, || {
            process.check_alive()?;
            Ok(get(netns, READINESS.into(), "/healthz/ready")?.status == 200)
        })?;
        Ok(())
    }

    /// SIGTERM and the end of it.
    pub fn stop(mut self) -> Result<ExitStatus> {
        self.process.terminate(STOP_DEADLINE)
    }

    pub fn terminate(&mut self) -> Result<()> {
        self.process.signal(Signal::SIGTERM)
    }

    /// SIGKILL: nothing is cleaned up, pins and all stay.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.process.kill()
    }

    /// Runs a verb of the CLI against this agent: `cli(&["explain", "shop/client", "10.42.1.10:80", "-o", "json"])`.
    pub fn cli(&self, arguments: &[&str]) -> Result<CliOutput> {
        let mut command = Command::new(binary()?);
        command.args(arguments).arg("--admin-socket").arg(&self.socket).env(LAB_VARIABLE, &self.lab);
        let Output { status, stdout, stderr } =
            self.netns.run(|| command.output().context("cannot start the CLI"))?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(CliOutput { code: status.code().unwrap_or(-1), stdout: text(stdout), stderr: text(stderr) })
    }

    /// A verb with `-o json`, which has to end with 0.
    pub fn ask(&self, arguments: &[&str]) -> Result<serde_json::Value> {
        let mut all = arguments.to_vec();
        all.extend(["-o", "json"]);
        let output = self.cli(&all)?;
        if output.code != 0 {
            bail!(
                "`mesh-agent {}` ended with {}: {}",
                arguments.join(" "),
                output.code,
                output.stderr.trim()
            );
        }
        output.json()
    }

    /// The text of the metrics endpoint.
    pub fn metrics(&self) -> Result<String> {
        let reply = get(&self.netns, METRICS.into(), "/metrics")?;
        if reply.status != 200 {
            bail!("the metrics endpoint answers {}", reply.status);
        }
        Ok(reply.text())
    }

    /// The sum of a metric over all series that have these labels; zero when there is none.
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> Result<f64> {
        Ok(sum(&self.metrics()?, name, labels))
    }

    pub fn descriptors(&self) -> Result<usize> {
        leaks::descriptors(self.pid())
    }

    pub fn resident(&self) -> Result<u64> {
        leaks::resident(self.pid())
    }

    pub fn pins(&self) -> usize {
        leaks::pins(&self.bpf_dir)
    }
}

fn get(netns: &NetNs, address: SocketAddr, path: &str) -> Result<client::HttpReply> {
    let how = Dial { deadline: Duration::from_secs(2), ..Dial::default() };
    netns.run(|| client::get(client::dial(address, &how)?, "localhost", path))
}

/// Adds up the series of a metric in Prometheus's text format.
fn sum(text: &str, name: &str, labels: &[(&str, &str)]) -> f64 {
    text.lines()
        .filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let (series, value) = match rest.strip_prefix('{') {
                Some(rest) => rest.rsplit_once("} ")?,
                None => ("", rest.strip_prefix(' ')?),
            };
            let has = |(label, wanted): &(&str, &str)| {
                series
                    .split("\",")
                    .any(|pair| pair.trim_end_matches('"').split_once("=\"") == Some((label, wanted)))
            };
            labels.iter().all(has).then(|| value.split(' ').next().unwrap_or_default().parse::<f64>().ok())?
        })
        .sum()
}

#[cfg(test)]
mod tests;
