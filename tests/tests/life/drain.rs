//! The end on SIGTERM.
use std::io::Read;
use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_tests::{AgentSpec, eventually};

use crate::outside::{all_echo, readiness, socket_files, traces};
use crate::shop::{PATIENCE, PORT, Shop};

/// SIGTERM: live connections go on, new ones pass the agent by, and when the last has ended it exits with 0 and
/// leaves nothing.
#[test]
fn sigterm_drains_and_leaves_nothing() -> Result<()> {
    let shop = Shop::new("drain")?;
    let before = [traces(&shop.client)?, traces(&shop.near)?];
    let mut agents = shop.lab.agents()?;
    ensure!(traces(&shop.client)? != before[0], "the agent is expected to leave traces while it runs");
    let mut live = shop.live()?;
    ensure!(readiness(&shop.lab, "node-a")? == 200, "a ready agent says so");
    agents[0].terminate()?;
    eventually("readiness to go", PATIENCE, || Ok(readiness(&shop.lab, "node-a")? == 503))?;
    let opened = |agent: &mesh_tests::Agent| agent.metric("istio_tcp_connections_opened_total", &[]);
    eventually("capture to end", PATIENCE, || {
        let before = opened(&agents[0])?;
        let direct = shop.echoing(shop.far.v4(PORT));
        Ok(direct.is_ok() && opened(&agents[0])? == before)
    })?;
    all_echo(&mut live)?;
    agents[0].process().check_alive()?;
    let status = agents[0].cli(&["status", "-o", "json"])?;
    ensure!(
        status.code == 1 && status.json()?["state"] == "draining",
        "it does not say that it drains: {status:?}"
    );
    drop(live);
    let (bpf_dir, pins) = (agents[0].bpf_dir().to_path_buf(), agents[0].pins());
    ensure!(pins > 0, "pins stay until the last connection has ended");
    let status = agents[0].process().wait(PATIENCE)?;
    ensure!(status.success(), "it ended with {status}");
    ensure!(!bpf_dir.exists(), "pins are left");
    ensure!([traces(&shop.client)?, traces(&shop.near)?] == before, "left: {}", traces(&shop.client)?);
    let agent_b = agents.remove(1);
    ensure!(agent_b.stop()?.success(), "the other node's agent ends as well");
    ensure!(socket_files(&shop.lab)?.is_empty(), "socket files are left: {:?}", socket_files(&shop.lab)?);
    ensure!(readiness(&shop.lab, "node-a").is_err(), "somebody still answers");
    Ok(())
}

/// A connection that does not end is cut at the deadline, with the reason in the log, and the exit is clean.
#[test]
fn the_deadline_cuts_what_is_left() -> Result<()> {
    let shop = Shop::new("drain deadline")?;
    let spec = AgentSpec {
        arguments: ["--drain-deadline", "1s", "--log-format", "json"].map(str::to_owned).to_vec(),
        ..AgentSpec::default()
    };
    let mut agent = shop.lab.agent_with("node-a", &spec)?;
    let _far = shop.lab.agent("node-b")?;
    let mut live = shop.live()?;
    agent.terminate()?;
    let status = agent.process().wait(PATIENCE)?;
    ensure!(status.success(), "it ended with {status}");
    for stream in &mut live {
        let cut = stream.read(&mut [0; 8]);
        ensure!(matches!(&cut, Ok(0) | Err(_)), "still open: {cut:?}");
        ensure!(!cut.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock), "never cut");
    }
    let log = agent.log();
    ensure!(log.lines().filter(|line| line.contains("drain_deadline")).count() >= 2, "no reason in {log}");
    ensure!(!agent.bpf_dir().exists(), "pins are left");
    Ok(())
}

/// A second signal during the drain ends the waiting: whoever sends it has no more patience.
#[test]
fn a_second_signal_hurries() -> Result<()> {
    let shop = Shop::new("second signal")?;
    let spec =
        AgentSpec { arguments: vec!["--drain-deadline".to_owned(), "1h".to_owned()], ..AgentSpec::default() };
    let mut agent = shop.lab.agent_with("node-a", &spec)?;
    let _far = shop.lab.agent("node-b")?;
    let mut live = shop.live()?;
    agent.terminate()?;
    eventually("the drain", PATIENCE, || Ok(readiness(&shop.lab, "node-a")? == 503))?;
    // Before the second, so that the two are not one.
    std::thread::sleep(Duration::from_millis(200));
    all_echo(&mut live)?;
    agent.terminate()?;
    ensure!(agent.process().wait(PATIENCE)?.success(), "it ended badly");
    ensure!(!agent.bpf_dir().exists(), "pins are left");
    Ok(())
}

/// Policy goes on to hold for what drains: a connection that is no longer allowed is cut before the deadline.
#[test]
fn policy_holds_during_the_drain() -> Result<()> {
    let shop = Shop::new("policy during the drain")?;
    let spec =
        AgentSpec { arguments: vec!["--drain-deadline".to_owned(), "1h".to_owned()], ..AgentSpec::default() };
    let mut agent = shop.lab.agent_with("node-a", &spec)?;
    let mut local = shop.echoing(shop.vip)?;
    agent.terminate()?;
    eventually("the drain", PATIENCE, || Ok(readiness(&shop.lab, "node-a")? == 503))?;
    shop.lab.manifests().authorization("shop", "nobody", &serde_json::json!({}))?;
    let cut = local.read(&mut [0; 8]);
    ensure!(!cut.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock), "never cut");
    ensure!(agent.process().wait(PATIENCE)?.success(), "the last connection's end is the agent's");
    Ok(())
}
