//! Starts: refused ones say why in one sentence, and take nothing from anybody; and what changes while it runs.
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use mesh_tests::{Agent, AgentSpec, Lab, PodSpec, client, eventually, leaks};

use crate::outside::{all_echo, readiness, traces};
use crate::shop::{PATIENCE, PORT, Shop, rows};

/// A run of the agent that is expected to end at once.
pub(crate) fn run(lab: &Lab, name: &str, change: impl FnOnce(&mut Command)) -> Result<Output> {
    let mut command = Command::new(mesh_tests::agent::binary()?);
    command.args(["run", "--node", "node-a", "--metrics", "127.0.0.1:0", "--readiness", "127.0.0.1:0"]);
    command.arg("--ca-dir").arg(lab.ca_dir()).env("NODEMESH_LAB", lab.name());
    command.arg("--admin-socket").arg(lab.dir().join(format!("{name}.sock")));
    change(&mut command);
    lab.node("node-a")?.run(|| command.output().context("cannot start the agent"))
}

pub(crate) fn refused(output: &Output, code: i32, words: &[&str]) -> Result<()> {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(code), "{}: {said}", output.status);
    let sentences: Vec<&str> = said.lines().filter(|line| line.starts_with("mesh-agent: ")).collect();
    ensure!(sentences.len() == 1 && said.trim_end().ends_with(sentences[0]), "not one last sentence: {said}");
    for word in words {
        ensure!(said.contains(word), "`{word}` is not in: {said}");
    }
    Ok(())
}

pub(crate) fn with_folders<'a>(lab: &'a Lab, bpf_dir: &'a Path) -> impl Fn(&mut Command) + 'a {
    move |command| {
        command.arg("--manifests").arg(lab.manifests().dir()).arg("--bpf-dir").arg(bpf_dir);
    }
}

/// A second agent on one folder of pins, by another admin socket, is refused and disturbs nothing.
#[test]
fn two_agents_on_one_folder() -> Result<()> {
    let shop = Shop::new("two agents on one folder")?;
    let agents = shop.lab.agents()?;
    let mut live = shop.live()?;
    let bpf_dir = agents[0].bpf_dir();
    let output = run(&shop.lab, "second", with_folders(&shop.lab, bpf_dir))?;
    refused(&output, 1, &[&bpf_dir.display().to_string(), "--bpf-dir"])?;
    all_echo(&mut live)?;
    all_echo(&mut shop.live()?)
}

/// A second agent on one admin socket with another folder of pins is no successor.
#[test]
fn a_successor_needs_the_same_folder() -> Result<()> {
    let shop = Shop::new("another folder")?;
    let mut agent = shop.lab.agent("node-a")?;
    let _far = shop.lab.agent("node-b")?;
    let other = shop.lab.bpf_dir("node-c");
    let output = run(&shop.lab, "node-a", with_folders(&shop.lab, &other))?;
    refused(&output, 1, &["--bpf-dir", "--admin-socket"])?;
    ensure!(!other.exists(), "it left pins");
    all_echo(&mut shop.live()?)?;
    agent.process().check_alive()
}

/// Wrong settings are told by name and end with the code for wrong usage.
#[test]
fn wrong_settings_are_named() -> Result<()> {
    let lab = Lab::new("wrong settings", &["node-a"])?;
    let bpf_dir = lab.bpf_dir("node-a");
    let missing = lab.dir().join("nothing-here");
    let output = run(&lab, "missing", |command| {
        command.arg("--manifests").arg(&missing);
    })?;
    refused(&output, 2, &["manifests", &missing.display().to_string()])?;
    let config = lab.dir().join("config.yaml");
    for (text, word) in
        [("workers: many", "workers"), ("drain-deadlin: 3s", "drain-deadlin"), ("node: [", "config")]
    {
        std::fs::write(&config, text)?;
        let output = run(&lab, "config", |command| {
            with_folders(&lab, &bpf_dir)(command);
            command.arg("--config").arg(&config);
        })?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(2), "{text}: {said}");
        ensure!(said.contains(word), "{text}: {said}");
    }
    let output = run(&lab, "trust", |command| {
        with_folders(&lab, &bpf_dir)(command);
        command.args(["--trust-domain", "not a domain"]);
    })?;
    refused(&output, 2, &["trust-domain"])?;
    ensure!(!bpf_dir.exists(), "a refused start left pins");
    Ok(())
}

