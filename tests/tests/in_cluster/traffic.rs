//! Steady traffic, and what may happen to the mesh under it without one failed new connection.
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::mesh::{APP, Mesh, PodOf, SOON, SYSTEM, namespace};

pub(crate) const NS: &str = "busy";
const ALL: [&str; 4] = ["client", "far", "near", "served"];
/// Between two connections to the same address, in milliseconds.
const EVERY: u32 = 15;
/// Connections per second and address that a step must have had on the whole, or it has shown nothing.
const RATE_MIN: f64 = 50.0;
/// Longest time of an agent from its end to the next one that is ready.
const AGENT_DEADLINE: Duration = Duration::from_secs(60);

/// Kubernetes' own parts look for a lost API server again with pauses of up to a minute: until then the scheduler knows of
/// no new pod. The same for a node's kubelet after a boot, with everything that its pods need.
const CAUGHT_UP: Duration = Duration::from_secs(240);

/// A pod on node-a that makes new connections to a pod of its own node and to one of the other, both STRICT.
pub(crate) struct Traffic<'a> {
    mesh: &'a Mesh,
    /// When agents were killed, in seconds since 1970.
    kills: RefCell<Vec<f64>>,
}

/// What the client has counted for one address.
#[derive(Clone, Copy, Debug)]
struct Count {
    at: f64,
    begun: u64,
    good: u64,
    failed: u64,
    slowest: u64,
}

type Counts = BTreeMap<String, Count>;

impl<'a> Traffic<'a> {
    pub(crate) fn start(mesh: &'a Mesh) -> Result<Self> {
        let pod = PodOf { namespace: NS, ..PodOf::default() };
        let echo = PodOf { args: "[echo]", labels: "app: echo", ..pod };
        mesh.cluster.apply(
            &[
                namespace(NS, true, &["app"]),
                PodOf { name: "near", node: "node-a", ..echo }.yaml(),
                PodOf { name: "far", node: "node-b", ..echo }.yaml(),
                PodOf { name: "served", node: "node-b", args: "[serve]", labels: "app: served", ..pod }
                    .yaml(),
                format!(
                    "---\n{{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {{name: \
                     default, namespace: {NS}}}, spec: {{mtls: {{mode: STRICT}}}}}}\n"
                ),
            ]
            .concat(),
        )?;
        mesh.cluster.wait_ready(NS, "", 3)?;
        mesh.wait_captured(NS, &["far", "near", "served"])?;
        let (near, far) = (mesh.ip(NS, "near")?, mesh.ip(NS, "far")?);
        let args = format!("[traffic, '{EVERY}', '{near}:8080', '{far}:8080']");
        let client = PodOf { name: "client", node: "node-a", labels: "app: client", ..pod };
        mesh.cluster.apply(&PodOf { args: &args, ..client }.yaml())?;
        mesh.cluster.wait_ready(NS, "app=client", 1)?;
        mesh.wait_captured(NS, &ALL)?;
        let this = Self { mesh, kills: RefCell::default() };
        mesh.cluster.wait("traffic to both", SOON, || {
            Ok(this.counts()?.values().filter(|now| now.good > 0).count() == 2)
        })?;
        Ok(this)
    }

    /// The last line of each address. Fails if a connection has; one that stood when an agent was killed goes with it.
    fn counts(&self) -> Result<Counts> {
        let log = self.mesh.kubectl(&format!("logs -n {NS} client"))?;
        let (failed, counts): (Vec<&str>, Vec<&str>) =
            log.lines().partition(|line| line.contains(" failed "));
        let kills = self.kills.borrow();
        let excused = |line: &&str| {
            let times = failure(line);
            times.is_some_and(|(begun, at)| kills.iter().any(|kill| begun <= *kill && *kill <= at))
        };
        let failed: Vec<&str> = failed.into_iter().filter(|line| !excused(line)).collect();
        ensure!(
            failed.is_empty(),
            "{} connections failed; agents killed at {kills:?}:\n{}",
            failed.len(),
            failed.join("\n")
        );
        let mut all = Counts::new();
        for line in counts {
            let (to, count) = count(line).with_context(|| format!("not a line of the traffic: {line:?}"))?;
            all.insert(to, count);
        }
        Ok(all)
    }

