//! A real Kubernetes on this machine: etcd, kube-apiserver, controllers, scheduler, CoreDNS and nodes with kubelet,
//! kube-proxy and containerd. No container engine, no virtual machine.
//!
//! Owns: which programs run, with what settings, in which namespaces, and that nothing of them is left. Never: knows
//! the mesh. Called by scenarios in `tests/tests`, and by `mesh-cluster`, which `cargo xtask cluster` becomes.
//!
//! Everything of a cluster is in namespaces of its own, so any number of them use the same addresses side by side, and
//! the machine's own network, mounts and kernel settings stay as they are:
//!
//! | where | what |
//! |---|---|
//! | network namespace `NAME-cp` | the bridge between nodes, 10.200.0.1: the control plane, and what is outside |
//! | network namespace `NAME-node-a` | 10.200.0.10, pods in 10.244.0.0/24; with mounts, PIDs, host name, IPC and cgroups of its own |
//! | network namespace `NAME-node-b` | 10.200.0.11, pods in 10.244.1.0/24 |
//! | Services | 10.96.0.0/16; the API server is .0.1, the DNS .0.10 |
//! | the machine's loopback | one port that leads to the API server: a kubeconfig works from anywhere |
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use std::time::Duration;
//! use mesh_tests::{Cluster, cluster::TEST_APP};
//! let cluster = Cluster::start()?;
//! cluster.apply(&format!(
//!     "{{apiVersion: v1, kind: Pod, metadata: {{name: web}}, spec: {{containers: \
//!      [{{name: app, image: '{TEST_APP}', imagePullPolicy: Never, args: [serve]}}]}}}}"
//! ))?;
//! cluster.wait_ready("default", "", 1)?;
//! let said = cluster.kubectl(&["exec", "web", "--", "nodemesh-test-app", "get", "http://127.0.0.1:8080/"])?;
//! assert!(said.contains("name=web"));
//! cluster.node(0)?.kill()?;
//! cluster.node(0)?.boot()?;
//! cluster.wait_nodes()?;
//! # Ok(())
//! # }
//! ```
mod addons;
mod api_server;
mod components;
mod control_plane;
mod forward;
mod https;
mod image;
mod kubectl;
mod node;
mod node_files;
mod node_init;
mod pki;

use std::env;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

pub use self::api_server::ApiServer;
pub use self::components::{kubernetes as program, version};
use self::control_plane::{Beside, ControlPlane, Site};
pub use self::image::{ImageFile, TEST_APP, archive, archive_of_program};
pub use self::node::Node;
use self::node::Plan;
pub use self::node_init::node_init;
use crate::ip::{self, BRIDGE_MAC};
use crate::netns::NetNs;
use crate::remains::{self, Remains};
use crate::sniff::Sniffer;
use crate::wait::eventually;

/// All pods.
pub(crate) const PODS: &str = "10.244.0.0/16";
/// The control plane, and what is outside the cluster: a client of a NodePort.
pub const LINK_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 1);
const DNS_SERVICE: &str = "10.96.0.10";
const NODES: [&str; 2] = ["node-a", "node-b"];

/// Also on a machine that compiles something else at the same time.
const READY_DEADLINE: Duration = Duration::from_secs(120);

/// A running cluster. Dropping it ends its processes and removes its namespaces, mounts, cgroups and files.
pub struct Cluster {
    nodes: Vec<Node>,
    plane: ControlPlane,
    link: NetNs,
    quiet: bool,
    // Last: it removes what the fields above name.
    remains: Remains,
}

impl Cluster {
    /// Two nodes, Ready, with CoreDNS answering.
    pub fn start() -> Result<Self> {
        Self::start_telling(&mut |_| {})
    }

