//! The stage of `mesh-bench http`: pods that are not enrolled, with every other proxy in the client's pod, and the same
//! pods enrolled and called by Services whose ports say HTTP.
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use mesh_tests::client::Session;
use mesh_tests::manifests::ServicePort;
use mesh_tests::{Agent, AgentSpec, Lab, Pod, PodSpec, Process, ServiceSpec, eventually};
use serde_json::json;

use super::hops::Hops;
use super::options::Options;
use crate::stage::{DEADLINE, HTTP_PORT, Pair, nginx};

/// What carries the requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Pods that are not enrolled.
    Direct,
    /// Enrolled pods; across nodes the destination's agent relays bytes.
    Mesh,
    /// The same, and the destination's policy asks about requests: both agents read HTTP.
    Judged,
    /// The mesh by another build of the agent.
    Baseline,
    Nginx,
    Haproxy,
    Envoy,
    /// Mutual TLS between the two.
    EnvoyPair,
}

impl Way {
    pub(super) const ALL: [Self; 8] = [
        Self::Direct,
        Self::Mesh,
        Self::Judged,
        Self::Baseline,
        Self::Nginx,
        Self::Haproxy,
        Self::Envoy,
        Self::EnvoyPair,
    ];

    /// As the command line has it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Mesh => "mesh",
            Self::Judged => "judged",
            Self::Baseline => "baseline",
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::Envoy => "envoy",
            Self::EnvoyPair => "envoy-pair",
        }
    }
}

pub(crate) struct Stage {
    // Processes before the lab whose namespaces they live in.
    plain: Cast,
    hops: Hops,
    mesh: Mesh,
    baseline: Option<Mesh>,
}

/// A client and its two servers.
struct Cast {
    client: Pod,
    near: Pod,
    far: Pod,
    servers: Vec<Process>,
}

/// Enrolled pods and their agents, in a lab of their own.
struct Mesh {
    cast: Cast,
    near: SocketAddr,
    far: SocketAddr,
    judged: SocketAddr,
    agents: Vec<Agent>,
    // Last: it removes the namespaces of all of the above.
    lab: Lab,
}

impl Stage {
    pub(super) fn build(options: &Options) -> Result<Self> {
        let mesh = Mesh::build(None)?;
        mesh.lab.manifests().namespace("plain", false)?;
        let plain = Cast::build(&mesh.lab, "plain")?;
        let hops = Hops::start(&mesh.lab, &options.ways, &plain.client, &plain.near, &plain.far)?;
        let baseline = options.baseline.as_deref().map(|agent| Mesh::build(Some(agent))).transpose()?;
        let stage = Self { plain, hops, mesh, baseline };
        for pair in [Pair::SameNode, Pair::AcrossNodes] {
            for way in options.ways.iter().filter(|way| stage.has(pair, **way)) {
                let what = format!("an answer by {} ({pair:?})", way.name());
                eventually(&what, DEADLINE, || stage.answers(pair, *way))?;
            }
        }
        Ok(stage)
    }

    /// Whether there is such a way: a pair of proxies on one node is not what anybody compares one pass with.
    pub(super) fn has(&self, pair: Pair, way: Way) -> bool {
        match way {
            Way::Direct | Way::Mesh => true,
            Way::Judged => pair == Pair::AcrossNodes,
            Way::Baseline => self.baseline.is_some(),
            Way::Nginx | Way::Haproxy | Way::Envoy | Way::EnvoyPair => self.hops.entry(pair, way).is_some(),
        }
    }

    /// Who asks, and whom.
    pub(super) fn route(&self, pair: Pair, way: Way) -> Result<(&Pod, SocketAddr)> {
        let server = if pair == Pair::SameNode { &self.plain.near } else { &self.plain.far };
        Ok(match way {
            Way::Direct => (&self.plain.client, server.v4(HTTP_PORT)),
            Way::Mesh => (&self.mesh.cast.client, self.mesh.service(pair)),
            Way::Judged => (&self.mesh.cast.client, self.mesh.judged),
            Way::Baseline => {
                let mesh = self.baseline.as_ref().context("there is no baseline")?;
                (&mesh.cast.client, mesh.service(pair))
            }
            Way::Nginx | Way::Haproxy | Way::Envoy | Way::EnvoyPair => {
                let entry = self.hops.entry(pair, way).context("there is no such proxy")?;
                (&self.plain.client, SocketAddr::from(([127, 0, 0, 1], entry)))
            }
        })
    }

    /// The processes that carry what goes this way.
    pub(super) fn proxies(&self, way: Way) -> Vec<i32> {
        match way {
            Way::Direct => Vec::new(),
            Way::Mesh | Way::Judged => self.mesh.agents.iter().map(Agent::pid).collect(),
            Way::Baseline => {
                self.baseline.iter().flat_map(|mesh| mesh.agents.iter().map(Agent::pid)).collect()
            }
            Way::Nginx | Way::Haproxy | Way::Envoy | Way::EnvoyPair => self.hops.pids(way),
        }
    }

