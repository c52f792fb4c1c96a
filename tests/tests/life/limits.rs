//! Limits that only a whole agent can hit: what becomes of the one too many, of the others, and that it is counted.
use std::io::Read as _;
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::client::Dial;
use mesh_tests::manifests::ServicePort;
use mesh_tests::{Agent, AgentSpec, App, Pod, PodSpec, ServiceSpec, client, eventually};
use nix::sys::signal::Signal;
use tokio::task::JoinSet;

use crate::shop::{PATIENCE, PORT, Shop};

const TUNNEL_PORT: u16 = 15008;
/// `HANDSHAKES_PER_WORKLOAD_MAX` of the agent.
const HANDSHAKES_MAX: usize = 512;
/// `MAX_ENDPOINT_TRIES` of the agent, and one more.
const DEAD_ENDPOINTS: usize = 4;

fn hits(agent: &Agent, limit: &str) -> Result<f64> {
    agent.metric("nodemesh_limit_hits_total", &[("limit", limit)])
}

fn counted(agent: &Agent, limit: &str) -> Result<()> {
    eventually(&format!("a hit of `{limit}`"), PATIENCE, || Ok(hits(agent, limit)? >= 1.0))?;
    Ok(())
}

/// A pod that the mesh does not know, on node-a.
fn stranger(shop: &Shop) -> Result<Pod> {
    shop.lab.manifests().namespace("outside", false)?;
    shop.lab.pod(PodSpec::new("outside", "stranger", "node-a"))
}

fn is_reset(error: Option<&std::io::Error>) -> bool {
    error.is_some_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset)
}

/// Peers that say nothing to a pod's tunnel port hold its places for handshakes; the next is reset at once, and
/// tunnels to other pods go on.
#[test]
fn silent_peers_of_one_pod_are_limited() -> Result<()> {
    let shop = Shop::new("silent peers")?;
    let agents = shop.lab.agents()?;
    let stranger = stranger(&shop)?;
    let _echo = App::echo(&shop.client, PORT)?;
    let to = shop.near.v4(TUNNEL_PORT);
    let mut silent: Vec<TcpStream> = Vec::new();
    for _ in 0..HANDSHAKES_MAX {
        silent.push(stranger.connect(to)?);
    }
    ensure!(hits(&agents[0], "handshakes")? < 1.0, "counted below the limit");
    // The workers take them in an order of their own, so that the one too many need not be the last.
    match stranger.connect(to) {
        Ok(stream) => silent.push(stream),
        Err(error) if is_reset(error.root_cause().downcast_ref()) => {}
        Err(error) => return Err(error),
    }
    for stream in &silent {
        stream.set_nonblocking(true)?;
    }
    if silent.len() > HANDSHAKES_MAX {
        eventually("one of them to be reset", PATIENCE, || {
            let reset = |stream: &mut TcpStream| is_reset(stream.read(&mut [0; 1]).err().as_ref());
            Ok(silent.iter_mut().any(reset))
        })?;
    }
    counted(&agents[0], "handshakes")?;
    let mut other = shop.far.connect(shop.client.v4(PORT))?;
    client::echo(&mut other, b"another pod's tunnel")?;
    drop(silent);
    eventually("the pod to be reached again", PATIENCE, || {
        let mut stream = shop.far.connect(shop.near.v4(PORT))?;
        Ok(client::echo(&mut stream, b"room again").is_ok())
    })?;
    Ok(())
}

/// A Service whose endpoints all refuse is given up after some of them.
#[test]
fn a_service_without_a_living_endpoint_is_given_up() -> Result<()> {
    let shop = Shop::new("dead endpoints")?;
    let mut dead = Vec::new();
    for number in 0..DEAD_ENDPOINTS {
        dead.push(shop.lab.pod(PodSpec::new("shop", &format!("dead-{number}"), "node-a"))?);
    }
    let vips = shop.lab.vips();
    let vip = SocketAddr::new(vips[0], 81);
    shop.lab.manifests().service(&ServiceSpec {
        namespace: "shop",
        name: "near",
        vips: vips.to_vec(),
        ports: vec![ServicePort::tcp(81, PORT + 1)],
        pods: dead.iter().collect(),
    })?;
    let agent = shop.lab.agent("node-a")?;
    // The reset may overtake the answer to the client's connect, which then says so itself.
    let ended = match shop.client.connect(vip) {
        Ok(mut stream) => {
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.read(&mut [0; 1]).map_err(|error| Some(error.kind()))
        }
        Err(error) => Err(error.root_cause().downcast_ref().map(std::io::Error::kind)),
    };
    ensure!(ended == Err(Some(std::io::ErrorKind::ConnectionReset)), "not reset: {ended:?}");
    counted(&agent, "endpoint_tries")?;
    let refused = agent.metric("nodemesh_connections_ended_total", &[("reason", "connection_refused")])?;
    ensure!((refused - (DEAD_ENDPOINTS - 1) as f64).abs() < 0.5, "{refused} endpoints were tried");
    Ok(())
}