    /// The same; `tell` hears what is being done.
    pub fn start_telling(tell: &mut dyn FnMut(&str)) -> Result<Self> {
        remains::sweep()?;
        let remains = Remains::claim()?;
        let bulk = remains.bulk_dir()?;
        let plans: Vec<Plan> = (0_u8..).zip(NODES).map(|(index, name)| plan(index, name)).collect();
        tell("network");
        let link = NetNs::create(&format!("{}-cp", remains.name()), || make_link(&plans))?;
        let mut nodes = Vec::new();
        for plan in &plans {
            nodes.push(Node::new(remains.name(), plan.clone(), &bulk, &link)?);
        }
        tell("control plane: etcd, kube-apiserver");
        let dir = remains.dir();
        let site = Site {
            lab: remains.name(),
            dir: &dir,
            bulk: &bulk,
            netns: link.try_clone()?,
            address: LINK_ADDRESS,
        };
        let plane = ControlPlane::start(site, Beside { controllers: true, scheduler: true })?;
        let this = Self { nodes, plane, link, quiet: false, remains };
        tell("nodes: containerd, images");
        this.start_nodes(&plans)?;
        tell("waiting for nodes and CoreDNS to be ready");
        this.wait_nodes()?;
        this.wait_ready("kube-system", "k8s-app=kube-dns", 1)?;
        Ok(this)
    }

    /// Nodes get ready for their kubelets while the API server gets ready for its clients.
    fn start_nodes(&self, plans: &[Plan]) -> Result<()> {
        let images = image::own()?;
        thread::scope(|scope| {
            let mut work = Vec::new();
            for (node, plan) in self.nodes.iter().zip(plans) {
                let images = &images;
                work.push(scope.spawn(move || {
                    node_files::write(node.state_dir(), plan, &self.plane)?;
                    node.boot()?;
                    node.wait_containerd()?;
                    images.iter().try_for_each(|image| node.load_image(image))
                }));
            }
            self.plane.wait_ready()?;
            self.apply(&addons::nodes(plans))?;
            self.apply(&addons::dns())?;
            for thread in work {
                match thread.join() {
                    Ok(done) => done?,
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            self.nodes.iter().try_for_each(Node::release)
        })
    }

    /// Says nothing at the end of a failed test; for what is not a test.
    #[must_use]
    pub fn quiet(mut self) -> Self {
        self.quiet = true;
        self
    }

    /// Unique on this machine as long as the cluster lives.
    pub fn name(&self) -> &str {
        self.remains.name()
    }

    /// A folder for what belongs to it; goes with it.
    pub fn dir(&self) -> PathBuf {
        self.remains.dir()
    }

    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// `node-a` is 0, `node-b` is 1.
    pub fn node(&self, index: usize) -> Result<&Node> {
        self.nodes.get(index).with_context(|| format!("the cluster has no node {index}"))
    }

    /// Runs a command line in a node's namespaces; its standard output.
    pub fn exec_in_node(&self, index: usize, words: &[&str]) -> Result<String> {
        self.node(index)?.exec(words)
    }

    /// The namespace of the bridge: every frame from node to node passes here, and a client here is outside the cluster.
    pub fn link(&self) -> &NetNs {
        &self.link
    }

    /// Looks at the link between nodes from now on.
    pub fn sniff(&self) -> Result<Sniffer> {
        Sniffer::start(&self.link)
    }

    /// `https://127.0.0.1:PORT`, from anywhere on this machine.
    pub fn url(&self) -> String {
        self.plane.url()
    }

    /// For a member of `system:masters`.
    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.plane.admin_kubeconfig()
    }

    /// For any user, with at most one group; RBAC decides what it may do.
    pub fn kubeconfig_for(&self, user: &str, group: Option<&str>) -> Result<PathBuf> {
        self.plane.kubeconfig_for(user, group)
    }

    /// The same for a program on a node, which has another way to the API server; the path is the node's.
    pub fn node_kubeconfig_for(&self, index: usize, user: &str) -> Result<PathBuf> {
        let made = self.plane.inner_kubeconfig(user, user, None)?;
        let file = format!("{user}.kubeconfig");
        std::fs::copy(made, self.node(index)?.state_dir().join(&file)).context("cannot give it to a node")?;
        Ok(PathBuf::from("/run/nodemesh-node").join(file))
    }

    /// kubectl as admin; its standard output.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.plane.kubectl(arguments)
    }

