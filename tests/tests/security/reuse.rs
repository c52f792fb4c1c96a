//! A pod goes and its address comes back with another identity: nobody takes the one for the other.
use std::io::Read;

use anyhow::{Context, Result, ensure};
use mesh_tests::client::{self, Dial};
use mesh_tests::{AgentSpec, App, PodSpec, eventually};
use serde_json::json;

use crate::mesh::{Fate, Mesh, PORT, SOON, probe, wait_end};

/// The client's side: an address that goes to another pod is reached under that pod's identity, on a tunnel of its
/// own; the connections to the former pod end.
#[test]
fn a_server_address_that_moves_takes_its_new_identity() -> Result<()> {
    let mesh = Mesh::new("server address reused")?;
    let old = App::greeter(&mesh.far, PORT, "old")?;
    let mut live = mesh.client.connect(mesh.far.v4(PORT))?;
    let mut greeting = [0; 3];
    live.read_exact(&mut greeting)?;
    assert_eq!(&greeting, b"old");
    mesh.lab.remove_pod(&mesh.far)?;
    let heir =
        mesh.lab.pod(PodSpec::new("shop", "heir", "node-b").account("heir").addresses_of(&mesh.far))?;
    let _new = App::greeter(&heir, PORT, "new")?;
    let short = Dial { deadline: std::time::Duration::from_secs(3), ..Dial::default() };
    for to in heir.both(PORT) {
        eventually("the heir to answer", SOON, || {
            let mut stream = mesh.client.dial(to, &short)?;
            stream.read_exact(&mut greeting)?;
            ensure!(&greeting == b"new", "somebody else answered");
            Ok(true)
        })?;
        let to = format!("dst.addr={to}");
        let identity = format!("dst.identity=\"{}\"", heir.spiffe("cluster.local"));
        mesh.wait_logged("node-a", &[&to, "path=\"hbone\"", &identity, "connection complete"])?;
        mesh.wait_logged("node-b", &[&to, "path=\"hbone\"", &identity, "connection complete"])?;
    }
    wait_end(&mut live).context("the connection to the pod that is gone")?;
    assert_eq!(old.stats().accepted(), 1);
    Ok(())
}

/// The server's side: a pod with the address of one that was allowed is judged by its own identity, on its own node
/// and on another; once it is allowed itself it gets in under its own name.
#[test]
fn a_client_address_that_moves_takes_its_new_identity() -> Result<()> {
    let only = |account: &str| {
        json!({"rules": [{"from": [{"source": {
            "principals": [format!("cluster.local/ns/shop/sa/{account}")],
        }}]}]})
    };
    let mesh = Mesh::with("client address reused", true, |lab| {
        lab.manifests().authorization("shop", "only", &only("client"))?;
        Ok([AgentSpec::default(), AgentSpec::default()])
    })?;
    let (near, far) = (App::echo(&mesh.near, PORT)?, App::echo(&mesh.far, PORT)?);
    let targets = [mesh.near.v4(PORT), mesh.near.v6(PORT), mesh.far.v4(PORT), mesh.far.v6(PORT)];
    let mut live = Vec::new();
    for to in targets {
        mesh.wait_fate(&mesh.client, to, Fate::Echoed)?;
        let mut stream = mesh.client.connect(to)?;
        client::echo(&mut stream, b"client")?;
        live.push(stream);
    }
    mesh.lab.remove_pod(&mesh.client)?;
    let heir =
        mesh.lab.pod(PodSpec::new("shop", "heir", "node-a").account("heir").addresses_of(&mesh.client))?;
    let accepted = || near.stats().accepted() + far.stats().accepted();
    let before = accepted();
    // From its first packet on, enrolled or not yet.
    for to in targets {
        assert_ne!(probe(&heir, to)?, Fate::Echoed, "{to}");
    }
    mesh.wait_enrolled(&[&heir], true)?;
    for (to, fate) in targets.into_iter().zip([Fate::Refused, Fate::Refused, Fate::Cut, Fate::Cut]) {
        mesh.wait_fate(&heir, to, fate)?;
        assert_eq!(probe(&heir, to)?, fate, "{to}");
    }
    assert_eq!(accepted(), before);
    eventually("the former pod's connections to end", SOON, || {
        Ok(far.stats().open() == 0 && near.stats().open() == 0)
    })?;
    mesh.lab.manifests().authorization("shop", "only", &only("heir"))?;
    let identity = format!("src.identity=\"{}\"", heir.spiffe("cluster.local"));
    for to in targets {
        mesh.wait_fate(&heir, to, Fate::Echoed)?;
    }
    for to in mesh.far.both(PORT) {
        mesh.wait_logged("node-b", &[&format!("dst.addr={to}"), &identity, "connection complete"])?;
    }
    drop(live);
    Ok(())
}
