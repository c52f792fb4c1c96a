//! Planned restart: a second agent takes the listeners over while connections are opened.
use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_tests::{Agent, AgentSpec, PodSpec, client, eventually};

use crate::flood::Flood;
use crate::outside::{all_echo, answering, holder, in_office, relayed, socket_files, with_reasons};
use crate::shop::{PATIENCE, PORT, Shop};

const RATE: u32 = 500;

fn workers(count: usize) -> AgentSpec {
    AgentSpec { workers: Some(count), ..AgentSpec::default() }
}

/// Starts a successor and waits until it has taken office and the one before it has stopped answering.
fn succeed(shop: &Shop, spec: &AgentSpec) -> Result<Agent> {
    let mut next = shop.lab.agent_unready("node-a", spec)?;
    in_office(&mut next)?;
    Ok(next)
}

/// At 500 connections a second over both relayed paths none fails while one agent follows the other; the old one
/// exits by itself, its live connections go on until they end.
#[test]
fn a_planned_restart_loses_nothing() -> Result<()> {
    let shop = Shop::new("planned restart")?;
    // A connection that slips past the agents would be refused, not served in plaintext unseen.
    shop.lab.manifests().mtls("shop", "STRICT")?;
    let mut agents = shop.lab.agents()?;
    let mut live = shop.live()?;
    let mut bypassed = shop.bypassed(&agents[0])?;
    let flood = Flood::start(&shop.client, relayed(&shop), RATE)?;
    std::thread::sleep(Duration::from_secs(1));
    let mut next = succeed(&shop, &AgentSpec::default())?;
    std::thread::sleep(Duration::from_secs(1));
    agents[0].process().check_alive()?;
    all_echo(&mut live)?;
    let outcome = flood.stop()?;
    with_reasons(&shop.lab, outcome.check(RATE as usize))?;
    all_echo(&mut live)?;
    drop(live);
    let status = agents[0].process().wait(PATIENCE)?;
    ensure!(status.success(), "the old agent ended with {status}");
    ensure!(next.metric("istio_tcp_connections_opened_total", &[])? > 0.0, "the new one served none");
    client::echo(&mut bypassed, b"past both agents")?;
    // The end of the old one took nothing away from the new one.
    next.process().check_alive()?;
    ensure!(answering(&next)? == i64::from(next.pid()), "the admin socket is gone");
    let mut after = shop.live()?;
    all_echo(&mut after)?;
    drop((after, bypassed));
    ensure!(next.stop()?.success(), "the new agent ended badly");
    ensure!(agents.remove(1).stop()?.success(), "the other node's agent ended badly");
    ensure!(socket_files(&shop.lab)?.is_empty(), "left: {:?}", socket_files(&shop.lab)?);
    Ok(())
}

/// The far side's agent can be succeeded as well: connections that arrive over HBONE meanwhile all pass.
#[test]
fn a_planned_restart_of_the_destination_loses_nothing() -> Result<()> {
    let shop = Shop::new("planned restart of the destination")?;
    let mut agents = shop.lab.agents()?;
    let flood = Flood::start(&shop.client, vec![shop.far.v4(PORT), shop.far.v6(PORT)], RATE)?;
    std::thread::sleep(Duration::from_millis(500));
    let mut next = shop.lab.agent_unready("node-b", &AgentSpec::default())?;
    in_office(&mut next)?;
    std::thread::sleep(Duration::from_millis(500));
    with_reasons(&shop.lab, flood.stop()?.check(RATE as usize / 2))?;
    ensure!(agents[1].process().wait(PATIENCE)?.success(), "the old agent ended badly");
    Ok(())
}

/// Agents with other numbers of workers can follow each other, more or fewer.
#[test]
fn successors_may_have_other_numbers_of_workers() -> Result<()> {
    let shop = Shop::new("other workers")?;
    let mut agent = shop.lab.agent_with("node-a", &workers(1))?;
    let _far = shop.lab.agent("node-b")?;
    for count in [3, 1, 2] {
        let flood = Flood::start(&shop.client, relayed(&shop), RATE / 2)?;
        std::thread::sleep(Duration::from_millis(300));
        let mut next = succeed(&shop, &workers(count))?;
        std::thread::sleep(Duration::from_millis(300));
        with_reasons(&shop.lab, flood.stop()?.check(100))?;
        ensure!(agent.process().wait(PATIENCE)?.success(), "the old agent ended badly");
        ensure!(next.ask(&["status"])?["workers"] == count, "not {count} workers");
        next.process().check_alive()?;
        agent = next;
    }
    ensure!(agent.stop()?.success(), "the last ended badly");
    Ok(())
}

/// A successor that fails after it has taken the listeners changes nothing: the running agent goes on, enrols new
/// pods, and can still be succeeded.
#[test]
fn a_successor_that_fails_changes_nothing() -> Result<()> {
    let shop = Shop::new("failing successor")?;
    let mut agent = shop.lab.agent("node-a")?;
    let _far = shop.lab.agent("node-b")?;
    let mut live = shop.live()?;
    // A certificate authority that cannot be: found out after the listeners were taken.
    let not_a_folder = shop.lab.dir().join("file");
    std::fs::write(&not_a_folder, "")?;
    let spec = AgentSpec { ca_dir: Some(not_a_folder), ..AgentSpec::default() };
    let mut failing = shop.lab.agent_unready("node-a", &spec)?;
    ensure!(failing.process().wait(PATIENCE)?.code() == Some(1), "it was to fail");
    all_echo(&mut live)?;
    ensure!(answering(&agent)? == i64::from(agent.pid()), "another answers");
    let late = shop.lab.pod(PodSpec::new("shop", "late", "node-a"))?;
    eventually("the late pod to be enrolled", PATIENCE, || enrolled(&agent, "late"))?;
    drop(live);
    let mut next = succeed(&shop, &AgentSpec::default())?;
    ensure!(agent.process().wait(PATIENCE)?.success(), "the old agent ended badly");
    let mut stream = late.connect(shop.far.v4(PORT))?;
    client::echo(&mut stream, b"from the late one")?;
    ensure!(enrolled(&next, "late")?, "the new one lost a pod");
    next.process().check_alive()
}

/// The successor takes over from a holder what it must keep there too: after the restart a sudden death of the new
/// agent loses nothing that waits.
#[test]
fn the_holder_follows_the_successor() -> Result<()> {
    let shop = Shop::new("holder and successor")?;
    let (_holder, arguments) = holder(&shop.lab, "holder")?;
    let spec = AgentSpec { arguments, ..AgentSpec::default() };
    let mut agent = shop.lab.agent_with("node-a", &spec)?;
    let _far = shop.lab.agent("node-b")?;
    let mut next = succeed(&shop, &spec)?;
    ensure!(agent.process().wait(PATIENCE)?.success(), "the old agent ended badly");
    next.kill()?;
    let waiting = Flood::start(&shop.client, relayed(&shop), RATE)?;
    std::thread::sleep(Duration::from_millis(300));
    let mut last = shop.lab.agent_unready("node-a", &spec)?;
    in_office(&mut last)?;
    with_reasons(&shop.lab, waiting.stop()?.check(100))
}

fn enrolled(agent: &Agent, name: &str) -> Result<bool> {
    let workloads = agent.ask(&["workloads"])?;
    Ok(crate::shop::rows(&workloads)?.iter().any(|row| row["name"] == name && row["enrolment"] == "captured"))
}