    /// kubectl as admin, to be started as one likes: for `port-forward`, `logs -f`.
    pub fn kubectl_command(&self) -> Result<Command> {
        kubectl::command(&self.admin_kubeconfig())
    }

    /// `kubectl apply --server-side` of these manifests.
    pub fn apply(&self, manifests: &str) -> Result<String> {
        self.plane.apply(manifests)
    }

    /// `kubectl apply --dry-run=server`: everything but the writing, admission included.
    pub fn apply_dry(&self, manifests: &str) -> Result<String> {
        let words = ["apply", "--dry-run=server", "-f", "-"];
        kubectl::run(&self.admin_kubeconfig(), &words, Some(manifests))
    }

    /// The object at a path of the API, such as `/api/v1/namespaces/default`; `None` when there is none.
    pub fn object(&self, path: &str) -> Result<Option<Value>> {
        self.plane.https().object(path)
    }

    /// Changes fields of the object at a path (a JSON merge patch). Returns as soon as the API server has answered.
    pub fn patch(&self, path: &str, fields: &Value) -> Result<()> {
        let content = ("application/merge-patch+json", &*fields.to_string());
        let (status, body) = self.plane.https().ask("PATCH", path, Some(content))?;
        ensure!(status == 200, "the API server answered {status} to a patch of {path}: {}", body.trim());
        Ok(())
    }

    /// Puts the images of an archive (`docker save`, OCI) on every node.
    pub fn load_image(&self, archive: &[u8]) -> Result<()> {
        self.nodes.iter().try_for_each(|node| node.load_image(archive))
    }

    /// Ends the API server as a crash would; `boot_api_server` starts it again with all its objects.
    pub fn kill_api_server(&self) -> Result<()> {
        self.plane.kill_apiserver()
    }

    pub fn boot_api_server(&self) -> Result<()> {
        self.plane.boot_apiserver()
    }

    /// Waits until `check` says yes; a failure comes with what pods, nodes and the control plane say about themselves.
    pub fn wait(
        &self,
        what: &str,
        deadline: Duration,
        mut check: impl FnMut() -> Result<bool>,
    ) -> Result<Duration> {
        let mut dead = None;
        let done = eventually(what, deadline, || {
            // Waiting for the dead would only hide what they said.
            dead = self.check_alive().err();
            Ok(dead.is_some() || check()?)
        });
        match dead {
            Some(error) => {
                Err(error.context(format!("waiting for {what}"))).with_context(|| self.diagnosis())
            }
            None => done.with_context(|| self.diagnosis()),
        }
    }

    /// Fails when a program of the control plane has ended, or a node that was not killed by `Node::kill`.
    pub fn check_alive(&self) -> Result<()> {
        self.plane.check_alive()?;
        self.nodes.iter().filter(|node| node.init_pid().is_ok()).try_for_each(Node::check_alive)
    }

    /// Until every running node's kubelet has said Ready after this node's last boot.
    pub fn wait_nodes(&self) -> Result<()> {
        let running: Vec<&Node> = self.nodes.iter().filter(|node| node.init_pid().is_ok()).collect();
        for node in running {
            let path = format!("/api/v1/nodes/{}", node.name());
            self.wait(&format!("{} to be Ready", node.name()), READY_DEADLINE, || {
                let object = self.object(&path)?.context("no such node")?;
                let ready = condition(&object, "Ready").context("it has no condition Ready yet")?;
                ensure!(ready["status"] == "True", "{}", ready["message"]);
                // Before a boot it may have been Ready too, and nobody has noticed its end yet.
                let heard = ready["lastHeartbeatTime"].as_str().unwrap_or_default();
                let heard = humantime::parse_rfc3339(heard).context("a heartbeat without a time")?;
                Ok(heard >= node.booted() && object["spec"]["taints"].is_null())
            })?;
        }
        Ok(())
    }

