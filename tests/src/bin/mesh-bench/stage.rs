//! The stage: two nodes, an agent for each that is asked for, and twice the same three pods: once enrolled, once not.
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mesh_tests::{Agent, AgentSpec, App, Lab, Pod, PodSpec, Process, client, eventually, leaks};

use crate::bulk;
use crate::envoy::{EnvoyPair, Reads, Relayed};

pub(crate) const HTTP_PORT: u16 = 8080;
const BULK_PORT: u16 = 5001;
const IDLE_PORT: u16 = 5002;
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);
const NGINX: &str = "/usr/sbin/nginx";

/// Where client and server are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pair {
    SameNode,
    AcrossNodes,
}

/// What carries the traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Pods that are not enrolled.
    Direct,
    /// Enrolled pods.
    Mesh,
    /// Pods that are not enrolled, and an Envoy in each.
    Envoy,
}

const ENVOY_HTTP: Relayed =
    Relayed { name: "http", reads: Reads::Bytes, entry: 18080, tunnel: 28080, application: HTTP_PORT };
const ENVOY_BULK: Relayed =
    Relayed { name: "bulk", reads: Reads::Bytes, entry: 15101, tunnel: 25101, application: BULK_PORT };

/// A client's pod and a server's.
struct Cast {
    client: Pod,
    near: Server,
    far: Server,
}

struct Server {
    pod: Pod,
    nginx: Process,
    received: Arc<AtomicU64>,
}

/// From whom to whom one measurement goes.
pub(crate) struct Route<'a> {
    pub(crate) client: &'a Pod,
    pub(crate) http: SocketAddr,
    pub(crate) bulk: SocketAddr,
    pub(crate) received: Arc<AtomicU64>,
}

pub(crate) struct Stage {
    plain: Cast,
    meshed: Cast,
    agents: Vec<Agent>,
    envoy: Option<EnvoyPair>,
    // Last: it removes the namespaces of all of the above.
    lab: Lab,
}

impl Stage {
    /// `envoy` names the program, if there is to be a pair of them.
    pub(crate) fn build(envoy: Option<&Path>) -> Result<Self> {
        let lab = Lab::two_nodes("bench")?.quiet();
        let plain = cast(&lab, "plain")?;
        let meshed = cast(&lab, "meshed")?;
        lab.manifests().namespace("plain", false)?;
        lab.manifests().namespace("meshed", true)?;
        let relayed = [ENVOY_HTTP, ENVOY_BULK];
        let envoy = envoy
            .map(|program| EnvoyPair::start(&lab, program, &plain.client, &plain.far.pod, &relayed))
            .transpose()?;
        Ok(Self { plain, meshed, agents: Vec::new(), envoy, lab })
    }

    /// Starts the agents that the pair needs and that do not run yet. Of pods on one node that is one: a kernel has
    /// one agent, and a second one's programs would be called for every socket too.
    pub(crate) fn agents_for(&mut self, pair: Pair) -> Result<()> {
        let nodes: &[&str] = if pair == Pair::SameNode { &["node-a"] } else { &["node-a", "node-b"] };
        // As ztunnel was measured: without an access log.
        let spec = AgentSpec {
            arguments: vec!["--access-log".to_owned(), "off".to_owned()],
            ..AgentSpec::default()
        };
        for node in nodes.iter().skip(self.agents.len()) {
            let agent = self.lab.agent_with(node, &spec)?;
            eventually("the enrolled pods to be captured", DEADLINE, || {
                let all = agent.ask(&["workloads"])?;
                let local = all.as_array().into_iter().flatten();
                let mut local = local.filter(|one| one["local"] == true && one["namespace"] == "meshed");
                Ok(local.all(|one| one["enrolment"] == "captured"))
            })?;
            self.agents.push(agent);
        }
        Ok(())
    }

    /// The ways there are for a pair. Two sidecars on one node are not what anybody compares a bypass with.
    pub(crate) fn ways(&self, pair: Pair) -> Vec<Way> {
        let envoy = self.envoy.is_some() && pair == Pair::AcrossNodes;
        [Way::Direct, Way::Mesh].into_iter().chain(envoy.then_some(Way::Envoy)).collect()
    }