/// Without root it is root that is asked for, whatever else would fail.
#[test]
fn without_root_it_says_so() -> Result<()> {
    let lab = Lab::new("without root", &["node-a"])?;
    // The build folder need not be open to others.
    let folder = tempfile::Builder::new().prefix("nodemesh").tempdir()?;
    let open = |path: &Path| {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(path, mode)
    };
    let (program, manifests) = (folder.path().join("mesh-agent"), folder.path().join("manifests"));
    std::fs::copy(mesh_tests::agent::binary()?, &program)?;
    std::fs::create_dir(&manifests)?;
    [folder.path(), &program, &manifests].into_iter().try_for_each(open)?;
    let mut command = Command::new(&program);
    command
        .args(["run", "--node", "node-a", "--manifests"])
        .arg(&manifests)
        .arg("--ca-dir")
        .arg(folder.path());
    command.arg("--admin-socket").arg(folder.path().join("admin.sock")).env("NODEMESH_LAB", lab.name());
    command.uid(65534).gid(65534);
    let output = lab.node("node-a")?.run(|| command.output().context("cannot start the agent"))?;
    refused(&output, 1, &["root"])
}

/// A port that is taken is told before any pod is captured, and nothing is left.
#[test]
fn a_taken_port_is_named() -> Result<()> {
    let shop = Shop::new("taken port")?;
    let before = traces(&shop.client)?;
    let taken = shop.lab.node("node-a")?.run(|| Ok(std::net::TcpListener::bind("127.0.0.1:0")?))?;
    let address = taken.local_addr()?.to_string();
    let bpf_dir = shop.lab.bpf_dir("node-a");
    let mut command = Command::new(mesh_tests::agent::binary()?);
    command.args(["run", "--node", "node-a", "--metrics", &address]).arg("--ca-dir").arg(shop.lab.ca_dir());
    command.arg("--admin-socket").arg(shop.lab.dir().join("taken.sock")).env("NODEMESH_LAB", shop.lab.name());
    with_folders(&shop.lab, &bpf_dir)(&mut command);
    let output = shop.lab.node("node-a")?.run(|| command.output().context("cannot start the agent"))?;
    refused(&output, 1, &["metrics", &address])?;
    ensure!(!bpf_dir.exists(), "a failed start left pins");
    ensure!(traces(&shop.client)? == before, "a failed start left traces in a pod");
    Ok(())
}

/// Ready is never said before the pods are captured, and never taken back without cause.
#[test]
fn ready_means_captured() -> Result<()> {
    let shop = Shop::new("ready means captured")?;
    for number in 0..6 {
        shop.lab.pod(PodSpec::new("shop", &format!("extra-{number}"), "node-a"))?;
    }
    let mut agent = shop.lab.agent_unready("node-a", &AgentSpec::default())?;
    eventually("readiness", PATIENCE, || {
        agent.process().check_alive()?;
        Ok(readiness(&shop.lab, "node-a")? == 200)
    })?;
    ensure!(agent.ask(&["status"])?["workloads"]["enrolled"] == 8, "ready too early");
    mesh_tests::hold("readiness", std::time::Duration::from_secs(2), || {
        Ok(readiness(&shop.lab, "node-a")? == 200)
    })
}