    /// What `happens`, under traffic: none failed, all that were begun meanwhile are answered, and they were many.
    fn during(&self, what: &str, happens: impl FnOnce() -> Result<()>) -> Result<()> {
        let before = self.counts()?;
        happens()?;
        let marks = self.counts()?;
        let mut after = Counts::new();
        self.mesh.cluster.wait("everything that was begun to be answered", SOON, || {
            after = self.counts()?;
            let answered = |to, mark: &Count| {
                after.get(to).is_some_and(|now: &Count| now.good + now.failed >= mark.begun)
            };
            Ok(marks.iter().all(|(to, mark)| answered(to, mark)))
        })?;
        ensure!(after.len() == 2, "traffic to {} addresses", after.len());
        for (to, now) in &after {
            let was = before.get(to).with_context(|| format!("no traffic to {to} before"))?;
            let rate = (now.begun - was.begun) as f64 / (now.at - was.at);
            println!(
                "        {what}: {to}: {} new connections, {rate:.0}/s, slowest so far {} ms; {} went with an agent",
                now.begun - was.begun,
                now.slowest,
                now.failed - was.failed
            );
            ensure!(rate >= RATE_MIN, "only {rate:.0} connections per second to {to}");
        }
        Ok(())
    }

    /// SIGKILL, on the client's node and on the other one. Another process is in office afterwards.
    pub(crate) fn agent_killed(&self) -> Result<()> {
        let mesh = self.mesh;
        self.during("killed", || {
            for node in [0, 1] {
                let killed = agent_pid(mesh, node)?;
                kill(Pid::from_raw(killed), Signal::SIGKILL).context("cannot kill the agent")?;
                let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
                self.kills.borrow_mut().push(now);
                mesh.cluster.wait(
                    "another agent",
                    AGENT_DEADLINE,
                    || Ok(agent_pid(mesh, node)? != killed),
                )?;
                self.agents_in_office()?;
            }
            Ok(())
        })
    }

    fn agents_in_office(&self) -> Result<()> {
        self.mesh.agents_ready()?;
        self.mesh.wait_captured(NS, &ALL)
    }

    pub(crate) fn rollout(&self) -> Result<()> {
        let uids = || -> Result<Vec<Value>> {
            let nodes = ["node-a", "node-b"].iter();
            nodes.map(|node| Ok(agent_pod(self.mesh, node)?["metadata"]["uid"].clone())).collect()
        };
        let before = uids()?;
        self.during("rollout", || {
            self.mesh.kubectl("rollout restart -n nodemesh-system daemonset/nodemesh-agent")?;
            self.mesh.kubectl("rollout status -n nodemesh-system daemonset/nodemesh-agent --timeout=120s")?;
            self.agents_in_office()
        })?;
        let after = uids()?;
        ensure!(before.iter().all(|uid| !after.contains(uid)), "an agent is still the one of before");
        Ok(())
    }

    /// The agent's pod is taken from a cordoned node; its DaemonSet puts another there.
    pub(crate) fn drained(&self) -> Result<()> {
        let before = agent_pod(self.mesh, "node-a")?;
        self.during("drained", || {
            self.mesh.kubectl("cordon node-a")?;
            let pod = before["metadata"]["name"].as_str().context("a pod without a name")?;
            self.mesh.kubectl(&format!("delete pod -n {SYSTEM} {pod} --wait=true"))?;
            self.agents_in_office()?;
            self.mesh.kubectl("uncordon node-a").map(drop)
        })?;
        let after = agent_pod(self.mesh, "node-a")?;
        ensure!(after["metadata"]["uid"] != before["metadata"]["uid"], "it is the same pod");
        Ok(())
    }

    /// No API server: traffic goes on. Afterwards a pod of an account that nobody has had a certificate for is given one.
    pub(crate) fn no_api_server(&self, away: Duration) -> Result<()> {
        let cluster = &self.mesh.cluster;
        self.during("no API server", || {
            cluster.kill_api_server()?;
            let start = Instant::now();
            thread::sleep(away);
            ensure!(self.mesh.kubectl("get nodes --request-timeout=2s").is_err(), "the API server answers");
            cluster.boot_api_server()?;
            cluster.wait("the API server", SOON, || Ok(cluster.object("/api/v1/nodes")?.is_some()))?;
            println!("        it was away for {:.0?}", start.elapsed());
            Ok(())
        })?;
        // The traffic ends here: beside it the sniffer would have more to keep than it may.
        self.mesh.kubectl(&format!("delete pod -n {NS} client --wait=true"))?;
        self.newcomer("late")
    }

