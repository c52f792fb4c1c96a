//! Two nodes: the network between pods, Services, what kubelet offers, and the death of a node.
//!
//! One cluster for all steps: it takes seconds to start, and a step that fails says which one it was.
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use mesh_tests::client::IO_DEADLINE;
use mesh_tests::cluster::TEST_APP;
use mesh_tests::{Cluster, eventually, process};

const SOON: Duration = Duration::from_secs(60);
const APP: &str = "nodemesh-test-app";

/// Pods, Services, DNS, NodePorts, exec, logs and port-forward work on two nodes; a killed node boots again with its
/// pods; nothing is left.
#[test]
fn two_nodes_carry_pods_services_and_survive_a_power_failure() -> Result<()> {
    let cluster = Cluster::start()?;
    let step = |name: &str, done: Result<()>| done.with_context(|| format!("step: {name}"));
    step("pods of both nodes start", pods(&cluster))?;
    step("a pod reaches a pod of the other node", pod_to_pod(&cluster))?;
    step("Services by name", services(&cluster))?;
    step("a pod reaches its own Service", hairpin(&cluster))?;
    step("a NodePort from outside", node_port(&cluster))?;
    step("logs, port-forward and a failing probe", kubelet(&cluster))?;
    step("nodes share neither cgroups nor pins", apart(&cluster))?;
    step("a node is killed and boots again", power_failure(&cluster))?;
    let traces = traces(&cluster)?;
    let name = cluster.name().to_owned();
    drop(cluster);
    nothing_left(&name, &traces)
}

fn pods(cluster: &Cluster) -> Result<()> {
    cluster.apply(&shop())?;
    cluster.wait_ready("shop", "", 3)
}

/// In the pod `client`, which is on node-a.
fn client(cluster: &Cluster, words: &[&str]) -> Result<String> {
    cluster.kubectl(&[&["exec", "-n", "shop", "client", "--", APP], words].concat())
}

fn ip_of(cluster: &Cluster, pod: &str) -> Result<String> {
    cluster.kubectl(&["get", "pod", "-n", "shop", pod, "-o", "jsonpath={.status.podIP}"])
}

fn field<'a>(answer: &'a str, name: &str) -> Result<&'a str> {
    let line = answer.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    line.with_context(|| format!("no {name} in {answer:?}"))
}

fn pod_to_pod(cluster: &Cluster) -> Result<()> {
    let sniffer = cluster.sniff()?;
    let said =
        client(cluster, &["get", &format!("http://{}:8080/marker-of-the-link", ip_of(cluster, "web-b")?)])?;
    ensure!(field(&said, "name")? == "web-b", "{said}");
    let seen = field(&said, "client")?.parse::<SocketAddr>().context("the client's address")?;
    ensure!(seen.ip().to_string() == ip_of(cluster, "client")?, "the server saw {seen}, not the pod itself");
    ensure!(sniffer.stop()?.saw(b"marker-of-the-link"), "the request did not cross the link between nodes");
    Ok(())
}

fn services(cluster: &Cluster) -> Result<()> {
    let mut names = std::collections::BTreeSet::new();
    eventually("both pods to answer for their Service", SOON, || {
        let said = client(cluster, &["get", "http://web:8080/"])?;
        names.insert(field(&said, "name")?.to_owned());
        Ok(names.len() == 2)
    })?;
    let headless = client(cluster, &["resolve", "web-headless.shop.svc.cluster.local"])?;
    let mut wanted = vec![ip_of(cluster, "web-a")?, ip_of(cluster, "web-b")?];
    let mut found: Vec<&str> = headless.lines().collect();
    wanted.sort();
    found.sort_unstable();
    ensure!(found == wanted, "the headless Service is {found:?}, not {wanted:?}");
    let missing = client(cluster, &["resolve", "nobody.shop.svc.cluster.local."]);
    let said = format!("{:#}", missing.err().context("a name that nobody has was found")?);
    ensure!(said.contains("no such name"), "{said}");
    Ok(())
}

fn hairpin(cluster: &Cluster) -> Result<()> {
    let said =
        cluster.kubectl(&["exec", "-n", "shop", "web-a", "--", APP, "get", "http://web-a-alone:8080/"])?;
    ensure!(field(&said, "name")? == "web-a", "{said}");
    Ok(())
}