/// Pods leave the mesh and come back while their connections live: those go on, new ones follow the new state, and
/// what the mesh had set up in a namespace goes when its last connection has.
#[test]
fn enrolment_changes_under_live_connections() -> Result<()> {
    let shop = Shop::new("enrolment under live connections")?;
    let before = traces(&shop.client)?;
    let agents = shop.lab.agents()?;
    let opened =
        |agent: &Agent| agent.metric("istio_tcp_connections_opened_total", &[("reporter", "source")]);
    let mut live = shop.live()?;
    for _ in 0..2 {
        shop.lab.manifests().namespace("shop", false)?;
        eventually("the pods to leave", PATIENCE, || {
            Ok(agents[0].ask(&["status"])?["workloads"]["enrolled"] == 0)
        })?;
        all_echo(&mut live)?;
        let count = opened(&agents[0])?;
        let mut direct = shop.echoing(shop.near.v4(PORT))?;
        ensure!(opened(&agents[0])? == count, "a pod outside the mesh was captured");
        shop.lab.manifests().namespace("shop", true)?;
        eventually("the pods to come back", PATIENCE, || {
            Ok(agents[0].ask(&["status"])?["workloads"]["enrolled"] == 2)
        })?;
        all_echo(&mut live)?;
        client::echo(&mut direct, b"from outside")?;
        eventually("new connections to be captured", PATIENCE, || {
            drop(shop.live()?);
            Ok(opened(&agents[0])? > count)
        })?;
    }
    shop.lab.manifests().namespace("shop", false)?;
    eventually("the pods to leave", PATIENCE, || {
        Ok(agents[0].ask(&["status"])?["workloads"]["enrolled"] == 0)
    })?;
    all_echo(&mut live)?;
    ensure!(traces(&shop.client)? != before, "the way back went under a live connection");
    drop(live);
    eventually("the namespace to be as before", PATIENCE, || Ok(traces(&shop.client)? == before))?;
    Ok(())
}

/// A live bypassed flow is cut by the policy change that forbids it, with its reason in metrics and log; one that is
/// still allowed goes on.
#[test]
fn a_policy_change_cuts_a_bypassed_flow() -> Result<()> {
    let shop = Shop::new("bypassed flow cut")?;
    let agent = shop.lab.agent("node-a")?;
    let mut flow = shop.bypassed(&agent)?;
    let allow = |account: &str| {
        serde_json::json!({
            "selector": {"matchLabels": {"app": "near"}}, "action": "ALLOW",
            "rules": [{"from": [{"source": {"principals": [format!("cluster.local/ns/shop/sa/{account}")]}}]}],
        })
    };
    shop.lab.manifests().authorization("shop", "near", &allow("client"))?;
    eventually("the policy to be known", PATIENCE, || Ok(rows(&agent.ask(&["policies"])?)?.len() == 1))?;
    client::echo(&mut flow, b"still allowed")?;
    shop.lab.manifests().authorization("shop", "near", &allow("somebody-else"))?;
    let ended = std::io::Read::read(&mut flow, &mut [0; 8]);
    let kind = ended.err().map(|error| error.kind());
    // SOCK_DESTROY tells the socket's own owner ECONNABORTED, and its peer a reset.
    ensure!(kind == Some(std::io::ErrorKind::ConnectionAborted), "not cut: {kind:?}");
    let again = shop.client.connect(shop.near.v4(PORT)).err().context("a denied flow was let through")?;
    ensure!(client::io_kind(&again) == Some(std::io::ErrorKind::ConnectionRefused), "{again:#}");
    eventually("the reason to be told", PATIENCE, || Ok(agent.log().contains("policy_changed")))?;
    eventually("the close to be counted", PATIENCE, || {
        let labels = [("reporter", "source"), ("destination_workload", "near")];
        Ok(agent.metric("istio_tcp_connections_closed_total", &labels)? >= 1.0)
    })?;
    Ok(())
}

/// What only the start has needed of the program does not stay in memory, and the agent goes on without it.
#[test]
fn the_code_of_the_start_is_given_back() -> Result<()> {
    const MEBIBYTE: u64 = 1 << 20;
    let shop = Shop::new("code of the start")?;
    let agents = shop.lab.agents()?;
    let mut live = shop.live()?;
    for agent in &agents {
        eventually("memory to be given back", PATIENCE, || {
            Ok(leaks::resident(agent.pid())? + 4 * MEBIBYTE < leaks::resident_peak(agent.pid())?)
        })?;
    }
    all_echo(&mut live)?;
    all_echo(&mut shop.live()?)
}
