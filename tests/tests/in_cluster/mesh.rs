//! A cluster with the mesh on it, as its users have it: the shipped manifests and image. What every step uses.
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::cluster::TEST_APP;
use mesh_tests::{Cluster, agent};
use serde_json::Value;

pub(crate) const SOON: Duration = Duration::from_secs(60);
/// For a new pod to run. After an outage of the API server the kubelet tries again up to a minute later.
const START_DEADLINE: Duration = Duration::from_secs(120);
/// In every image of the test cluster.
pub(crate) const APP: &str = "nodemesh-test-app";
pub(crate) const SYSTEM: &str = "nodemesh-system";

pub(crate) struct Mesh {
    pub(crate) cluster: Cluster,
}

impl Mesh {
    pub(crate) fn boot() -> Result<Self> {
        Ok(Self { cluster: Cluster::start()? })
    }

    /// Runs a step; its failure says which one it was. Prints how long it took.
    pub(crate) fn step(&self, name: &str, step: impl FnOnce(&Self) -> Result<()>) -> Result<()> {
        let start = std::time::Instant::now();
        let done = step(self).with_context(|| format!("step: {name}"));
        if let Err(error) = &done {
            // First, and in one line: whoever reads a log that was cut short must not miss it.
            eprintln!("FAILED {error:#}\n{}", self.last_words());
        }
        println!("{:5.1} s  {name}", start.elapsed().as_secs_f64());
        done
    }

    /// What agents and controllers said last.
    fn last_words(&self) -> String {
        let mut text = String::new();
        for what in ["nodemesh-agent", "nodemesh-controller"] {
            let said = self.kubectl(&format!("logs -n {SYSTEM} -l app={what} --prefix --tail=400"));
            let said = said.unwrap_or_else(|error| format!("{error:#}"));
            // Lines of the access log by the hundred, under traffic, would bury the others.
            let (access, others): (Vec<&str>, Vec<&str>) =
                said.lines().partition(|line| line.contains(" access: "));
            let last = |lines: &[&str], count: usize| lines[lines.len().saturating_sub(count)..].join("\n");
            text.push_str(&format!("---- {what}\n{}\n{}\n", last(&others, 60), last(&access, 6)));
        }
        text
    }

    /// A verb of the CLI; its standard output.
    pub(crate) fn agent(&self, words: &[&str]) -> Result<String> {
        let output = self.agent_output(words)?;
        let (said, problem) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "mesh-agent {words:?}: {}: {said}{problem}", output.status);
        Ok(said.into_owned())
    }

    pub(crate) fn agent_output(&self, words: &[&str]) -> Result<Output> {
        let mut command = Command::new(agent::binary()?);
        command.args(words).env("KUBECONFIG", self.cluster.admin_kubeconfig());
        command.output().context("cannot start mesh-agent")
    }

    /// The image on the nodes, the manifests as `mesh-agent install` prints them, and everything ready.
    pub(crate) fn install(&self, more: &[&str]) -> Result<()> {
        self.load_image()?;
        self.cluster.apply(&self.agent(&[&["install"], more].concat())?)?;
        self.cluster.wait_ready(SYSTEM, "app=nodemesh-controller", 2)?;
        self.agents_ready()
    }

    pub(crate) fn load_image(&self) -> Result<()> {
        let archive = image()?;
        self.cluster.load_image(&fs::read(&archive).with_context(|| {
            format!("no image at {}; `cargo xtask image --dev` packs it", archive.display())
        })?)
    }

    /// One agent on each node, and none that is on its way out.
    pub(crate) fn agents_ready(&self) -> Result<()> {
        self.cluster.wait_ready(SYSTEM, "app=nodemesh-agent", 2)
    }

    pub(crate) fn kubectl(&self, words: &str) -> Result<String> {
        self.cluster.kubectl(&words.split_whitespace().collect::<Vec<_>>())
    }

    /// The test app, once more, in a running pod; its standard output.
    pub(crate) fn app(&self, namespace: &str, pod: &str, words: &[&str]) -> Result<String> {
        self.cluster.kubectl(&[&["exec", "-n", namespace, pod, "-c", "app", "--", APP], words].concat())
    }

    pub(crate) fn ip(&self, namespace: &str, pod: &str) -> Result<String> {
        let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}");
        let object = self.cluster.object(&path)?.with_context(|| format!("no pod {namespace}/{pod}"))?;
        let ip = object["status"]["podIP"].as_str().with_context(|| format!("{pod} has no address yet"))?;
        Ok(ip.to_owned())
    }

    /// Waits for the pod's end and gives what it said; an error when that was not a success.
    pub(crate) fn ended(&self, namespace: &str, pod: &str) -> Result<String> {
        self.ended_within(START_DEADLINE, namespace, pod)
    }

    pub(crate) fn ended_within(&self, deadline: Duration, namespace: &str, pod: &str) -> Result<String> {
        let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}");
        let mut phase = String::new();
        self.cluster.wait(&format!("{pod} to end"), deadline, || {
            let object = self.cluster.object(&path)?.context("no such pod")?;
            object["status"]["phase"].as_str().unwrap_or_default().clone_into(&mut phase);
            Ok(phase == "Succeeded" || phase == "Failed")
        })?;
        let said = self.cluster.kubectl(&["logs", "-n", namespace, pod])?;
        ensure!(phase == "Succeeded", "{pod} ended as {phase}: {said}");
        Ok(said)
    }

    pub(crate) fn label(&self, namespace: &str, enrolled: bool) -> Result<()> {
        let label = if enrolled { "nodemesh.io/mesh=enabled" } else { "nodemesh.io/mesh-" };
        self.cluster.kubectl(&["label", "namespace", namespace, label]).map(drop)
    }

    /// Waits until exactly these pods of a namespace are captured by their node's agent.
    pub(crate) fn wait_captured(&self, namespace: &str, wanted: &[&str]) -> Result<()> {
        let mut wanted = wanted.to_vec();
        wanted.sort_unstable();
        self.cluster.wait(&format!("{wanted:?} of {namespace} to be captured"), SOON, || {
            let all: Value = serde_json::from_str(&self.agent(&["workloads", "--cluster", "-o", "json"])?)?;
            let mut found = captured(&all, namespace);
            found.sort_unstable();
            ensure!(found == wanted, "captured: {found:?}");
            Ok(true)
        })?;
        Ok(())
    }

    /// What is asked within `work` arrives; between the nodes it is seen in clear, or in a tunnel. The marker may stand in
    /// no manifest: the API server's talk with etcd is in clear too.
    pub(crate) fn on_the_link(
        &self,
        marker: &str,
        clear: bool,
        work: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let sniffer = self.cluster.sniff()?;
        work()?;
        let seen = sniffer.stop()?;
        ensure!(seen.saw(marker.as_bytes()) == clear, "in clear on the link: {}", !clear);
        ensure!(clear || seen.tcp_to(15008), "no tunnel on the link");
        Ok(())
    }

    /// During `work` this port of a pod is reached by tunnels only, as far as the link between the nodes shows.
    pub(crate) fn by_tunnel(&self, ip: &str, port: u16, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let ip: IpAddr = ip.parse().with_context(|| format!("{ip:?} is no address"))?;
        let sniffer = self.cluster.sniff()?;
        work()?;
        let seen = sniffer.stop()?;
        let to = |port| seen.tcp().any(|segment| segment.destination == SocketAddr::new(ip, port));
        ensure!(!to(port), "{ip}:{port} was reached without a tunnel: {seen:?}");
        ensure!(to(15008), "no tunnel to {ip}: {seen:?}");
        Ok(())
    }
}

