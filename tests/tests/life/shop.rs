//! The small mesh that these scenarios run in.
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};
use mesh_tests::client;
use mesh_tests::manifests::ServicePort;
use mesh_tests::{Agent, App, Lab, Pod, PodSpec, ServiceSpec, eventually};

/// No scenario waits longer for one thing; nothing is measured by it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
pub(crate) const PORT: u16 = 8080;

/// `client` and `near` on node-a, `far` on node-b, both servers echo; `near` also behind a Service.
pub(crate) struct Shop {
    pub(crate) lab: Lab,
    pub(crate) client: Pod,
    pub(crate) near: Pod,
    pub(crate) far: Pod,
    pub(crate) vip: SocketAddr,
    pub(crate) near_echo: App,
    pub(crate) far_echo: App,
}

impl Shop {
    pub(crate) fn new(scenario: &str) -> Result<Self> {
        let lab = Lab::two_nodes(scenario)?;
        lab.manifests().namespace("shop", true)?;
        let client = lab.pod(PodSpec::new("shop", "client", "node-a"))?;
        let near = lab.pod(PodSpec::new("shop", "near", "node-a"))?;
        let far = lab.pod(PodSpec::new("shop", "far", "node-b"))?;
        let vips = lab.vips().to_vec();
        let vip = SocketAddr::new(vips[0], 80);
        let ports = vec![ServicePort::tcp(80, PORT)];
        lab.manifests().service(&ServiceSpec {
            namespace: "shop",
            name: "near",
            vips,
            ports,
            pods: vec![&near],
        })?;
        let (near_echo, far_echo) = (App::echo(&near, PORT)?, App::echo(&far, PORT)?);
        Ok(Self { lab, client, near, far, vip, near_echo, far_echo })
    }

    /// Live connections that have carried bytes: to the other node over HBONE, and to this node relayed, since a
    /// Service's address is nothing for the kernel.
    pub(crate) fn live(&self) -> Result<Vec<TcpStream>> {
        [self.far.v4(PORT), self.vip].into_iter().map(|to| self.echoing(to)).collect()
    }

    pub(crate) fn echoing(&self, to: SocketAddr) -> Result<TcpStream> {
        let mut stream = self.client.connect(to)?;
        client::echo(&mut stream, b"first")?;
        Ok(stream)
    }

    /// A flow that the kernel let through past the agent.
    pub(crate) fn bypassed(&self, agent: &Agent) -> Result<TcpStream> {
        let mut found = None;
        eventually("a bypassed flow", PATIENCE, || {
            let stream = self.echoing(self.near.v4(PORT))?;
            let listed = agent.ask(&["connections"])?;
            let port = stream.local_addr()?.port().to_string();
            let bypassed = rows(&listed)?.iter().any(|row| {
                row["path"] == "bypass"
                    && row["source"]["address"].as_str().is_some_and(|at| at.ends_with(&format!(":{port}")))
            });
            found = bypassed.then_some(stream);
            Ok(bypassed)
        })?;
        found.context("no bypassed flow")
    }
}

pub(crate) fn rows(answer: &serde_json::Value) -> Result<&Vec<serde_json::Value>> {
    answer.as_array().with_context(|| format!("not a list: {answer}"))
}