fn node_port(cluster: &Cluster) -> Result<()> {
    for node in cluster.nodes() {
        let to = SocketAddr::from((node.ip(), 30080));
        let said = eventually_value("the NodePort", || cluster.link().run(|| get(to, "/")))?;
        ensure!(field(&said, "name")?.starts_with("web-"), "{said}");
    }
    Ok(())
}

fn eventually_value<T>(what: &str, mut ask: impl FnMut() -> Result<T>) -> Result<T> {
    let mut value = None;
    eventually(what, SOON, || {
        value = Some(ask()?);
        Ok(true)
    })?;
    value.with_context(|| what.to_owned())
}

/// The body of an answer.
fn get(to: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, IO_DEADLINE)?;
    stream.set_read_timeout(Some(IO_DEADLINE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {to}\r\n\r\n")?;
    let mut read = BufReader::new(stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        ensure!(read.read_line(&mut line)? > 0, "{to} closed before it answered");
        let line = line.trim().to_ascii_lowercase();
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse()?;
        }
        if line.is_empty() {
            break;
        }
    }
    let mut body = String::new();
    read.take(length).read_to_string(&mut body)?;
    Ok(body)
}

fn kubelet(cluster: &Cluster) -> Result<()> {
    let logs = cluster.kubectl(&["logs", "-n", "shop", "web-b"])?;
    ensure!(logs.contains("GET /marker-of-the-link"), "the log of web-b lacks its request:\n{logs}");

    let mut forward = PortForward::start(cluster, "web-b")?;
    let said = get(forward.address()?, "/")?;
    ensure!(field(&said, "name")? == "web-b", "{said}");
    get(forward.address()?, "/fail")?;
    cluster.wait("web-b to fail its readiness probe", SOON, || {
        let ready = "jsonpath={.status.conditions[?(@.type=='Ready')].status}";
        Ok(cluster.kubectl(&["get", "pod", "-n", "shop", "web-b", "-o", ready])? == "False")
    })?;
    get(forward.address()?, "/heal")?;
    cluster.wait_ready("shop", "", 3)
}

/// `kubectl port-forward` to a pod's 8080; ends when dropped.
struct PortForward {
    child: Child,
    said: Option<BufReader<std::process::ChildStdout>>,
    address: Option<SocketAddr>,
}

impl PortForward {
    fn start(cluster: &Cluster, pod: &str) -> Result<Self> {
        let mut kubectl = cluster.kubectl_command()?;
        kubectl.args(["port-forward", "-n", "shop", &format!("pod/{pod}"), ":8080", "--address=127.0.0.1"]);
        let child =
            kubectl.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot start kubectl")?;
        Ok(Self { child, said: None, address: None })
    }

    /// Forwarding from 127.0.0.1:40123 -> 8080
    fn address(&mut self) -> Result<SocketAddr> {
        if let Some(address) = self.address {
            return Ok(address);
        }
        let mut line = String::new();
        let mut said = BufReader::new(self.child.stdout.take().context("kubectl without an output")?);
        said.read_line(&mut line)?;
        // It says more with each connection, and ends when nobody can hear it.
        self.said = Some(said);
        let Some(address) = line.split(' ').find_map(|word| word.parse().ok()) else {
            bail!("kubectl port-forward said {line:?}");
        };
        self.address = Some(address);
        Ok(address)
    }
}

