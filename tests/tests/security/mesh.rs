//! The small cluster that security and policy scenarios share: two clients and a stranger on node-a, a server on
//! each node, and how a connection between them fares. Each target uses a part of it.
#![allow(dead_code, reason = "two test targets share this file and neither uses all of it")]
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mesh_tests::client::{self, Dial};
use mesh_tests::manifests::ServicePort;
use mesh_tests::{Agent, AgentSpec, Lab, Pod, PodSpec, ServiceSpec, eventually};
use serde_json::Value;

/// For what another process does soon; long, since the machine may be busy with something else.
pub(crate) const SOON: Duration = Duration::from_secs(20);
pub(crate) const PORT: u16 = 8080;
/// A port of the servers that policies treat otherwise.
pub(crate) const OTHER_PORT: u16 = 8081;

/// How a connection fared, from the client's point of view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Its bytes came back.
    Echoed,
    /// ECONNREFUSED at connect.
    Refused,
    /// Accepted, and ended before a byte came back.
    Cut,
}

/// Agents first: they go before the lab that they live in.
pub(crate) struct Mesh {
    pub(crate) agents: Vec<Agent>,
    /// `shop/client` on node-a.
    pub(crate) client: Pod,
    /// `games/player` on node-a.
    pub(crate) player: Pod,
    /// `shop/near` on node-a.
    pub(crate) near: Pod,
    /// `shop/far` on node-b.
    pub(crate) far: Pod,
    /// `outside/stranger` on node-a, not in the mesh.
    pub(crate) stranger: Pod,
    /// Of the Service `shop/near`.
    pub(crate) vips: [IpAddr; 2],
    pub(crate) lab: Lab,
}

impl Mesh {
    pub(crate) fn new(scenario: &str) -> Result<Self> {
        Self::with(scenario, true, |_| Ok([AgentSpec::default(), AgentSpec::default()]))
    }

    /// `prepare` sees the lab before its agents start and says how they are started.
    pub(crate) fn with(
        scenario: &str,
        enrolled: bool,
        prepare: impl FnOnce(&Lab) -> Result<[AgentSpec; 2]>,
    ) -> Result<Self> {
        let lab = Lab::two_nodes(scenario)?;
        lab.manifests().namespace("shop", enrolled)?;
        lab.manifests().namespace("games", true)?;
        lab.manifests().namespace("outside", false)?;
        let client = lab.pod(PodSpec::new("shop", "client", "node-a"))?;
        let player = lab.pod(PodSpec::new("games", "player", "node-a"))?;
        let near = lab.pod(PodSpec::new("shop", "near", "node-a"))?;
        let far = lab.pod(PodSpec::new("shop", "far", "node-b"))?;
        let stranger = lab.pod(PodSpec::new("outside", "stranger", "node-a"))?;
        let vips = lab.vips();
        lab.manifests().service(&ServiceSpec {
            namespace: "shop",
            name: "near",
            vips: vips.to_vec(),
            ports: vec![ServicePort::tcp(PORT, PORT)],
            pods: vec![&near],
        })?;
        let specs = prepare(&lab)?;
        let started: Result<Vec<Agent>> =
            lab.nodes().iter().zip(&specs).map(|(node, spec)| lab.agent_unready(node.name(), spec)).collect();
        let mut agents = started?;
        for agent in &mut agents {
            agent.wait_ready()?;
        }
        Ok(Self { agents, client, player, near, far, stranger, vips, lab })
    }

    pub(crate) fn agent(&self, node: &str) -> Result<&Agent> {
        self.agents.iter().find(|agent| agent.node() == node).context("no such agent")
    }

    /// Waits until an agent has logged a line that has all of these in it.
    pub(crate) fn wait_logged(&self, node: &str, parts: &[&str]) -> Result<()> {
        let agent = self.agent(node)?;
        eventually(&format!("{node} to log {parts:?}"), SOON, || {
            Ok(agent.log().lines().any(|line| parts.iter().all(|part| line.contains(part))))
        })?;
        Ok(())
    }

