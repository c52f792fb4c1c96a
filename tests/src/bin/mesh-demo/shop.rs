//! The shop: two nodes, four pods with an application each, an agent per node, and the manifests they read.
//! Owns: building it, applying files of `deploy/examples`, running commands in it, and taking it down.
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mesh_tests::agent::{Agent, CliOutput};
use mesh_tests::apps::canonical;
use mesh_tests::{App, Lab, Pod, PodSpec, eventually};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::terminal::Terminal;

pub(crate) const NAMESPACE: &str = include_str!("../../../../deploy/examples/shop/namespace.yaml");
const SERVICES: &str = include_str!("../../../../deploy/examples/shop/services.yaml");

pub(crate) const REVIEWS_PORT: u16 = 9080;
pub(crate) const BACKEND_PORT: u16 = 7000;
/// As `deploy/examples/shop/services.yaml` has them.
pub(crate) const REVIEWS_VIP: &str = "10.96.0.20";
pub(crate) const BACKEND_VIP: &str = "10.96.0.30";

/// How long the mesh may take to follow a change of its manifests; it promises a second, a busy machine may need more.
pub(crate) const FOLLOWS: Duration = Duration::from_secs(15);
/// The largest request head the shop's applications read, in bytes.
const HEAD_MAX: usize = 8192;

pub(crate) struct Shop {
    pub(crate) frontend: Pod,
    pub(crate) reviews_v1: Pod,
    pub(crate) reviews_v2: Pod,
    pub(crate) backend: Pod,
    apps: Vec<App>,
    /// `node-a`, then `node-b`.
    agents: Vec<Agent>,
    lab: Lab,
}

/// What a command of a pod said.
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) text: String,
}

impl Shop {
    pub(crate) fn open(terminal: &Terminal) -> Result<Self> {
        terminal.title("Nodemesh demo: a small shop on two nodes\n");
        let lab = Lab::two_nodes("demo")?.quiet();
        let pod = |name: &str, account: &str, app: &str, node: &str| {
            lab.pod(PodSpec::new("shop", name, node).account(account).label("app", app))
        };
        let frontend = pod("frontend", "frontend", "frontend", "node-a")?;
        let reviews_v1 = pod("reviews-v1", "reviews", "reviews", "node-a")?;
        let reviews_v2 = pod("reviews-v2", "reviews", "reviews", "node-b")?;
        let backend = pod("backend", "backend", "backend", "node-b")?;
        let apps = vec![
            serve(&frontend, 8080)?,
            serve(&reviews_v1, REVIEWS_PORT)?,
            serve(&reviews_v2, REVIEWS_PORT)?,
            serve(&backend, BACKEND_PORT)?,
        ];
        lab.manifests().namespace("shop", false)?;
        lab.manifests().put_text("services", SERVICES)?;
        lab.manifests().put(
            "endpoints",
            &[
                slice("frontend", "http", 8080, &[&frontend]),
                slice("reviews", "http", REVIEWS_PORT, &[&reviews_v1, &reviews_v2]),
                slice("backend", "tcp", BACKEND_PORT, &[&backend]),
            ],
        )?;
        let agents = lab.agents()?;
        let shop = Self { frontend, reviews_v1, reviews_v2, backend, apps, agents, lab };
        for node in ["node-a", "node-b"] {
            let pods = [&shop.frontend, &shop.reviews_v1, &shop.reviews_v2, &shop.backend];
            let here: Vec<String> = pods
                .iter()
                .filter(|pod| pod.node() == node)
                .map(|pod| format!("{} {}", pod.name(), pod.ips()[0]))
                .collect();
            terminal.say(&format!("{node}   one mesh-agent, pods: {}", here.join(", ")));
        }
        terminal.dim(&format!("   (up after {:.1} s)", terminal.seconds()));
        Ok(shop)
    }

    pub(crate) fn lab(&self) -> &Lab {
        &self.lab
    }

    pub(crate) fn agent(&self, node: &str) -> Result<&Agent> {
        self.agents.iter().find(|agent| agent.node() == node).with_context(|| format!("no agent on {node}"))
    }

    /// Shows and runs a verb of the CLI.
    pub(crate) fn cli(&self, terminal: &Terminal, node: &str, words: &[&str]) -> Result<CliOutput> {
        let agent = self.agent(node)?;
        terminal.command(&format!("{node}: mesh-agent {}", words.join(" ")));
        let said = agent.cli(words)?;
        terminal.output(&said.stdout);
        terminal.output(&said.stderr);
        Ok(said)
    }

    /// Shows and runs curl in a pod.
    pub(crate) fn curl(&self, terminal: &Terminal, pod: &Pod, url: &str) -> Result<Said> {
        terminal.command(&format!("{}: curl {url}", pod.name()));
        let said = self.curl_quietly(pod, url)?;
        terminal.output(&said.text);
        Ok(said)
    }

