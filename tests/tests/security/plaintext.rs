//! Plaintext: refused where mutual TLS is demanded, also while no agent runs, and never on the link between nodes.
use anyhow::{Context, Result};
use mesh_tests::sniff::Sniffer;
use mesh_tests::{AgentSpec, App, PodSpec, client};

use crate::mesh::{Fate, Mesh, PORT, probe, wait_end};

fn strict(scenario: &str) -> Result<Mesh> {
    Mesh::with(scenario, true, |lab| {
        lab.manifests().mtls("shop", "STRICT")?;
        Ok([AgentSpec::default(), AgentSpec::default()])
    })
}

/// Under STRICT an unmeshed pod gets through to no pod of the mesh, on its own node or another, in neither family;
/// pods of the mesh do.
#[test]
fn strict_refuses_plaintext() -> Result<()> {
    let mesh = strict("STRICT")?;
    let abroad = mesh.lab.pod(PodSpec::new("outside", "abroad", "node-b"))?;
    for server in [&mesh.near, &mesh.far] {
        let echo = App::echo(server, PORT)?;
        for from in [&mesh.stranger, &abroad] {
            for (family, to) in server.both(PORT).into_iter().enumerate() {
                assert_eq!(probe(from, to)?, Fate::Cut, "{} to {to}", from.id());
                let (from, to) = (from.ips()[family], format!("dst.addr={to}"));
                let from =
                    if from.is_ipv6() { format!("src.addr=[{from}]:") } else { format!("src.addr={from}:") };
                mesh.wait_logged(server.node(), &[&from, &to, "reason=\"plaintext_refused\""])?;
            }
        }
        assert_eq!((echo.stats().accepted(), echo.stats().received()), (0, 0));
        for to in server.both(PORT) {
            mesh.wait_fate(&mesh.client, to, Fate::Echoed)?;
        }
    }
    Ok(())
}

/// STRICT holds while the agent is dead: a pod whose agent was killed is closed to plaintext from everywhere, and
/// open connections through that agent end.
#[test]
fn strict_is_closed_while_the_agent_is_dead() -> Result<()> {
    let mut mesh = strict("STRICT without an agent")?;
    let abroad = mesh.lab.pod(PodSpec::new("outside", "abroad", "node-a"))?;
    let at_home = mesh.lab.pod(PodSpec::new("outside", "at-home", "node-b"))?;
    let echo = App::echo(&mesh.far, PORT)?;
    let mut live = mesh.client.connect(mesh.far.v4(PORT))?;
    client::echo(&mut live, b"before")?;
    let before = echo.stats().accepted();
    let agent = mesh.agents.iter_mut().find(|agent| agent.node() == "node-b").context("no agent")?;
    agent.kill()?;
    for from in [&abroad, &at_home] {
        for to in mesh.far.both(PORT) {
            assert_ne!(probe(from, to)?, Fate::Echoed, "{} to {to}", from.id());
        }
    }
    for to in mesh.far.both(PORT) {
        assert_ne!(probe(&mesh.client, to)?, Fate::Echoed, "without its agent nobody proves who comes");
    }
    wait_end(&mut live)?;
    assert_eq!(echo.stats().accepted(), before);
    Ok(())
}

/// The link between the nodes shows a plaintext marker before the pods are enrolled (so the capture works), and none
/// after, in both families and both directions.
#[test]
fn the_link_shows_no_plaintext() -> Result<()> {
    const BEFORE: &[u8] = b"marker-before-enrolment";
    const AFTER: &[u8] = b"marker-after-enrolment";
    let mesh =
        Mesh::with("plaintext on the link", false, |_| Ok([AgentSpec::default(), AgentSpec::default()]))?;
    let (_far, _client) = (App::echo(&mesh.far, PORT)?, App::echo(&mesh.client, PORT)?);
    let talk = |marker: &[u8]| -> Result<()> {
        for (from, server) in [(&mesh.client, &mesh.far), (&mesh.far, &mesh.client)] {
            for to in server.both(PORT) {
                client::echo(&mut from.connect(to)?, marker)
                    .with_context(|| format!("{} to {to}", from.id()))?;
            }
        }
        Ok(())
    };
    let sniffer = Sniffer::on_link(&mesh.lab)?;
    talk(BEFORE)?;
    let seen = sniffer.stop()?;
    assert!(seen.saw(BEFORE) && seen.tcp_to(PORT) && !seen.tcp_to(15008), "{seen:?}");
    mesh.lab.manifests().namespace("shop", true)?;
    mesh.wait_enrolled(&[&mesh.client, &mesh.far], true)?;
    let sniffer = Sniffer::on_link(&mesh.lab)?;
    talk(AFTER)?;
    let seen = sniffer.stop()?;
    assert!(seen.tcp_to(15008), "{seen:?}");
    assert!(!seen.saw(AFTER) && !seen.saw(BEFORE) && !seen.tcp_to(PORT), "{seen:?}");
    // Nor an identity or a name: certificates travel encrypted in TLS 1.3, and no server name is sent.
    for text in ["spiffe://", "cluster.local", "shop"] {
        assert!(!seen.saw(text.as_bytes()), "{text} is on the link: {seen:?}");
    }
    Ok(())
}
