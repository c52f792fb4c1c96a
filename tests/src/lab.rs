//! `Lab`: a small cluster of network namespaces.
//!
//! Nodes hang on a bridge that has a namespace of its own; pods hang on a bridge inside their node's namespace. Nodes
//! route each other's pod ranges, in both families, as a plain CNI plugin would. Nothing is made in the machine's own
//! namespace, so that any number of labs, in one process or in many, use the same addresses side by side.
mod address;
mod pod;

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Context, Result, bail};
use parking_lot::Mutex;

pub use self::pod::{Pod, PodSpec};
use crate::ip::{self, BRIDGE_MAC};
use crate::manifests::Manifests;
use crate::netns::{self, NetNs};
use crate::process::{self, Process};
use crate::remains;

/// More would not fit the address plan.
const NODES_MAX: usize = 200;

/// How many lines of each log are shown when a test fails.
const LOG_LINES: usize = 120;

/// A running lab. Dropping it ends its processes and removes its namespaces, pins and files.
pub struct Lab {
    name: String,
    scenario: String,
    dir: PathBuf,
    bridge: NetNs,
    nodes: Vec<Node>,
    pods: Mutex<Vec<Pod>>,
    manifests: Manifests,
    next_vip: AtomicU16,
    quiet: bool,
    // Last: it removes what the fields above name.
    remains: remains::Remains,
}

/// A node: a namespace on the bridge, with a range of pod addresses.
pub struct Node {
    name: String,
    index: u8,
    netns: NetNs,
    next_pod: AtomicU16,
}

impl Node {
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn netns(&self) -> &NetNs {
        &self.netns
    }

    /// The node's own addresses on the link between nodes.
    pub fn ips(&self) -> [IpAddr; 2] {
        address::node(self.index)
    }

    /// Does `work` in the node's namespace: what the kubelet or a host process would do.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        self.netns.run(work)
    }
}

impl Lab {
    /// A lab with these nodes; `scenario` is only for people.
    pub fn new(scenario: &str, nodes: &[&str]) -> Result<Self> {
        if nodes.is_empty() || nodes.len() > NODES_MAX {
            bail!("a lab has 1 to {NODES_MAX} nodes");
        }
        remains::sweep()?;
        let remains = remains::Remains::claim()?;
        let (name, dir) = (remains.name().to_owned(), remains.dir());
        for folder in ["manifests", "ca", "logs"] {
            fs::create_dir_all(dir.join(folder)).context("cannot create the lab's folders")?;
        }
        let manifests = Manifests::new(&dir.join("manifests"), &dir)?;
        let mut made = Vec::with_capacity(nodes.len());
        for (index, node) in (0_u8..).zip(nodes) {
            made.push(Node::create(&name, node, index)?);
        }
        let bridge = NetNs::create(&format!("{name}-link"), || link_nodes(&made))?;
        for node in &made {
            node.connect(&made)?;
        }
        Ok(Self {
            name,
            scenario: scenario.to_owned(),
            dir,
            bridge,
            nodes: made,
            pods: Mutex::new(Vec::new()),
            manifests,
            next_vip: AtomicU16::new(1),
            quiet: false,
            remains,
        })
    }

    /// The usual lab: `node-a` and `node-b`.
    pub fn two_nodes(scenario: &str) -> Result<Self> {
        Self::new(scenario, &["node-a", "node-b"])
    }

    /// Does not print the logs at the end; for what is not a test.
    #[must_use]
    pub fn quiet(mut self) -> Self {
        self.quiet = true;
        self
    }