    pub(crate) fn curl_quietly(&self, pod: &Pod, url: &str) -> Result<Said> {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", pod.netns().path().display()));
        // The environment's proxy is no part of the story.
        command.args(["curl", "-sS", "--noproxy", "*", "--max-time", "8", url]);
        let out = command.output().context("cannot start nsenter; run `cargo xtask setup`")?;
        let mut text = String::from_utf8_lossy(&out.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&out.stderr));
        Ok(Said { code: out.status.code().unwrap_or(-1), text })
    }

    /// Puts one of the examples where the agents read.
    pub(crate) fn apply(&self, terminal: &Terminal, file: &str, text: &str) -> Result<()> {
        terminal.command(&format!("cp deploy/examples/{file} MANIFESTS/"));
        self.lab.manifests().put_text(&manifest_name(file), text)
    }

    pub(crate) fn remove(&self, terminal: &Terminal, file: &str) -> Result<()> {
        let name = manifest_name(file);
        terminal.command(&format!("rm MANIFESTS/{name}.yaml"));
        self.lab.manifests().remove(&name)
    }

    /// Waits until this agent's answer to a verb is as wanted.
    pub(crate) fn until(
        &self,
        what: &str,
        node: &str,
        verb: &[&str],
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Duration> {
        let agent = self.agent(node)?;
        let mut last = Value::Null;
        let waited = eventually(what, FOLLOWS, || {
            last = agent.ask(verb)?;
            Ok(wanted(&last))
        });
        waited.with_context(|| format!("`mesh-agent {}` on {node} says {last}", verb.join(" ")))
    }

    pub(crate) fn print_logs(&self, terminal: &Terminal) {
        for agent in &self.agents {
            let log = agent.log();
            let lines: Vec<&str> = log.lines().collect();
            terminal.dim(&format!("the last the agent of {} logged:", agent.node()));
            terminal.output(&lines[lines.len().saturating_sub(20)..].join("\n"));
        }
    }

    /// Ends everything and makes sure that nothing is left.
    pub(crate) fn close(self, terminal: &Terminal) -> Result<()> {
        terminal.dim("\ntaking the shop down");
        let (name, dir) = (self.lab.name().to_owned(), self.lab.dir().to_path_buf());
        let pins: Vec<PathBuf> = self.agents.iter().map(|agent| agent.bpf_dir().to_path_buf()).collect();
        drop(self.apps);
        let mut stopped = Ok(());
        for agent in self.agents {
            let node = agent.node().to_owned();
            // A Ctrl-C reaches the agents too: one that has ended already has done its part.
            match agent.stop() {
                Ok(status) if status.success() => {}
                Ok(status) => stopped = Err(anyhow::anyhow!("the agent of {node} ended with {status}")),
                Err(error) => stopped = Err(error.context(format!("stopping the agent of {node}"))),
            }
        }
        let mut left: Vec<String> =
            pins.iter().filter(|dir| dir.exists()).map(|dir| dir.display().to_string()).collect();
        drop(self.lab);
        left.extend(namespaces(&name));
        left.extend(Some(dir).filter(|dir| dir.exists()).map(|dir| dir.display().to_string()));
        if !left.is_empty() {
            bail!("expected nothing to be left behind, saw {}", left.join(", "));
        }
        stopped?;
        terminal.proven(&format!(
            "no process, namespace, pinned program or file is left (after {:.1} s)",
            terminal.seconds()
        ));
        Ok(())
    }
}

/// `policies/strict.yaml` lies in the folder as `strict.yaml`.
pub(crate) fn manifest_name(file: &str) -> String {
    match file {
        "shop/namespace.yaml" => "namespace-shop".to_owned(),
        _ => Path::new(file).file_stem().unwrap_or_default().to_string_lossy().into_owned(),
    }
}

fn namespaces(lab: &str) -> Vec<String> {
    let entries = std::fs::read_dir(mesh_tests::netns::NETNS_DIR).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with(&format!("{lab}-"))).collect()
}

fn slice(service: &str, port: &str, number: u16, pods: &[&Pod]) -> Value {
    let endpoints: Vec<Value> = pods
        .iter()
        .map(|pod| {
            json!({
                "addresses": [pod.ips()[0]], "nodeName": pod.node(), "conditions": {"ready": true},
                "targetRef": {"kind": "Pod", "namespace": "shop", "name": pod.name(), "uid": pod.uid()},
            })
        })
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{service}-ipv4"), "namespace": "shop",
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": "IPv4", "endpoints": endpoints,
        "ports": [{"name": port, "port": number, "protocol": "TCP"}],
    })
}

/// An application that says who it is and whom it sees, on connections that stay open.
fn serve(pod: &Pod, port: u16) -> Result<App> {
    let name: Arc<str> = Arc::from(pod.name());
    App::start(
        pod.netns(),
        port,
        Arc::new(move |stream, _stats| -> Pin<Box<dyn Future<Output = std::io::Result<()>>>> {
            Box::pin(answer(stream, Arc::clone(&name)))
        }),
    )
}

async fn answer(mut stream: TcpStream, name: Arc<str>) -> std::io::Result<()> {
    let peer = canonical(stream.peer_addr()?).ip();
    let mut head = Vec::new();
    let mut block = [0; 1024];
    loop {
        let length = stream.read(&mut block).await?;
        if length == 0 || head.len() > HEAD_MAX {
            return stream.shutdown().await;
        }
        head.extend_from_slice(&block[..length]);
        if head.ends_with(b"\r\n\r\n") {
            head.clear();
            let body = format!("this is {name}, called by {peer}\n");
            let reply = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            stream.write_all(reply.as_bytes()).await?;
        }
    }
}
