//! A policy change and what is open: connections it forbids end, with a reason, and new ones are refused.
use std::time::Duration;

use anyhow::{Context, Result};
use mesh_tests::client;
use serde_json::json;

use crate::mesh::{Fate, PORT, SOON, fate_of, wait_end};
use crate::steps::{PLAYER, Steps, all_but, authz};

/// A DENY for one client ends its connections on every path (through the kernel, relayed on the node, tunnelled) and
/// those of a stranger, leaves everybody else's alone, and is gone when it is removed.
#[test]
fn a_policy_change_cuts_what_it_forbids() -> Result<()> {
    let steps = Steps::new("live connections cut")?;
    let mesh = &steps.mesh;
    steps.step("before", &[], &all_but(&[]))?;
    let mut doomed = Vec::new();
    let mut spared = Vec::new();
    for way in steps.ways() {
        let mut stream = way.from.connect(way.to)?;
        client::echo(&mut stream, b"open")?;
        let path = mesh.path_of(&stream, "node-a")?;
        let list = if PLAYER.contains(&way.name) { &mut spared } else { &mut doomed };
        list.push((way.name, path, stream));
    }
    let paths: Vec<_> = doomed.iter().map(|(name, path, _)| (*name, path.as_deref())).collect();
    let wanted = [
        ("client>near", Some("bypass")),
        ("client>vip", Some("local")),
        ("client>far", Some("hbone")),
        ("client>far:8081", Some("hbone")),
        ("stranger>near", Some("plain")),
        // Seen by node-b's agent alone.
        ("stranger>far", None),
    ];
    assert_eq!(paths, wanted);
    let failed_before = failures(&steps)?;
    let only_player = json!({"rules": [{"from": [{"source": {"namespaces": ["games"]}}]}]});
    steps.apply(&[authz(only_player)])?;
    for (name, path, stream) in &mut doomed {
        wait_end(stream).with_context(|| format!("{name} over {path:?}"))?;
    }
    steps.expect("the client and the stranger are out", &PLAYER)?;
    for (name, _, stream) in &mut spared {
        assert_eq!(fate_of(stream)?, Fate::Echoed, "{name} was to be left alone");
    }
    for (name, path, stream) in &doomed {
        let from = format!("src.addr={}", stream.local_addr()?);
        let node = if name.ends_with("far") || name.ends_with("8081") { "node-b" } else { "node-a" };
        // A tunnelled connection is judged by the server's node, under a source port of the tunnel's own.
        let mut parts = vec!["reason=\"policy_changed\"", "connection failed"];
        if path.as_deref() == Some("hbone") {
            parts.push("path=\"hbone\"");
        } else {
            parts.push(&from);
        }
        mesh.wait_logged(node, &parts).with_context(|| format!("{name} over {path:?}"))?;
    }
    assert!(failures(&steps)? >= failed_before + 6.0);
    steps.step("after", &[], &all_but(&[]))
}

fn failures(steps: &Steps) -> Result<f64> {
    let mut sum = 0.0;
    for agent in &steps.mesh.agents {
        sum += agent.metric("istio_tcp_connections_failed_total", &[("response_flags", "DENY")])?;
    }
    Ok(sum)
}

/// A bypassed flow is refused at connect with ECONNREFUSED, as long as the policy says so, however often it changes.
#[test]
fn the_bypass_follows_the_policy() -> Result<()> {
    let steps = Steps::new("bypass and policy")?;
    let mesh = &steps.mesh;
    let deny = authz(json!({"action": "DENY", "rules": [{"from": [{"source": {"namespaces": ["shop"]}}]}]}));
    for _ in 0..4 {
        steps.apply(&[])?;
        for to in mesh.near.both(PORT) {
            mesh.wait_fate(&mesh.client, to, Fate::Echoed)?;
        }
        let mut live: Vec<_> =
            mesh.near.both(PORT).map(|to| mesh.client.connect(to)).into_iter().collect::<Result<_>>()?;
        let written = std::time::Instant::now();
        steps.apply(std::slice::from_ref(&deny))?;
        for stream in &mut live {
            wait_end(stream)?;
        }
        println!("written, loaded by both agents and cut after {:?}", written.elapsed());
        for to in mesh.near.both(PORT) {
            mesh.wait_fate(&mesh.client, to, Fate::Refused)?;
            mesh_tests::hold("ECONNREFUSED", Duration::from_millis(200), || {
                Ok(crate::mesh::probe(&mesh.client, to)? == Fate::Refused)
            })?;
        }
    }
    mesh_tests::eventually("the servers to see the ends", SOON, || {
        Ok(steps.apps.iter().all(|app| app.stats().open() == 0))
    })?;
    Ok(())
}