    /// Unique on this machine as long as the lab lives.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The lab's own folder; goes with the lab.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn ca_dir(&self) -> PathBuf {
        self.dir.join("ca")
    }

    pub fn manifests(&self) -> &Manifests {
        &self.manifests
    }

    /// The namespace of the bridge between the nodes: every frame from node to node passes here.
    pub fn bridge(&self) -> &NetNs {
        &self.bridge
    }

    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    pub fn node(&self, name: &str) -> Result<&Node> {
        self.nodes
            .iter()
            .find(|node| node.name == name)
            .with_context(|| format!("the lab has no node {name}"))
    }

    /// Where an agent of this node pins its programs.
    pub fn bpf_dir(&self, node: &str) -> PathBuf {
        PathBuf::from(format!("{}{}-{node}", remains::PINS_PREFIX, self.name))
    }

    /// Where a process of this name logs.
    pub fn log_path(&self, name: &str) -> PathBuf {
        self.dir.join("logs").join(format!("{name}.log"))
    }

    /// Starts a program in a namespace of the lab; its output is in `log_path(name)`.
    pub fn spawn(&self, ns: &NetNs, name: &str, command: Command) -> Result<Process> {
        Process::start(ns, &self.name, command, &self.log_path(name))
    }

    /// Makes a pod: its namespace, its addresses and its manifest.
    pub fn pod(&self, spec: PodSpec) -> Result<Pod> {
        let pod = self.pod_unlisted(spec)?;
        self.manifests.pod(&pod)?;
        Ok(pod)
    }

    /// Makes a pod that no manifest tells of: a stranger on the node, or one that is announced later.
    pub fn pod_unlisted(&self, spec: PodSpec) -> Result<Pod> {
        let node = self.node(spec.node_name())?;
        let pod = Pod::create(&self.name, node, spec)?;
        self.pods.lock().push(pod.clone());
        Ok(pod)
    }

    /// Removes a pod: its manifest first, then its namespace and what still runs in it through the lab's handles.
    pub fn remove_pod(&self, pod: &Pod) -> Result<()> {
        self.manifests.remove(&pod.manifest_name())?;
        self.destroy_pod(pod)
    }

    /// Takes a pod's namespace away and leaves its manifest: a crash, not a deletion.
    pub fn destroy_pod(&self, pod: &Pod) -> Result<()> {
        self.pods.lock().retain(|other| !Arc::ptr_eq(other.inner(), pod.inner()));
        pod.unplug()?;
        netns::remove(pod.netns().name()).context("cannot remove a pod's namespace")
    }

    /// The next free pair of service addresses, IPv4 and IPv6.
    pub fn vips(&self) -> [IpAddr; 2] {
        address::vip(self.next_vip.fetch_add(1, Ordering::Relaxed))
    }

    /// How many namespaces this lab has at the moment.
    pub fn namespaces(&self) -> usize {
        netns::named(&format!("{}-", self.name)).len()
    }

    fn print_logs(&self) {
        let entries = fs::read_dir(self.dir.join("logs")).into_iter().flatten().flatten();
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            let text = fs::read_to_string(&path).unwrap_or_default();
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            println!("---- {} ({}): {name}\n{}", self.scenario, self.name, process::tail(&text, LOG_LINES));
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.quiet {
            // The test harness shows this only when the test fails.
            self.print_logs();
        }
        self.remains.clear();
    }
}

impl Node {
    fn create(lab: &str, name: &str, index: u8) -> Result<Self> {
        let netns = NetNs::create(&format!("{lab}-{name}"), || {
            ip::sysctl(&[
                // Addresses are ours alone: no second of waiting for a duplicate to speak up.
                ("ipv6/conf/all/accept_dad", "0"),
                ("ipv6/conf/default/accept_dad", "0"),
                ("ipv6/conf/all/forwarding", "1"),
                ("ipv4/ip_forward", "1"),
            ])
        })?;
        Ok(Self { name: name.to_owned(), index, netns, next_pod: AtomicU16::new(address::FIRST_POD) })
    }

    /// Addresses, the bridge for pods, and the way to every other node's pods.
    fn connect(&self, all: &[Self]) -> Result<()> {
        let [own4, own6] = address::node(self.index);
        let [gateway4, gateway6] = address::gateway(self.index);
        let mut lines = format!(
            "link set lo up\n\
             address add {own4}/24 dev eth0\naddress add {own6}/64 dev eth0 nodad\nlink set eth0 up\n\
             link add cni0 address {BRIDGE_MAC} type bridge stp_state 0 forward_delay 0 mcast_snooping 0\n\
             address add {gateway4}/24 dev cni0\naddress add {gateway6}/64 dev cni0 nodad\nlink set cni0 up\n"
        );
        for other in all.iter().filter(|other| other.index != self.index) {
            let [via4, via6] = address::node(other.index);
            let [range4, range6] = address::ranges(other.index);
            lines.push_str(&format!("route add {range4} via {via4}\nroute add {range6} via {via6}\n"));
        }
        self.netns.run(|| ip::batch(&lines))
    }
}

/// In the bridge's namespace: the bridge, and one cable to each node.
fn link_nodes(nodes: &[Node]) -> Result<()> {
    ip::sysctl(&[("ipv6/conf/default/disable_ipv6", "1")])?;
    let mut lines = String::from(
        "link set lo up\nlink add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0\nlink set br0 up\n",
    );
    for node in nodes {
        let (cable, ns) = (format!("n{}", node.index), node.netns.name());
        lines.push_str(&format!(
            "link add {cable} type veth peer name eth0 netns {ns}\nlink set {cable} master br0 up\n"
        ));
    }
    ip::batch(&lines)
}