    /// Waits until every agent shows these pods in this state (`captured` on their own node, `remote` elsewhere).
    pub(crate) fn wait_enrolled(&self, pods: &[&Pod], enrolled: bool) -> Result<()> {
        eventually(&format!("the pods' enrolment to be {enrolled}"), SOON, || {
            for agent in &self.agents {
                let rows = agent.ask(&["workloads"])?;
                for pod in pods {
                    let row = rows
                        .as_array()
                        .and_then(|rows| {
                            rows.iter()
                                .find(|row| row["namespace"] == pod.namespace() && row["name"] == pod.name())
                        })
                        .with_context(|| format!("{} does not know {}", agent.node(), pod.id()))?;
                    let wanted = match (enrolled, pod.node() == agent.node()) {
                        (false, _) => "off",
                        (true, true) => "captured",
                        (true, false) => "remote",
                    };
                    let known = row["addresses"]
                        .as_array()
                        .is_some_and(|all| all.contains(&Value::String(pod.ips()[0].to_string())));
                    anyhow::ensure!(known && row["enrolment"] == wanted, "{}: {row}", agent.node());
                }
            }
            Ok(true)
        })?;
        Ok(())
    }

    /// The path of a live connection as the client's agent shows it; none if it shows no such connection.
    pub(crate) fn path_of(&self, stream: &TcpStream, node: &str) -> Result<Option<String>> {
        let from = stream.local_addr()?;
        let rows = self.agent(node)?.ask(&["connections"])?;
        let rows = rows.as_array().context("connections is not a list")?;
        let row = rows.iter().find(|row| row["source"]["address"] == from.to_string());
        Ok(row.and_then(|row| row["path"].as_str()).map(str::to_owned))
    }

    /// Waits until the connection from one pod to an address fares like this.
    pub(crate) fn wait_fate(&self, from: &Pod, to: SocketAddr, wanted: Fate) -> Result<Duration> {
        eventually(&format!("{} to {to} to be {wanted:?}", from.id()), SOON, || {
            let fate = probe(from, to)?;
            anyhow::ensure!(fate == wanted, "it is {fate:?}");
            Ok(true)
        })
    }
}

/// Connects, sends some bytes and waits for them. An error when it hangs.
pub(crate) fn probe(from: &Pod, to: SocketAddr) -> Result<Fate> {
    probe_as(from, to, &Dial::default())
}

pub(crate) fn probe_as(from: &Pod, to: SocketAddr, how: &Dial) -> Result<Fate> {
    match from.dial(to, how) {
        Ok(mut stream) => fate_of(&mut stream),
        Err(error) => match client::io_kind(&error) {
            Some(ErrorKind::ConnectionRefused) => Ok(Fate::Refused),
            Some(ErrorKind::ConnectionReset) => Ok(Fate::Cut),
            _ => Err(error),
        },
    }
}

/// Whether an open connection still echoes.
pub(crate) fn fate_of(stream: &mut TcpStream) -> Result<Fate> {
    let sent = b"probe";
    let mut back = [0; 5];
    match stream.write_all(sent).and_then(|()| stream.read_exact(&mut back)) {
        Ok(()) if back == *sent => Ok(Fate::Echoed),
        Ok(()) => bail!("other bytes came back"),
        Err(error) => match error.kind() {
            ErrorKind::UnexpectedEof
            | ErrorKind::ConnectionReset
            | ErrorKind::ConnectionAborted
            | ErrorKind::BrokenPipe => Ok(Fate::Cut),
            _ => Err(error).context("neither echoed nor ended"),
        },
    }
}

/// Waits, without sending, until the other side ends the connection.
pub(crate) fn wait_end(stream: &mut TcpStream) -> Result<()> {
    match stream.read(&mut [0; 64]) {
        Ok(0) => Ok(()),
        Ok(_) => bail!("bytes came instead of the end"),
        Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted) => {
            Ok(())
        }
        Err(error) => Err(error).context("the connection goes on"),
    }
}