impl Drop for PortForward {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn apart(cluster: &Cluster) -> Result<()> {
    let marker = "/sys/fs/bpf/only-here";
    cluster.exec_in_node(0, &["mkdir", marker])?;
    ensure!(cluster.exec_in_node(1, &["ls", marker]).is_err(), "the other node sees our pins");
    ensure!(!Path::new(marker).exists(), "the machine sees a node's pins");
    let root = cluster.exec_in_node(0, &["cat", "/proc/1/cgroup"])?;
    let not_root: Vec<&str> = root.lines().filter(|line| !line.ends_with(":/")).collect();
    ensure!(not_root.is_empty(), "a node's first process is not in the root of its cgroups: {not_root:?}");
    ensure!(cluster.exec_in_node(1, &["hostname"])?.trim() == "node-b");
    ensure!(
        !Path::new("/etc/cni").exists() || !Path::new("/etc/cni/net.d/10-nodemesh-test.conflist").exists()
    );
    Ok(())
}

fn power_failure(cluster: &Cluster) -> Result<()> {
    let restarts = |pod: &str| {
        cluster.kubectl(&[
            "get",
            "pod",
            "-n",
            "shop",
            pod,
            "-o",
            "jsonpath={.status.containerStatuses[0].restartCount}",
        ])
    };
    let before = restarts("web-b")?;
    let node = cluster.node(1)?;
    let init = node.init_pid()?;
    node.kill()?;
    ensure!(process::start_time(init).is_none(), "the node's first process is still there");
    let lost = client(cluster, &["get", &format!("http://{}:8080/", ip_of(cluster, "web-b")?)]);
    ensure!(lost.is_err(), "a pod of a killed node answers");
    node.boot()?;
    cluster.wait_nodes()?;
    cluster.wait("web-b to be restarted", SOON, || Ok(restarts("web-b")? != before))?;
    cluster.wait_ready("shop", "", 3)?;
    cluster.wait_ready("kube-system", "k8s-app=kube-dns", 1)?;
    cluster.wait("both pods to answer again", SOON, || {
        let said = client(cluster, &["get", "http://web:8080/"])?;
        Ok(field(&said, "name")? == "web-b")
    })?;
    pod_to_pod(cluster)
}

/// All that a cluster has outside its own namespaces.
fn traces(cluster: &Cluster) -> Result<Vec<PathBuf>> {
    let mut traces = vec![cluster.dir(), cluster.link().path().to_path_buf()];
    for node in cluster.nodes() {
        traces.push(node.netns()?.path().to_path_buf());
        traces.push(node.state_dir().to_path_buf());
    }
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup")?.flatten() {
        let dir = hierarchy.path().join("nodemesh-lab").join(cluster.name());
        if dir.is_dir() {
            traces.push(dir);
        }
    }
    ensure!(traces.iter().all(|trace| trace.exists()), "a trace is looked for where it is not: {traces:?}");
    ensure!(
        traces.iter().any(|trace| trace.starts_with("/sys/fs/cgroup")),
        "nodes have no cgroups of their own"
    );
    Ok(traces)
}

fn nothing_left(name: &str, traces: &[PathBuf]) -> Result<()> {
    for trace in traces {
        ensure!(!trace.exists(), "{} is left", trace.display());
    }
    ensure!(process::of_lab(name).is_empty(), "processes are left");
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    ensure!(!mounts.contains(name), "mounts are left:\n{mounts}");
    Ok(())
}

fn shop() -> String {
    let pod = |name: &str, node: &str, labels: &str, verb: &str, more: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{{labels}}}}}\n\
             spec:\n  nodeName: {node}\n  terminationGracePeriodSeconds: 1\n  containers:\n  - name: app\n    \
             image: {TEST_APP}\n    imagePullPolicy: Never\n    args: [{verb}]\n{more}"
        )
    };
    let probe = "    readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1, failureThreshold: 1}\n";
    let service = |name: &str, rest: &str| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n{rest}"
        )
    };
    [
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n---\napiVersion: v1\nkind: ServiceAccount\n\
         metadata: {name: default, namespace: shop}\n"
            .to_owned(),
        pod("client", "node-a", "app: client", "sleep", ""),
        pod("web-a", "node-a", "app: web, one: a", "serve", probe),
        pod("web-b", "node-b", "app: web, one: b", "serve", probe),
        service("web", "  selector: {app: web}\n  ports: [{port: 8080}]\n"),
        service("web-headless", "  clusterIP: None\n  selector: {app: web}\n  ports: [{port: 8080}]\n"),
        service("web-a-alone", "  selector: {one: a}\n  ports: [{port: 8080}]\n"),
        service("web-outside", "  type: NodePort\n  selector: {app: web}\n  ports: [{port: 8080, nodePort: 30080}]\n"),
    ]
    .concat()
}
