//! The container runtime's and the API server's parts: calls of the plugin, and pods whose addresses are not known yet.
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use mesh_tests::{Agent, Lab, Node, Pod};
use serde_json::{Value, json};

/// How a call of a plugin ended.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) good: bool,
    pub(crate) output: String,
}

impl Said {
    pub(crate) fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.output).with_context(|| format!("not JSON: {}", self.output))
    }

    /// An error of the specification with this code, whose message has these words.
    pub(crate) fn refused(&self, code: u64, words: &[&str]) -> Result<()> {
        let said = self.json()?;
        let message = said["msg"].as_str().unwrap_or_default();
        if self.good || said["code"] != code || !words.iter().all(|word| message.contains(word)) {
            bail!("not refused with {code} and {words:?}: {said}");
        }
        Ok(())
    }
}

/// One attachment, as the runtime knows it.
#[derive(Clone)]
pub(crate) struct Attachment<'a> {
    pub(crate) node: &'a Node,
    pub(crate) sandbox: String,
    pub(crate) netns: PathBuf,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
}

impl<'a> Attachment<'a> {
    /// That of a pod of the lab.
    pub(crate) fn of(lab: &'a Lab, pod: &Pod, sandbox: &str) -> Result<Self> {
        Ok(Self {
            node: lab.node(pod.node())?,
            sandbox: sandbox.to_owned(),
            netns: pod.netns().path().to_owned(),
            namespace: pod.namespace().to_owned(),
            name: pod.name().to_owned(),
            uid: pod.uid().to_owned(),
        })
    }

    /// Runs a plugin with a configuration on its standard input, in the node's namespace.
    pub(crate) fn call(&self, lab: &Lab, program: &Path, command: &str, config: &Value) -> Result<Said> {
        let arguments = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
            self.namespace, self.name, self.sandbox, self.uid
        );
        let mut process = Command::new(program);
        process
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", &self.sandbox)
            .env("CNI_NETNS", &self.netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_ARGS", arguments)
            .env("CNI_PATH", "/usr/lib/cni")
            .env("NODEMESH_LAB", lab.name())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = self.node.run(|| process.spawn().context("cannot start a plugin"))?;
        child.stdin.take().context("no standard input")?.write_all(config.to_string().as_bytes())?;
        let output = child.wait_with_output()?;
        Ok(Said { good: output.status.success(), output: String::from_utf8(output.stdout)? })
    }
}

/// Our plugin on a node of the lab.
pub(crate) struct Plugin<'a> {
    pub(crate) lab: &'a Lab,
    pub(crate) program: PathBuf,
    pub(crate) socket: PathBuf,
}

impl<'a> Plugin<'a> {
    /// The agent's program under the plugin's name, asking the agent of `node`.
    pub(crate) fn new(lab: &'a Lab, node: &str) -> Result<Self> {
        let program = lab.dir().join("nodemesh-cni");
        if !program.exists() {
            std::os::unix::fs::symlink(mesh_tests::agent::binary()?, &program)?;
        }
        Ok(Self { lab, program, socket: lab.dir().join(format!("{node}.cni.sock")) })
    }

    /// The configuration that the runtime hands to a plugin of a chain.
    pub(crate) fn config(&self, previous: Option<&Value>) -> Value {
        let mut config = json!({
            "cniVersion": "1.0.0", "name": "lab", "type": "nodemesh-cni", "socket": self.socket,
        });
        if let Some(previous) = previous {
            config["prevResult"] = previous.clone();
        }
        config
    }

    pub(crate) fn call(&self, attachment: &Attachment<'_>, command: &str, pod: &Pod) -> Result<Said> {
        attachment.call(self.lab, &self.program, command, &self.config(Some(&result(pod))))
    }

    /// `ADD` for a pod in its first sandbox, which has to go well and to hand on the result unchanged.
    pub(crate) fn add(&self, pod: &Pod) -> Result<()> {
        let said = self.call(&Attachment::of(self.lab, pod, pod.uid())?, "ADD", pod)?;
        if !said.good || said.json()? != result(pod) {
            bail!("ADD of {}: {}", pod.id(), said.output);
        }
        Ok(())
    }
}

/// What the plugin that has made the pod's network says.
pub(crate) fn result(pod: &Pod) -> Value {
    let [v4, v6] = pod.ips();
    json!({
        "cniVersion": "1.0.0",
        "interfaces": [
            {"name": "cni0", "mac": "00:00:00:00:00:01"},
            {"name": "eth0", "mac": "00:00:00:00:00:02", "sandbox": pod.netns().path()},
        ],
        "ips": [{"address": format!("{v4}/24"), "interface": 1}, {"address": format!("{v6}/64"), "interface": 1}],
        "dns": {}, "unknown-to-us": [1.0, "x"],
    })
}

/// The pod as the API server shows it before its sandbox stands: scheduled, without an address, and without the
/// annotation by which a folder of manifests names a namespace.
pub(crate) fn scheduled(lab: &Lab, pod: &Pod) -> Result<()> {
    shown(lab, pod, &json!({"phase": "Pending"}))
}

/// The pod as the API server shows it a little later, when the kubelet has told its addresses.
pub(crate) fn running(lab: &Lab, pod: &Pod) -> Result<()> {
    let [v4, v6] = pod.ips();
    shown(lab, pod, &json!({"phase": "Running", "podIP": v4, "podIPs": [{"ip": v4}, {"ip": v6}]}))
}

fn shown(lab: &Lab, pod: &Pod, status: &Value) -> Result<()> {
    let object = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": pod.name(), "namespace": pod.namespace(), "uid": pod.uid(), "labels": pod.labels()},
        "spec": {
            "nodeName": pod.node(), "serviceAccountName": pod.account(),
            "containers": [{"name": "app", "image": "lab"}],
        },
        "status": status,
    });
    lab.manifests().put(&format!("pod-{}-{}", pod.namespace(), pod.name()), &[object])
}

/// How a pod stands with the agent.
pub(crate) fn enrolment(agent: &Agent, pod: &Pod) -> Result<String> {
    let all = agent.ask(&["workloads"])?;
    let rows = all.as_array().context("no list")?;
    let row = rows.iter().find(|row| row["name"] == pod.name() && row["namespace"] == pod.namespace());
    Ok(row.map_or("unknown", |row| row["enrolment"].as_str().unwrap_or_default()).to_owned())
}
