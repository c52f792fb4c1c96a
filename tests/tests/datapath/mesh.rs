//! The small cluster that the scenarios share: four pods on two nodes, an agent on each, and the routes between them.
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};
use mesh_tests::manifests::ServicePort;
use mesh_tests::{Agent, AgentSpec, App, Lab, Pod, PodSpec, ServiceSpec, eventually};

/// For what another process does soon; long, since the machine may be busy with something else.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// Ports of the Service `shop/near`, each led to the same port of the pod `near`.
pub(crate) const PORTS: [u16; 4] = [8080, 8081, 8082, 8083];
pub(crate) const PORT: u16 = PORTS[0];

/// A way from a client to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// Pods of one node by pod address: the kernel connects them, the agent has authorised it before.
    Bypass,
    /// Pods of one node by Service address: one pass through the agent.
    Local,
    /// Pods of two nodes: the tunnel.
    Hbone,
    /// From a pod in the mesh to one outside.
    Outbound,
    /// From a pod outside the mesh to one inside.
    Inbound,
}

impl Route {
    pub(crate) const ALL: [Self; 5] = [Self::Bypass, Self::Local, Self::Hbone, Self::Outbound, Self::Inbound];

    /// Those with an agent between the two applications.
    pub(crate) const RELAYED: [Self; 4] = [Self::Local, Self::Hbone, Self::Outbound, Self::Inbound];

    /// What the agents' `connections` show of it: node, direction and path.
    pub(crate) fn shown(self) -> Vec<&'static str> {
        match self {
            Self::Bypass => vec!["node-a local bypass"],
            Self::Local => vec!["node-a local local"],
            Self::Hbone => vec!["node-a outbound hbone", "node-b inbound hbone"],
            Self::Outbound => vec!["node-a outbound plain"],
            Self::Inbound => vec!["node-a inbound plain"],
        }
    }
}

/// Agents first: they go before the lab that they live in.
pub(crate) struct Mesh {
    pub(crate) agents: Vec<Agent>,
    pub(crate) client: Pod,
    pub(crate) near: Pod,
    pub(crate) far: Pod,
    /// On node-b, in a namespace that is not in the mesh.
    pub(crate) stranger: Pod,
    near_vips: [IpAddr; 2],
    pub(crate) lab: Lab,
}

impl Mesh {
    pub(crate) fn new(scenario: &str) -> Result<Self> {
        Self::with(scenario, &AgentSpec::default())
    }

    pub(crate) fn with(scenario: &str, spec: &AgentSpec) -> Result<Self> {
        let lab = Lab::two_nodes(scenario)?;
        lab.manifests().namespace("shop", true)?;
        lab.manifests().namespace("outside", false)?;
        let client = lab.pod(PodSpec::new("shop", "client", "node-a"))?;
        let near = lab.pod(PodSpec::new("shop", "near", "node-a"))?;
        let far = lab.pod(PodSpec::new("shop", "far", "node-b"))?;
        let stranger = lab.pod(PodSpec::new("outside", "stranger", "node-b"))?;
        let near_vips = lab.vips();
        let names = ["p0", "p1", "p2", "p3"];
        lab.manifests().service(&ServiceSpec {
            namespace: "shop",
            name: "near",
            vips: near_vips.to_vec(),
            ports: PORTS
                .iter()
                .zip(names)
                .map(|(port, name)| ServicePort { name, ..ServicePort::tcp(*port, *port) })
                .collect(),
            pods: vec![&near],
        })?;
        let started: Result<Vec<Agent>> =
            lab.nodes().iter().map(|node| lab.agent_unready(node.name(), spec)).collect();
        let mut agents = started?;
        for agent in &mut agents {
            agent.wait_ready()?;
        }
        Ok(Self { agents, client, near, far, stranger, near_vips, lab })
    }

    pub(crate) fn source(&self, route: Route) -> &Pod {
        if route == Route::Inbound { &self.stranger } else { &self.client }
    }

    pub(crate) fn server(&self, route: Route) -> &Pod {
        match route {
            Route::Bypass | Route::Local | Route::Inbound => &self.near,
            Route::Hbone => &self.far,
            Route::Outbound => &self.stranger,
        }
    }

    /// What the client dials, IPv4 first.
    pub(crate) fn target(&self, route: Route, port: u16) -> [SocketAddr; 2] {
        match route {
            Route::Local => self.near_vips.map(|vip| SocketAddr::new(vip, port)),
            _ => self.server(route).both(port),
        }
    }

    pub(crate) fn connect(&self, route: Route, port: u16, family: usize) -> Result<TcpStream> {
        self.source(route)
            .connect(self.target(route, port)[family])
            .with_context(|| format!("{route:?}, family {family}"))
    }

    /// Starts an application on a route's server, and waits until connections of the route do take that route: the
    /// agent hears of a new listener, and authorises the bypass, a moment after it is there.
    pub(crate) fn serve(
        &self,
        route: Route,
        port: u16,
        start: impl FnOnce(&Pod, u16) -> Result<App>,
    ) -> Result<App> {
        let app = start(self.server(route), port)?;
        if route == Route::Bypass {
            for family in [0, 1] {
                eventually("the bypass", SOON, || {
                    let stream = self.connect(route, port, family)?;
                    let shown = self.shown(route, port, family)?;
                    drop(stream);
                    self.wait_quiet()?;
                    Ok(shown == route.shown())
                })?;
            }
        }
        Ok(app)
    }

    /// Node, direction and path of what the agents show between a route's ends.
    pub(crate) fn shown(&self, route: Route, port: u16, family: usize) -> Result<Vec<String>> {
        let client = self.source(route).ips()[family];
        let server = self.server(route).both(port)[family];
        let address = |party: &serde_json::Value| -> Option<SocketAddr> {
            party["address"].as_str().and_then(|text| text.parse().ok())
        };
        let mut shown = Vec::new();
        for agent in &self.agents {
            let all = agent.ask(&["connections"])?;
            for row in all.as_array().context("connections is not a list")? {
                if address(&row["source"]).is_some_and(|from| from.ip() == client)
                    && address(&row["destination"]) == Some(server)
                {
                    let text = |field: &str| row[field].as_str().unwrap_or("?").to_owned();
                    shown.push(format!("{} {} {}", agent.node(), text("direction"), text("path")));
                }
            }
        }
        Ok(shown)
    }

    /// Waits until no agent knows of a connection.
    pub(crate) fn wait_quiet(&self) -> Result<()> {
        eventually("no connection to be left", SOON, || {
            for agent in &self.agents {
                let left = agent.ask(&["connections"])?;
                anyhow::ensure!(left.as_array().is_some_and(Vec::is_empty), "{}: {left}", agent.node());
            }
            Ok(true)
        })?;
        Ok(())
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
}
