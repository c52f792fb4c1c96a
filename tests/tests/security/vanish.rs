//! A pod goes without a word, its cable pulled: nothing that it had open on its node stays open at the other end, and
//! what was decided about it is not what its heir is let in by.
use std::io::{ErrorKind, Read};
use std::net::TcpStream;

use anyhow::{Context, Result, ensure};
use mesh_tests::{App, Pod, PodSpec, client, eventually};
use serde_json::json;

use crate::mesh::{Fate, Mesh, PORT, SOON, probe, wait_end};

/// Bypassed connections in both families.
fn bypassed(mesh: &Mesh, from: &Pod) -> Result<Vec<TcpStream>> {
    let mut all = Vec::new();
    for to in mesh.near.both(PORT) {
        let mut bypass = None;
        // A listener is known, and its bypass authorised, a moment after it is there.
        eventually("the bypass", SOON, || {
            let mut stream = from.connect(to)?;
            client::echo(&mut stream, b"open")?;
            let found = mesh.path_of(&stream, "node-a")?.as_deref() == Some("bypass");
            bypass = found.then_some(stream);
            Ok(found)
        })?;
        all.extend(bypass);
    }
    Ok(all)
}

/// No bypassed connection is known to the agent any more.
fn nothing_left(mesh: &Mesh) -> Result<()> {
    eventually("the bypassed connections to be forgotten", SOON, || {
        let rows = mesh.agent("node-a")?.ask(&["connections"])?;
        let left = rows.as_array().context("connections is not a list")?;
        ensure!(left.iter().all(|row| row["path"] != "bypass"), "{rows}");
        Ok(true)
    })?;
    Ok(())
}

/// The opener goes, by its Pod's deletion or by a crash that leaves the Pod: the server's end is ended, and so is the
/// client's, should anybody still hold it; another pod's connections to the same server go on.
#[test]
fn a_bypassed_connection_ends_at_both_ends_when_its_opener_is_gone() -> Result<()> {
    for crash in [false, true] {
        let mesh = Mesh::new(if crash { "opener crashed" } else { "opener deleted" })?;
        let echo = App::echo(&mesh.near, PORT)?;
        let mut spared = bypassed(&mesh, &mesh.player)?;
        let mut doomed = bypassed(&mesh, &mesh.client)?;
        eventually("the probes to end", SOON, || Ok(echo.stats().open() == 4))?;
        if crash {
            mesh.lab.destroy_pod(&mesh.client)?;
        } else {
            mesh.lab.remove_pod(&mesh.client)?;
        }
        eventually("the server's ends to end", SOON, || Ok(echo.stats().open() == 2))?;
        for stream in &mut doomed {
            let error = stream.read(&mut [0]).err().context("the client's end goes on")?;
            ensure!(error.kind() == ErrorKind::ConnectionAborted, "{error}");
            let from = format!("src.addr={}", stream.local_addr()?);
            mesh.wait_logged("node-a", &["path=\"bypass\"", "reason=\"workload_gone\"", &from])?;
        }
        for stream in &mut spared {
            client::echo(stream, b"still here")?;
        }
        // Connections were ended, not what listens for the next.
        spared.extend(bypassed(&mesh, &mesh.player)?);
        spared.clear();
        nothing_left(&mesh)?;
    }
    Ok(())
}

/// The server goes and another identity has its address at once: the client's connections end, and the heir is
/// reached as its own policy says, not by the leave that the former had given.
#[test]
fn an_heir_of_the_servers_address_inherits_no_bypass() -> Result<()> {
    let closed = json!({
        "selector": {"matchLabels": {"app": "heir"}},
        "action": "DENY",
        "rules": [{"from": [{"source": {"principals": ["cluster.local/ns/shop/sa/client"]}}]}],
    });
    let mesh = Mesh::with("bypass not inherited", true, |lab| {
        lab.manifests().authorization("shop", "closed", &closed)?;
        Ok([mesh_tests::AgentSpec::default(), mesh_tests::AgentSpec::default()])
    })?;
    let _former = App::echo(&mesh.near, PORT)?;
    let mut live = bypassed(&mesh, &mesh.client)?;
    mesh.lab.remove_pod(&mesh.near)?;
    let heir = PodSpec::new("shop", "heir", "node-a").account("heir").label("app", "heir");
    let heir = mesh.lab.pod(heir.addresses_of(&mesh.near))?;
    let echo = App::echo(&heir, PORT)?;
    mesh.wait_enrolled(&[&heir], true)?;
    for stream in &mut live {
        wait_end(stream)?;
    }
    let before = echo.stats().accepted();
    for to in heir.both(PORT) {
        for _ in 0..20 {
            let fate = probe(&mesh.client, to)?;
            ensure!(fate != Fate::Echoed, "the heir was reached by the former's leave");
        }
        mesh.wait_fate(&mesh.client, to, Fate::Refused)?;
        mesh.wait_fate(&mesh.player, to, Fate::Echoed)?;
    }
    ensure!(echo.stats().accepted() == before + 2, "somebody else got in");
    nothing_left(&mesh)
}
