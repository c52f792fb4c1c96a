//! The small cluster of these scenarios: a client, and a Service `myapp` with pods of two versions on two nodes.
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};
use mesh_tests::client::Session;
use mesh_tests::manifests::ServicePort;
use mesh_tests::{Agent, App, Lab, Pod, PodSpec, ServiceSpec, eventually};

/// For what another process does soon; long, since the machine may be busy with something else.
pub(crate) const SOON: Duration = Duration::from_secs(20);
pub(crate) const NS: &str = "production";
/// Where the application listens, and where the Service does.
pub(crate) const TARGET: u16 = 8080;
pub(crate) const PORT: u16 = 80;

/// A pod with its application, which goes first.
pub(crate) struct Server {
    pub(crate) app: App,
    pub(crate) pod: Pod,
}

/// Lets a policy ask about every request: then the destination's agent reads them too.
pub(crate) const READ_EVERYTHING: &str = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: read, namespace: production}
spec: {rules: [{to: [{operation: {paths: ['/*']}}]}]}
";

/// One server near the client and one on the other node, each behind a Service of its own.
pub(crate) struct Pair {
    pub(crate) shop: Shop,
    pub(crate) services: [Service; 2],
}

impl Pair {
    pub(crate) fn new(scenario: &str, protocol: Option<&'static str>) -> Result<Self> {
        Self::serving(scenario, protocol, App::http)
    }

    pub(crate) fn serving(
        scenario: &str,
        protocol: Option<&'static str>,
        app: fn(&Pod, u16) -> Result<App>,
    ) -> Result<Self> {
        let servers = [("near-1", "near", "v1", "node-a"), ("far-1", "far", "v1", "node-b")];
        let shop = Shop::serving(NS, scenario, &servers, |pod| app(pod, TARGET))?;
        let services = [shop.service("near", protocol)?, shop.service("far", protocol)?];
        Ok(Self { shop, services })
    }

    /// Does `test` with each of the two Services, with bytes and then with requests relayed by the destination's agent.
    pub(crate) fn each(&self, test: impl Fn(&Self, &Service) -> Result<()>) -> Result<()> {
        for read in [false, true] {
            if read {
                self.shop.apply("read", READ_EVERYTHING)?;
            }
            for service in &self.services {
                test(self, service)
                    .with_context(|| format!("{}, read by its agent: {read}", service.name))?;
            }
        }
        Ok(())
    }
}

pub(crate) struct Shop {
    namespace: &'static str,
    pub(crate) agents: Vec<Agent>,
    pub(crate) servers: Vec<Server>,
    pub(crate) client: Pod,
    pub(crate) lab: Lab,
}

/// A Service of the shop.
pub(crate) struct Service {
    pub(crate) name: &'static str,
    pub(crate) vips: [IpAddr; 2],
}

impl Service {
    pub(crate) fn at(&self, family: usize) -> SocketAddr {
        SocketAddr::new(self.vips[family], PORT)
    }
}

impl Shop {
    /// A lab with a client on `node-a` and these servers: name of the pod, its Service (label `app`), version, node.
    pub(crate) fn new(scenario: &str, servers: &[(&str, &str, &str, &str)]) -> Result<Self> {
        Self::within(NS, scenario, servers)
    }

    /// The same in another namespace.
    pub(crate) fn within(
        namespace: &'static str,
        scenario: &str,
        servers: &[(&str, &str, &str, &str)],
    ) -> Result<Self> {
        Self::serving(namespace, scenario, servers, |pod| App::http(pod, TARGET))
    }

    /// The same with another application.
    pub(crate) fn serving(
        namespace: &'static str,
        scenario: &str,
        servers: &[(&str, &str, &str, &str)],
        mut start: impl FnMut(&Pod) -> Result<App>,
    ) -> Result<Self> {
        let lab = Lab::two_nodes(scenario)?;
        lab.manifests().namespace(namespace, true)?;
        let client = lab.pod(PodSpec::new(namespace, "client", "node-a").account("frontend"))?;
        let mut started = Vec::new();
        for (name, app, version, node) in servers {
            let spec =
                PodSpec::new(namespace, name, node).account(app).label("app", app).label("version", version);
            let pod = lab.pod(spec)?;
            started.push(Server { app: start(&pod)?, pod });
        }
        let agents = lab.agents()?;
        Ok(Self { namespace, agents, servers: started, client, lab })
    }

    /// A Service over every pod with this label `app`.
    pub(crate) fn service(&self, name: &'static str, protocol: Option<&'static str>) -> Result<Service> {
        self.service_to(name, protocol, TARGET)
    }

    /// The same to another port of the pods.
    pub(crate) fn service_to(
        &self,
        name: &'static str,
        protocol: Option<&'static str>,
        target: u16,
    ) -> Result<Service> {
        let vips = self.lab.vips();
        let pods: Vec<&Pod> = self
            .servers
            .iter()
            .map(|server| &server.pod)
            .filter(|pod| pod.labels().get("app").is_some_and(|app| app == name))
            .collect();
        self.lab.manifests().service(&ServiceSpec {
            namespace: self.namespace,
            name,
            vips: vips.to_vec(),
            ports: vec![ServicePort { name: "p", port: PORT, target, app_protocol: protocol }],
            pods,
        })?;
        let agent = self.agent("node-a")?;
        eventually("the agent to know the Service", SOON, || {
            let all = agent.ask(&["services"])?;
            Ok(all.as_array().is_some_and(|all| all.iter().any(|one| one["name"] == name)))
        })?;
        for server in &self.servers {
            let agent = self.agent(server.pod.node())?;
            eventually(&format!("{} to be captured", server.pod.name()), SOON, || {
                let all = agent.ask(&["workloads"])?;
                let mut named =
                    all.as_array().context("no list")?.iter().filter(|one| one["name"] == server.pod.name());
                Ok(named.any(|one| one["enrolment"] == "captured"))
            })?;
        }
        Ok(Service { name, vips })
    }

    /// Writes manifests as they stand, and waits until the client's agent has taken them in.
    pub(crate) fn apply(&self, name: &str, text: &str) -> Result<()> {
        let version = || -> Result<f64> { self.agent("node-a")?.metric("nodemesh_world_version", &[]) };
        let far = || -> Result<f64> { self.agent("node-b")?.metric("nodemesh_world_version", &[]) };
        let before = (version()?, far()?);
        self.lab.manifests().put_text(name, text)?;
        eventually("the agents to take in a manifest", SOON, || {
            Ok(version()? > before.0 && far()? > before.1)
        })?;
        Ok(())
    }

    pub(crate) fn agent(&self, node: &str) -> Result<&Agent> {
        self.agents.iter().find(|agent| agent.node() == node).context("no such agent")
    }

    pub(crate) fn server(&self, name: &str) -> Result<&Server> {
        self.servers.iter().find(|server| server.pod.name() == name).context("no such server")
    }

    pub(crate) fn connect(&self, to: SocketAddr) -> Result<TcpStream> {
        self.client.connect(to)
    }

    /// A connection of the client's to a Service, by its name.
    pub(crate) fn session(&self, service: &Service) -> Result<Session> {
        Session::new(self.connect(service.at(0))?, service.name)
    }
}