    pub(crate) fn route(&self, pair: Pair, way: Way) -> Result<Route<'_>> {
        let cast = if way == Way::Mesh { &self.meshed } else { &self.plain };
        let server = if pair == Pair::SameNode { &cast.near } else { &cast.far };
        let entry = |relayed: Relayed| SocketAddr::from(([127, 0, 0, 1], relayed.entry));
        let (http, bulk) = match way {
            Way::Envoy => (entry(ENVOY_HTTP), entry(ENVOY_BULK)),
            Way::Direct | Way::Mesh => (server.pod.v4(HTTP_PORT), server.pod.v4(BULK_PORT)),
        };
        Ok(Route { client: &cast.client, http, bulk, received: Arc::clone(&server.received) })
    }

    /// Processes whose CPU time is ours: this one, the servers, all proxies.
    pub(crate) fn pids(&self) -> Vec<i32> {
        let own = std::process::id().cast_signed();
        let servers = [&self.plain, &self.meshed].into_iter().flat_map(|cast| [&cast.near, &cast.far]);
        let mut pids = vec![own];
        pids.extend(servers.map(|server| server.nginx.pid()));
        pids.extend(self.proxies(Way::Mesh));
        pids.extend(self.proxies(Way::Envoy));
        pids
    }

    /// The processes that relay what goes this way.
    pub(crate) fn proxies(&self, way: Way) -> Vec<i32> {
        match way {
            // What the agents do while nothing passes them belongs to the comparison.
            Way::Direct | Way::Mesh => self.agents.iter().map(Agent::pid).collect(),
            Way::Envoy => self.envoy.iter().flat_map(EnvoyPair::pids).collect(),
        }
    }

    /// Makes sure that enrolled traffic goes the way that is to be measured, and other traffic does not.
    pub(crate) fn check_path(&self, pair: Pair) -> Result<()> {
        let wanted = if pair == Pair::SameNode { "bypass" } else { "hbone" };
        eventually(&format!("a connection on the path {wanted}"), DEADLINE, || {
            let route = self.route(pair, Way::Mesh)?;
            let mut live = route.client.connect(route.http)?;
            std::io::Write::write_all(&mut live, b"GET")?;
            Ok(self.paths(&route, &live)?.iter().any(|path| path == wanted))
        })?;
        let route = self.route(pair, Way::Direct)?;
        let live = route.client.connect(route.http)?;
        let found = self.paths(&route, &live)?;
        if !found.is_empty() {
            bail!("a connection between pods that are not enrolled shows as {found:?}");
        }
        Ok(())
    }

    fn paths(&self, route: &Route<'_>, live: &TcpStream) -> Result<Vec<String>> {
        let own = live.local_addr().context("getsockname")?.to_string();
        let agent =
            self.agents.iter().find(|agent| agent.node() == route.client.node()).context("no agent")?;
        let all = agent.ask(&["connections"])?;
        let mine =
            all.as_array().into_iter().flatten().filter(|conn| conn["source"]["address"] == own.as_str());
        Ok(mine.map(|conn| conn["path"].as_str().unwrap_or_default().to_owned()).collect())
    }

    /// Bytes of each agent.
    pub(crate) fn resident(&self) -> Result<Vec<u64>> {
        self.agents.iter().map(Agent::resident).collect()
    }

    /// Opens idle connections through the tunnel and gives what each costs an agent: bytes, client's and server's side.
    pub(crate) fn idle_connections(&self, number: usize) -> Result<Vec<f64>> {
        let app = App::echo(&self.meshed.far.pod, IDLE_PORT)?;
        let to = self.meshed.far.pod.v4(IDLE_PORT);
        // The listener's port has to be known to the kernel programs' table first.
        eventually("the idle server", DEADLINE, || {
            client::echo(&mut self.meshed.client.connect(to)?, b"x")?;
            Ok(true)
        })?;
        let before = self.resident()?;
        let held = self.meshed.client.run(|| {
            let open = |_| -> Result<TcpStream> {
                let mut stream = client::dial(to, &client::Dial::default())?;
                client::echo(&mut stream, b"x")?;
                Ok(stream)
            };
            (0..number).map(open).collect::<Result<Vec<_>>>()
        })?;
        let after = self.resident()?;
        drop(held);
        app.stop();
        Ok(after
            .iter()
            .zip(before)
            .map(|(after, before)| after.saturating_sub(before) as f64 / number as f64)
            .collect())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // A graceful end takes programs and routes away in order; the lab removes the rest.
        for agent in self.agents.drain(..) {
            if let Err(error) = agent.stop() {
                eprintln!("mesh-bench: {error:#}");
            }
        }
        let pins = leaks::pins(&self.lab.bpf_dir("node-a")) + leaks::pins(&self.lab.bpf_dir("node-b"));
        if pins > 0 {
            eprintln!("mesh-bench: {pins} pins were left by the agents");
        }
    }
}

