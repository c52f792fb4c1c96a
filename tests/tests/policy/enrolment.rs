//! Pods that join and leave the mesh while they run: the next connection knows, the open ones do not notice.
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::{AgentSpec, App, Pod, PodSpec, client};

use crate::mesh::{Fate, Mesh, PORT, SOON, fate_of, wait_end};

fn open(mesh: &Mesh, from: &Pod, wanted: Option<&str>) -> Result<Vec<TcpStream>> {
    let mut all = Vec::new();
    for to in mesh.far.both(PORT) {
        mesh.wait_fate(from, to, Fate::Echoed)?;
        let mut stream = from.connect(to)?;
        client::echo(&mut stream, b"open")?;
        let path = mesh.path_of(&stream, from.node())?;
        ensure!(path.as_deref() == wanted, "{} to {to} takes the path {path:?}", from.id());
        all.push(stream);
    }
    Ok(all)
}

/// A namespace with running pods gets the label: the next connection is mutual TLS. It loses the label: plain again.
/// What was open before goes on both times.
#[test]
fn running_pods_join_and_leave() -> Result<()> {
    let mesh =
        Mesh::with("enrolment of running pods", false, |_| Ok([AgentSpec::default(), AgentSpec::default()]))?;
    let _echo = App::echo(&mesh.far, PORT)?;
    let mut before = open(&mesh, &mesh.client, None)?;
    mesh.lab.manifests().namespace("shop", true)?;
    mesh.wait_enrolled(&[&mesh.client, &mesh.far], true)?;
    let mut during = open(&mesh, &mesh.client, Some("hbone"))?;
    for stream in &mut before {
        assert_eq!(fate_of(stream)?, Fate::Echoed, "from before the enrolment");
    }
    mesh.lab.manifests().namespace("shop", false)?;
    mesh.wait_enrolled(&[&mesh.client, &mesh.far], false)?;
    let mut after = open(&mesh, &mesh.client, None)?;
    for (when, streams) in [("before", &mut before), ("during", &mut during), ("after", &mut after)] {
        for stream in streams {
            assert_eq!(fate_of(stream)?, Fate::Echoed, "opened {when} the enrolment");
        }
    }
    Ok(())
}

/// A pod that leaves the mesh keeps what it has open, also where the kernel connects it directly; and policy goes on to
/// speak of it: what it forbids later is ended.
#[test]
fn a_bypassed_connection_outlives_the_enrolment_and_not_the_policy() -> Result<()> {
    let mesh = Mesh::new("bypass of a pod that leaves")?;
    let _echo = App::echo(&mesh.near, PORT)?;
    let mut live = Vec::new();
    for to in mesh.near.both(PORT) {
        mesh_tests::eventually("the bypass", SOON, || {
            let mut stream = mesh.player.connect(to)?;
            client::echo(&mut stream, b"open")?;
            let bypass = mesh.path_of(&stream, "node-a")?.as_deref() == Some("bypass");
            live.extend(bypass.then_some(stream));
            Ok(bypass)
        })?;
    }
    mesh.lab.manifests().namespace("games", false)?;
    mesh.wait_enrolled(&[&mesh.player], false)?;
    // Past the moment at which what the mesh had set up in the pod is taken away.
    mesh_tests::hold("the connections", Duration::from_millis(1500), || {
        live.iter_mut().try_for_each(|stream| client::echo(stream, b"goes on"))?;
        Ok(true)
    })?;
    let deny = serde_json::json!({
        "action": "DENY", "rules": [{"from": [{"source": {"namespaces": ["games"]}}]}],
    });
    mesh.lab.manifests().authorization("shop", "no-games", &deny)?;
    for stream in &mut live {
        wait_end(stream)?;
    }
    Ok(())
}

/// The label on a pod that keeps it out wins over its namespace's.
#[test]
fn a_pod_may_stay_out() -> Result<()> {
    let mesh = Mesh::new("a pod stays out")?;
    let loner = PodSpec::new("shop", "loner", "node-a").label("nodemesh.io/mesh", "disabled");
    let loner = mesh.lab.pod(loner)?;
    mesh.wait_enrolled(&[&loner], false)?;
    let _echo = App::echo(&mesh.far, PORT)?;
    open(&mesh, &loner, None).context("the loner's connections are its own")?;
    mesh.lab.manifests().mtls("shop", "STRICT")?;
    for to in mesh.far.both(PORT) {
        mesh.wait_fate(&loner, to, Fate::Cut)?;
        mesh.wait_fate(&mesh.client, to, Fate::Echoed)?;
    }
    Ok(())
}