/// Names of captured pods of a namespace.
fn captured<'a>(all: &'a Value, namespace: &str) -> Vec<&'a str> {
    let rows = all.as_array().map(Vec::as_slice).unwrap_or_default();
    let ours = |row: &&Value| row["namespace"] == namespace && row["enrolment"] == "captured";
    rows.iter().filter(ours).filter_map(|row| row["name"].as_str()).collect()
}

/// A pod of one container, `app`, that runs the test app with these arguments. `labels`, `more` and `of_container` are
/// YAML in one line, each with a comma at its end, or empty.
#[derive(Clone, Copy, Default)]
pub(crate) struct PodOf<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
    pub(crate) account: &'a str,
    pub(crate) node: &'a str,
    pub(crate) labels: &'a str,
    pub(crate) args: &'a str,
    pub(crate) more: &'a str,
    pub(crate) of_container: &'a str,
}

impl PodOf<'_> {
    pub(crate) fn yaml(self) -> String {
        let Self { namespace, name, account, node, labels, args, more, of_container } = self;
        let account = if account.is_empty() { "app" } else { account };
        format!(
            "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: {namespace}, labels: \
             {{{labels}}}}}, spec: {{serviceAccountName: {account}, nodeName: {node}, \
             terminationGracePeriodSeconds: 1, {more} containers: [{{name: app, image: '{TEST_APP}', \
             imagePullPolicy: Never, {of_container} args: {args}}}]}}}}\n"
        )
    }
}

/// A namespace with these service accounts, in the mesh or not.
pub(crate) fn namespace(name: &str, enrolled: bool, accounts: &[&str]) -> String {
    let labels = if enrolled { "nodemesh.io/mesh: enabled" } else { "" };
    let mut text = format!(
        "---\n{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}, labels: {{{labels}}}}}}}\n"
    );
    for account in accounts {
        text.push_str(&format!(
            "---\n{{apiVersion: v1, kind: ServiceAccount, metadata: {{name: {account}, namespace: {name}}}}}\n"
        ));
    }
    text
}

/// Where `cargo xtask image --dev` leaves it; `cargo xtask test` calls that first.
fn image() -> Result<PathBuf> {
    let program = agent::binary()?;
    let target = program.ancestors().nth(2).unwrap_or(Path::new("target"));
    Ok(target.join(format!("image/mesh-agent-{}-dev.tar", env!("CARGO_PKG_VERSION"))))
}