fn cast(lab: &Lab, namespace: &str) -> Result<Cast> {
    let pod = |name: &str, node: &str| lab.pod(PodSpec::new(namespace, name, node));
    Ok(Cast {
        client: pod("client", "node-a")?,
        near: server(lab, pod("near", "node-a")?)?,
        far: server(lab, pod("far", "node-b")?)?,
    })
}

fn server(lab: &Lab, pod: Pod) -> Result<Server> {
    let nginx = nginx(lab, &pod)?;
    let received = bulk::serve(pod.netns(), BULK_PORT)?;
    Ok(Server { pod, nginx, received })
}

/// The application of every measurement, on [`HTTP_PORT`] of a pod.
pub(crate) fn nginx(lab: &Lab, pod: &Pod) -> Result<Process> {
    let name = format!("nginx-{}-{}", pod.namespace(), pod.name());
    let config = configuration(&lab.dir().join(&name).display().to_string());
    run_nginx(lab, pod, &name, &config, HTTP_PORT)
}

/// Starts an nginx with this configuration and waits until it listens on a port.
pub(crate) fn run_nginx(lab: &Lab, pod: &Pod, name: &str, config: &str, port: u16) -> Result<Process> {
    let dir = lab.dir().join(name);
    fs::create_dir_all(&dir).context("cannot create nginx's folder")?;
    let file = dir.join("nginx.conf");
    fs::write(&file, config).context("cannot write nginx's configuration")?;
    let mut command = Command::new(NGINX);
    command.arg("-p").arg(&dir).arg("-c").arg(&file).args(["-e", "stderr"]);
    let nginx = lab.spawn(pod.netns(), name, command).context("nginx is missing; run `cargo xtask setup`")?;
    eventually("nginx to listen", DEADLINE, || {
        pod.run(|| Ok(TcpStream::connect(("127.0.0.1", port)).is_ok()))
    })?;
    Ok(nginx)
}

/// One worker, answers of 1 KiB; `/close` ends the connection from the server's side, so that no port of the client waits.
fn configuration(dir: &str) -> String {
    let body = "x".repeat(1024);
    format!(
        "{}server {{ listen [::]:{HTTP_PORT} ipv6only=off backlog=4096;\n\
         location / {{ return 200 \"{body}\"; }}\n\
         location = /close {{ keepalive_timeout 0; return 200 \"{body}\"; }} }} }}\n",
        preamble(dir)
    )
}

/// One process, nothing written outside its folder, connections that are kept; the `http` block stays open.
pub(crate) fn preamble(dir: &str) -> String {
    format!(
        "user root; daemon off; master_process off; worker_processes 1; pid {dir}/nginx.pid; error_log stderr crit;\n\
         events {{ worker_connections 8192; }}\n\
         http {{ access_log off; keepalive_requests 1000000000; client_body_temp_path {dir}/b; proxy_temp_path {dir}/p;\n\
         fastcgi_temp_path {dir}/f; uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;\n"
    )
}