    /// Power failure of node-b, and its return: its pods start again, are captured, refuse plaintext, and answer through
    /// the mesh.
    pub(crate) fn node_killed(&self) -> Result<()> {
        let mesh = self.mesh;
        mesh.kubectl(&format!("delete pod -n {NS} late --wait=true"))?;
        let restarts = || -> Result<u64> {
            let pods = mesh.cluster.pods(NS, "app=served")?;
            let pod = pods.first().context("no pod `served`")?;
            pod["status"]["containerStatuses"][0]["restartCount"].as_u64().context("no count of restarts")
        };
        let (before, node) = (restarts()?, mesh.cluster.node(1)?);
        node.kill()?;
        node.boot()?;
        mesh.cluster.wait_nodes()?;
        mesh.cluster.wait("the node's pods to start again", CAUGHT_UP, || Ok(restarts()? > before))?;
        mesh.cluster.wait_ready(NS, "", 3)?;
        mesh.agents_ready()?;
        mesh.wait_captured(NS, &["far", "near", "served"])?;
        let plain = format!("http://{}:8080/", mesh.ip(NS, "served")?);
        let asked = mesh.cluster.kubectl(&["exec", "-n", "strangers", "stranger", "--", APP, "get", &plain]);
        ensure!(asked.is_err(), "a STRICT pod answers plaintext after its node's boot");
        self.newcomer("after-the-boot")
    }

    /// A pod of a new account reaches a STRICT pod of the other node, with a certificate of its own.
    pub(crate) fn newcomer(&self, name: &str) -> Result<()> {
        let to = self.mesh.ip(NS, "served")?;
        let args = format!("[get, 'http://{to}:8080/']");
        let pod =
            PodOf { namespace: NS, name, account: name, node: "node-a", args: &args, ..PodOf::default() };
        let account = format!(
            "---\n{{apiVersion: v1, kind: ServiceAccount, metadata: {{name: {name}, namespace: {NS}}}}}\n"
        );
        self.mesh.by_tunnel(&to, 8080, || {
            self.mesh
                .cluster
                .apply(&[account, PodOf { more: "restartPolicy: Never,", ..pod }.yaml()].concat())?;
            self.mesh.ended_within(CAUGHT_UP, NS, name).map(drop)
        })
    }
}

/// `TIME TO failed begun=TIME: WHY`: when it began and when it failed.
fn failure(line: &str) -> Option<(f64, f64)> {
    let at = line.split(' ').next()?.parse().ok()?;
    let (_, rest) = line.split_once(" begun=")?;
    Some((rest.split_once(": ")?.0.parse().ok()?, at))
}

fn count(line: &str) -> Option<(String, Count)> {
    let mut words = line.split(' ');
    let (at, to) = (words.next()?.parse().ok()?, words.next()?.to_owned());
    let fields: BTreeMap<&str, u64> = words
        .filter_map(|word| word.split_once('='))
        .filter_map(|(name, value)| Some((name, value.parse().ok()?)))
        .collect();
    let field = |name| fields.get(name).copied();
    let (begun, good) = (field("begun")?, field("good")?);
    Some((to, Count { at, begun, good, failed: field("failed")?, slowest: field("slowest")? }))
}

/// The agent's own process on a node, as the machine numbers it.
pub(crate) fn agent_pid(mesh: &Mesh, node: usize) -> Result<i32> {
    let space = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let node_space =
        space(mesh.cluster.node(node)?.init_pid()?).context("the node's first process is gone")?;
    let entries = fs::read_dir("/proc").context("cannot read /proc")?;
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let runs =
        |pid: &i32| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line == b"/mesh-agent\0run\0");
    let pids: Vec<i32> = pids.filter(runs).filter(|pid| space(*pid).as_ref() == Some(&node_space)).collect();
    ensure!(pids.len() == 1, "agents on node {node}: {pids:?}");
    pids.first().copied().context("no agent")
}

fn agent_pod(mesh: &Mesh, node: &str) -> Result<Value> {
    let pods = mesh.cluster.pods(SYSTEM, "app=nodemesh-agent")?;
    let found = pods.into_iter().find(|pod| pod["spec"]["nodeName"] == node);
    found.with_context(|| format!("no agent on {node}"))
}