/// While an agent does not accept, its listeners' backlogs take what comes, and drop what no longer fits.
#[test]
fn a_full_backlog_is_counted() -> Result<()> {
    let shop = Shop::new("full backlog")?;
    // The kernel cuts backlogs to this (listen(2)), so that a few clients fill one.
    shop.near.run(|| Ok(std::fs::write("/proc/sys/net/core/somaxconn", "2")?))?;
    let mut agent = shop.lab.agent_with("node-a", &AgentSpec { workers: Some(1), ..AgentSpec::default() })?;
    let stranger = stranger(&shop)?;
    ensure!(hits(&agent, "backlog")? < 1.0, "counted before");
    agent.process().signal(Signal::SIGSTOP)?;
    let opened = begin_many(&stranger, shop.near.v4(PORT), 32);
    agent.process().signal(Signal::SIGCONT)?;
    opened?;
    counted(&agent, "backlog")
}

/// Many connects at once, none waited for longer than a moment.
fn begin_many(pod: &Pod, to: SocketAddr, count: usize) -> Result<()> {
    const MOMENT: Duration = Duration::from_millis(500);
    pod.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut all = JoinSet::new();
            for _ in 0..count {
                all.spawn(tokio::time::timeout(MOMENT, tokio::net::TcpStream::connect(to)));
            }
            all.join_all().await;
        });
        Ok(())
    })
}

/// Sets a process's soft limit of open files.
fn open_files(pid: i32, limit: &str) -> Result<()> {
    let mut command = Command::new("prlimit");
    command.args(["--pid", &pid.to_string(), &format!("--nofile={limit}")]);
    let status = command.status().context("cannot start prlimit (util-linux)")?;
    ensure!(status.success(), "prlimit: {status}");
    Ok(())
}

/// An agent without descriptors goes on with what it has, and serves again as soon as there are some.
#[test]
fn an_agent_out_of_descriptors_recovers() -> Result<()> {
    let shop = Shop::new("out of descriptors")?;
    let agent = shop.lab.agent("node-a")?;
    let mut live = shop.echoing(shop.vip)?;
    // Below what it has open already: whatever is there goes on, nothing new can be opened.
    open_files(agent.pid(), "3:")?;
    let how = Dial { deadline: Duration::from_secs(2), ..Dial::default() };
    let waiting = shop.client.dial(shop.vip, &how)?;
    std::thread::sleep(Duration::from_millis(300));
    client::echo(&mut live, b"not harmed")?;
    open_files(agent.pid(), "4096:")?;
    counted(&agent, "open_files")?;
    let mut waiting = waiting;
    client::echo(&mut waiting, b"served now")
}

/// A holder that has no room says so, and the agent counts it and goes on.
#[test]
fn a_full_holder_is_counted() -> Result<()> {
    let shop = Shop::new("full holder")?;
    let path = shop.lab.dir().join("small.hold");
    let mut command = Command::new("prlimit");
    // Half of them are for listeners: room for one pod of the two.
    command.arg("--nofile=64:64").arg(mesh_tests::agent::binary()?).arg("hold").arg("--socket").arg(&path);
    let mut holder = shop.lab.spawn(shop.lab.node("node-a")?.netns(), "holder", command)?;
    eventually("the holder to listen", PATIENCE, || {
        holder.check_alive()?;
        Ok(path.exists())
    })?;
    let arguments = vec!["--holder-socket".to_owned(), path.display().to_string()];
    let spec = AgentSpec { workers: Some(8), arguments, ..AgentSpec::default() };
    let agent = shop.lab.agent_with("node-a", &spec)?;
    counted(&agent, "holder")?;
    ensure!(agent.log().contains("the holder is full"), "not said in the log");
    client::echo(&mut shop.echoing(shop.vip)?, b"served all the same")
}