    /// Until exactly `count` pods of a namespace match the label selector (empty: all), each of them Ready.
    pub fn wait_ready(&self, namespace: &str, selector: &str, count: usize) -> Result<()> {
        let what = format!("{count} ready pods of {namespace} with {selector:?}");
        self.wait(&what, READY_DEADLINE, || {
            let pods = self.pods(namespace, selector)?;
            let ready = |pod: &&Value| {
                condition(pod, "Ready").is_some_and(|ready| ready["status"] == "True")
                    && pod["metadata"]["deletionTimestamp"].is_null()
            };
            let good = pods.iter().filter(ready).count();
            ensure!(good == count && pods.len() == count, "{good} of {} are ready", pods.len());
            Ok(true)
        })
        .map(drop)
    }

    /// The pods of a namespace that match a label selector.
    pub fn pods(&self, namespace: &str, selector: &str) -> Result<Vec<Value>> {
        let selector = selector.replace('=', "%3D").replace(',', "%2C");
        let path = format!("/api/v1/namespaces/{namespace}/pods?labelSelector={selector}");
        let list = self.object(&path)?.context("no such namespace")?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    /// Where logs are, for people.
    pub fn log_dirs(&self) -> String {
        let nodes = self.nodes.iter().map(|node| node.state_dir().join("logs").display().to_string());
        [self.dir().join("logs").display().to_string()].into_iter().chain(nodes).collect::<Vec<_>>().join(" ")
    }

    /// What a person would look at first.
    pub fn diagnosis(&self) -> String {
        let mut text = String::new();
        for words in [
            &["get", "nodes,pods", "-A", "-o", "wide"][..],
            &["get", "events", "-A", "--sort-by=.lastTimestamp"],
            &["logs", "-n", "kube-system", "-l", "k8s-app=kube-dns", "--tail=20"],
        ] {
            let said = self.kubectl(&[words, &["--request-timeout=5s"]].concat());
            text.push_str(&format!(
                "---- kubectl {}\n{}\n",
                words.join(" "),
                said.unwrap_or_else(|error| format!("{error:#}"))
            ));
        }
        for node in &self.nodes {
            text.push_str(&format!("{}\n", node.last_words()));
        }
        text + &self.plane.last_words()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if thread::panicking() && !self.quiet {
            eprintln!("{}", self.diagnosis());
        }
        self.remains.clear();
    }
}

/// Removes what clusters of processes that are gone have left.
pub fn sweep() -> Result<()> {
    remains::sweep()
}

/// `mesh-cluster`, which is a node's first process; cargo built it beside the running program.
fn binary() -> Result<PathBuf> {
    let own = env::current_exe().context("cannot find the running program")?;
    let path =
        own.ancestors().skip(1).take(3).map(|dir| dir.join("mesh-cluster")).find(|path| path.is_file());
    path.context("mesh-cluster is not built; run `cargo build -p mesh-tests --bins`")
}

fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    object["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == kind)
}

fn plan(index: u8, name: &str) -> Plan {
    Plan { name: name.to_owned(), index, address: node_address(index), pods: pod_range(index) }
}

fn node_address(index: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 200, 0, 10 + index)
}

fn pod_range(index: u8) -> String {
    format!("10.244.{index}.0/24")
}

/// From a node to the pods of the others.
fn ways(from: u8) -> Vec<(String, Ipv4Addr)> {
    let others = (0_u8..).zip(NODES).map(|(index, _)| index).filter(|index| *index != from);
    others.map(|index| (pod_range(index), node_address(index))).collect()
}

/// The bridge, with the way back to every pod.
fn make_link(plans: &[Plan]) -> Result<()> {
    let mut lines = format!(
        "link set lo up\nlink add br0 address {BRIDGE_MAC} type bridge stp_state 0 forward_delay 0 mcast_snooping 0\n\
         address add {LINK_ADDRESS}/24 dev br0\nlink set br0 up\n"
    );
    for plan in plans {
        lines.push_str(&format!("route add {} via {} onlink dev br0\n", plan.pods, plan.address));
    }
    ip::batch(&lines)
}
