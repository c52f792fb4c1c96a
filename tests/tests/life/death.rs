//! Sudden death: what waits, what is refused, what goes on, and what the next agent finds.
use std::io::ErrorKind;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_tests::client::{self, io_kind};
use mesh_tests::{Agent, AgentSpec, eventually, hold};
use nix::sys::signal::Signal;

use crate::flood::Flood;
use crate::outside::{all_echo, answering, holder, in_office, relayed, traces, with_reasons};
use crate::shop::{PATIENCE, PORT, Shop};

const RATE: u32 = 500;

/// `kill -9` with a holder, at 500 connections a second: none that was opened while no agent lived is lost.
#[test]
fn with_a_holder_the_gap_loses_nothing() -> Result<()> {
    let shop = Shop::new("killed with a holder")?;
    let (_holder, arguments) = holder(&shop.lab, "holder")?;
    let spec = AgentSpec { arguments, ..AgentSpec::default() };
    let mut agent = shop.lab.agent_with("node-a", &spec)?;
    let _far = shop.lab.agent("node-b")?;
    let flood = Flood::start(&shop.client, relayed(&shop), RATE)?;
    std::thread::sleep(Duration::from_millis(500));
    agent.kill()?;
    let gap = Instant::now();
    std::thread::sleep(Duration::from_millis(700));
    let mut next = shop.lab.agent_unready("node-a", &spec)?;
    in_office(&mut next)?;
    std::thread::sleep(Duration::from_millis(500));
    with_reasons(&shop.lab, flood.stop()?.check_from(RATE as usize / 2, Some(gap)))?;
    ensure!(next.metric("istio_tcp_connections_opened_total", &[])? > 0.0, "the new agent served none");
    Ok(())
}

/// The same on the destination's node: connections that arrive over HBONE wait for the next agent.
#[test]
fn with_a_holder_arrivals_wait_too() -> Result<()> {
    let shop = Shop::new("destination killed with a holder")?;
    let (_holder, arguments) = holder(&shop.lab, "holder")?;
    let spec = AgentSpec { arguments, ..AgentSpec::default() };
    let _near = shop.lab.agent("node-a")?;
    let mut agent = shop.lab.agent_with("node-b", &spec)?;
    drop(shop.live()?);
    agent.kill()?;
    // The other node's agent notices the end of its tunnels a moment later.
    std::thread::sleep(Duration::from_millis(200));
    let flood = Flood::start(&shop.client, vec![shop.far.v4(PORT), shop.far.v6(PORT)], RATE)?;
    std::thread::sleep(Duration::from_millis(500));
    let mut next = shop.lab.agent_unready("node-b", &spec)?;
    in_office(&mut next)?;
    std::thread::sleep(Duration::from_millis(300));
    with_reasons(&shop.lab, flood.stop()?.check(100))
}

/// A holder that dies costs nothing while the agent lives; the next holder is given everything.
#[test]
fn a_holder_can_be_replaced() -> Result<()> {
    let shop = Shop::new("replaced holder")?;
    let (mut first, arguments) = holder(&shop.lab, "holder")?;
    let spec = AgentSpec { arguments, ..AgentSpec::default() };
    let mut agent = shop.lab.agent_with("node-a", &spec)?;
    let _far = shop.lab.agent("node-b")?;
    first.kill()?;
    all_echo(&mut shop.live()?)?;
    let (_second, _) = holder(&shop.lab, "holder")?;
    let told = "the holder keeps the listeners";
    eventually("the new holder to have them", PATIENCE, || Ok(agent.log().contains(told)))?;
    agent.kill()?;
    let flood = Flood::start(&shop.client, relayed(&shop), RATE)?;
    std::thread::sleep(Duration::from_millis(300));
    let mut next = shop.lab.agent_unready("node-a", &spec)?;
    in_office(&mut next)?;
    with_reasons(&shop.lab, flood.stop()?.check(100))
}

/// A holder that hangs holds up neither connections nor the agent's sign of life.
#[test]
fn a_holder_that_hangs_holds_nothing_up() -> Result<()> {
    let shop = Shop::new("hanging holder")?;
    let (hanging, arguments) = holder(&shop.lab, "holder")?;
    let spec = AgentSpec { arguments, ..AgentSpec::default() };
    shop.lab.manifests().mtls("shop", "STRICT")?;
    let agent = shop.lab.agent_with("node-a", &spec)?;
    let _far = shop.lab.agent("node-b")?;
    hanging.signal(Signal::SIGSTOP)?;
    let late = shop.lab.pod(mesh_tests::PodSpec::new("shop", "late", "node-a"))?;
    eventually("the late pod's connection", PATIENCE, || {
        let mut stream = late.connect(shop.far.v4(PORT))?;
        client::echo(&mut stream, b"late")?;
        Ok(agent.log().contains("the holder did not take"))
    })?;
    // Longer than the kernel believes in an agent without a sign of life.
    hold("connections to be served", Duration::from_secs(12), || {
        all_echo(&mut shop.live()?)?;
        std::thread::sleep(Duration::from_millis(300));
        Ok(true)
    })?;
    hanging.signal(Signal::SIGCONT)
}