    /// Processes whose CPU time is ours.
    pub(super) fn pids(&self) -> Vec<i32> {
        let casts = [Some(&self.plain), Some(&self.mesh.cast), self.baseline.as_ref().map(|mesh| &mesh.cast)];
        let servers = casts.into_iter().flatten().flat_map(|cast| &cast.servers).map(Process::pid);
        let mut pids: Vec<i32> = servers.collect();
        pids.push(std::process::id().cast_signed());
        for way in Way::ALL.into_iter().filter(|way| *way != Way::Judged) {
            pids.extend(self.proxies(way));
        }
        pids
    }

    /// Requests that were not answered as they should, as the agents count them: why, and which agent says so.
    pub(crate) fn failures(&self) -> String {
        let mut text = "failed requests, as the agents count them:".to_owned();
        for agent in &self.mesh.agents {
            let metrics = agent.metrics().unwrap_or_else(|error| format!("{error:#}"));
            for line in metrics.lines() {
                if line.starts_with("istio_requests_total{") && !line.contains("response_code=\"200\"") {
                    text.push_str(&format!("\n{}: {line}", agent.node()));
                }
            }
        }
        text
    }

    /// Whether a request is answered, and went the way that is to be measured.
    fn answers(&self, pair: Pair, way: Way) -> Result<bool> {
        let (client, to) = self.route(pair, way)?;
        let stream = client.connect(to)?;
        let own = stream.local_addr().context("getsockname")?.to_string();
        let mut session = Session::new(stream, "bench")?;
        let reply = session.get("/")?;
        if reply.status != 200 {
            bail!("it is answered with {}", reply.status);
        }
        let mesh = match way {
            Way::Mesh | Way::Judged => &self.mesh,
            Way::Baseline => self.baseline.as_ref().context("there is no baseline")?,
            _ => return Ok(true),
        };
        let wanted = if pair == Pair::SameNode { "local" } else { "hbone" };
        mesh.goes_by(&own, wanted)
    }
}

impl Mesh {
    /// With the agent that was built beside this program, or another.
    fn build(agent: Option<&Path>) -> Result<Self> {
        let lab = Lab::two_nodes("bench-http")?.quiet();
        lab.manifests().namespace("meshed", true)?;
        let mut cast = Cast::build(&lab, "meshed")?;
        let judge = lab.pod(PodSpec::new("meshed", "judge", "node-b"))?;
        cast.servers.push(nginx(&lab, &judge)?);
        let service = |pod: &Pod| -> Result<SocketAddr> {
            let vips = lab.vips().to_vec();
            let address = SocketAddr::new(vips[0], 80);
            lab.manifests().service(&ServiceSpec {
                namespace: "meshed",
                name: pod.name(),
                vips,
                ports: vec![ServicePort::http(80, HTTP_PORT)],
                pods: vec![pod],
            })?;
            Ok(address)
        };
        let (near, far, judged) = (service(&cast.near)?, service(&cast.far)?, service(&judge)?);
        lab.manifests().authorization(
            "meshed",
            "judge",
            &json!({
                "selector": {"matchLabels": {"app": "judge"}}, "action": "ALLOW",
                "rules": [{"to": [{"operation": {"methods": ["GET"], "paths": ["/*"]}}]}],
            }),
        )?;
        // As the others: without an access log.
        let spec = AgentSpec {
            arguments: vec!["--access-log".to_owned(), "off".to_owned()],
            program: agent.map(PathBuf::from),
            ..AgentSpec::default()
        };
        let start = |node| lab.agent_with(node, &spec);
        let agents = vec![start("node-a")?, start("node-b")?];
        Ok(Self { cast, near, far, judged, agents, lab })
    }

    fn service(&self, pair: Pair) -> SocketAddr {
        if pair == Pair::SameNode { self.near } else { self.far }
    }

    /// Whether the client's agent shows its connection on this path.
    fn goes_by(&self, client: &str, path: &str) -> Result<bool> {
        let agent = self.agents.iter().find(|agent| agent.node() == self.cast.client.node());
        let all = agent.context("no agent")?.ask(&["connections"])?;
        let mut mine =
            all.as_array().into_iter().flatten().filter(|conn| conn["source"]["address"] == client);
        Ok(mine.any(|conn| conn["path"] == path))
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        for agent in self.agents.drain(..) {
            if let Err(error) = agent.stop() {
                eprintln!("mesh-bench: {error:#}");
            }
        }
    }
}

impl Cast {
    fn build(lab: &Lab, namespace: &str) -> Result<Self> {
        let pod = |name: &str, node: &str| lab.pod(PodSpec::new(namespace, name, node));
        let (client, near, far) = (pod("client", "node-a")?, pod("near", "node-a")?, pod("far", "node-b")?);
        let servers = vec![nginx(lab, &near)?, nginx(lab, &far)?];
        Ok(Self { client, near, far, servers })
    }
}