/// `kill -9` without a holder: pods that may go without protection connect directly, a bypassed flow never notices,
/// and the next agent adopts what is pinned and captures again.
#[test]
fn without_a_holder_open_pods_go_direct() -> Result<()> {
    let shop = Shop::new("killed without a holder")?;
    let mut agent = shop.lab.agent("node-a")?;
    let _far = shop.lab.agent("node-b")?;
    let mut bypassed = shop.bypassed(&agent)?;
    let pins = agent.pins();
    agent.kill()?;
    client::echo(&mut bypassed, b"no agent")?;
    for to in [shop.near.v4(PORT), shop.near.v6(PORT), shop.far.v4(PORT), shop.far.v6(PORT)] {
        let mut direct = shop.echoing(to).with_context(|| format!("to {to} without an agent"))?;
        client::echo(&mut direct, b"direct")?;
    }
    client::echo(&mut bypassed, b"still no agent")?;
    let next = shop.lab.agent("node-a")?;
    ensure!(next.pins() == pins, "{} pins became {}", pins, next.pins());
    client::echo(&mut bypassed, b"a new agent")?;
    let listed = |agent: &Agent| -> Result<usize> {
        let connections = agent.ask(&["connections"])?;
        Ok(crate::shop::rows(&connections)?.iter().filter(|row| row["path"] == "bypass").count())
    };
    ensure!(listed(&next)? >= 1, "the flow from before is not listed");
    all_echo(&mut shop.live()?)?;
    ensure!(next.metric("istio_tcp_connections_opened_total", &[])? >= 2.0, "nothing is captured again");
    drop(bypassed);
    eventually("the flow's end to be noticed", PATIENCE, || Ok(listed(&next)? == 0))?;
    ensure!(next.stop()?.success(), "the new agent ended badly");
    Ok(())
}

/// A namespace that leaves the mesh while no agent lives is given back by the next one as it came.
#[test]
fn what_left_meanwhile_is_given_back() -> Result<()> {
    let shop = Shop::new("left meanwhile")?;
    let before = traces(&shop.client)?;
    let mut agent = shop.lab.agent("node-a")?;
    ensure!(traces(&shop.client)? != before, "an agent is expected to leave traces while it runs");
    agent.kill()?;
    shop.lab.manifests().namespace("shop", false)?;
    let next = shop.lab.agent("node-a")?;
    eventually("the namespace to be as before", PATIENCE, || Ok(traces(&shop.client)? == before))?;
    drop(shop.echoing(shop.near.v4(PORT))?);
    ensure!(next.stop()?.success(), "the new agent ended badly");
    Ok(())
}

/// `kill -9` without a holder under STRICT: nobody connects out and nobody unauthenticated gets in until an agent is
/// back.
#[test]
fn without_a_holder_strict_pods_refuse() -> Result<()> {
    let shop = Shop::new("strict and killed")?;
    shop.lab.manifests().mtls("shop", "STRICT")?;
    let stranger = shop.lab.pod_unlisted(mesh_tests::PodSpec::new("other", "stranger", "node-b"))?;
    let mut agent = shop.lab.agent("node-a")?;
    let _far = shop.lab.agent("node-b")?;
    drop(shop.live()?);
    agent.kill()?;
    let refused = |what: &str, result: Result<std::net::TcpStream>| match result {
        Ok(_) => anyhow::bail!("{what} got through"),
        Err(error) => {
            let kind = io_kind(&error);
            ensure!(
                matches!(kind, Some(ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset)),
                "{what}: {error:#}"
            );
            Ok(())
        }
    };
    for to in [shop.far.v4(PORT), shop.far.v6(PORT), shop.vip] {
        refused("a pod of the node", shop.client.connect(to))?;
    }
    let (accepted, far) = (shop.near_echo.stats().accepted(), shop.far_echo.stats().accepted());
    let short = client::Dial { deadline: Duration::from_secs(2), ..client::Dial::default() };
    for to in shop.near.both(PORT) {
        ensure!(stranger.dial(to, &short).is_err(), "a stranger got in to {to}");
    }
    ensure!(shop.near_echo.stats().accepted() == accepted, "the application saw a stranger");
    ensure!(shop.far_echo.stats().accepted() == far, "the other node's application saw somebody");
    let mut next = shop.lab.agent("node-a")?;
    all_echo(&mut shop.live()?)?;
    ensure!(answering(&next)? == i64::from(next.pid()), "another answers");
    next.process().check_alive()
}
