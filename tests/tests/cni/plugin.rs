//! The plugin with its agent: a pod is in the mesh when `ADD` returns, and out of it when `DEL` does.
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_tests::{App, Lab, Pod, PodSpec, client, eventually};
use serde_json::json;

use crate::runtime::{Attachment, Plugin, enrolment, running, scheduled};

const PORT: u16 = 8080;
const PATIENCE: Duration = Duration::from_secs(10);

/// Namespace `shop` is in the mesh under STRICT, `outside` is not.
fn strict(scenario: &str) -> Result<Lab> {
    let lab = Lab::two_nodes(scenario)?;
    lab.manifests().namespace("shop", true)?;
    lab.manifests().namespace("outside", false)?;
    lab.manifests().mtls("shop", "STRICT")?;
    Ok(lab)
}

fn reaches(from: &Pod, to: std::net::SocketAddr) -> Result<()> {
    client::echo(&mut from.connect(to)?, b"hello").with_context(|| format!("{} to {to}", from.id()))
}

/// A pod's very first connection, in either family and in either direction, is judged by the mesh: it gets into a
/// STRICT pod of another node, which no plaintext does, and a stranger does not get into it.
#[test]
fn the_first_packet_is_in_the_mesh() -> Result<()> {
    let lab = strict("first packet")?;
    let far = lab.pod(PodSpec::new("shop", "far", "node-b"))?;
    let stranger = lab.pod(PodSpec::new("outside", "stranger", "node-a"))?;
    let _echo = App::echo(&far, PORT)?;
    let agents = lab.agents()?;
    eventually("the far pod", PATIENCE, || Ok(enrolment(&agents[1], &far)? == "captured"))?;
    ensure!(reaches(&stranger, far.v4(PORT)).is_err(), "STRICT lets plaintext in");
    let plugin = Plugin::new(&lab, "node-a")?;
    for (number, family) in [0, 1].into_iter().enumerate() {
        let pod = lab.pod_unlisted(PodSpec::new("shop", &format!("new-{number}"), "node-a"))?;
        scheduled(&lab, &pod)?;
        plugin.add(&pod)?;
        reaches(&pod, far.both(PORT)[family])?;
        let own = App::echo(&pod, PORT)?;
        ensure!(reaches(&stranger, pod.both(PORT)[family]).is_err(), "a stranger got into a STRICT pod");
        ensure!(own.stats().received() == 0, "a stranger's bytes arrived");
        // Later the API server tells the same addresses: open connections go on, and others find the way in.
        let mut open = pod.connect(far.both(PORT)[family])?;
        running(&lab, &pod)?;
        eventually("the other node to know the pod", PATIENCE, || {
            Ok(reaches(&far, pod.both(PORT)[family]).is_ok())
        })?;
        client::echo(&mut open, b"still open")?;
        reaches(&pod, far.both(PORT)[family])?;
    }
    let log = agents[0].log();
    ensure!(!log.contains("withdrawn"), "a pod was enrolled anew when its addresses were told");
    Ok(())
}

/// The runtime may be faster than the agent's source: `ADD` waits for the pod to be told of.
#[test]
fn add_waits_for_the_pod_to_be_known() -> Result<()> {
    let lab = strict("add before the pod is known")?;
    let agent = lab.agent("node-a")?;
    let plugin = Plugin::new(&lab, "node-a")?;
    let pod = lab.pod_unlisted(PodSpec::new("shop", "early", "node-a"))?;
    let since = Instant::now();
    std::thread::scope(|scope| {
        let adding = scope.spawn(|| plugin.add(&pod));
        std::thread::sleep(Duration::from_millis(700));
        scheduled(&lab, &pod)?;
        adding.join().map_err(|_panic| anyhow::anyhow!("the call panicked"))?
    })?;
    ensure!(since.elapsed() >= Duration::from_millis(700), "it did not wait");
    ensure!(enrolment(&agent, &pod)? == "captured", "not in the mesh after ADD");
    Ok(())
}

/// A pod that nobody tells of is refused in a namespace of the mesh after the limit, and let go where the namespace is
/// known to be outside.
#[test]
fn an_unknown_pod_is_refused() -> Result<()> {
    let lab = strict("unknown pod")?;
    let _agent = lab.agent("node-a")?;
    let plugin = Plugin::new(&lab, "node-a")?;
    let inside = lab.pod_unlisted(PodSpec::new("shop", "ghost", "node-a"))?;
    let outside = lab.pod_unlisted(PodSpec::new("outside", "ghost", "node-a"))?;
    let ids = [&inside, &outside].map(|pod| Attachment::of(&lab, pod, "one"));
    let [first, second] = ids;
    let (first, second) = (first?, second?);
    let (refused, passed) = std::thread::scope(|scope| {
        let refused = scope.spawn(|| plugin.call(&first, "ADD", &inside));
        let passed = scope.spawn(|| plugin.call(&second, "ADD", &outside));
        (refused.join(), passed.join())
    });
    let joined = |_panic| anyhow::anyhow!("the call panicked");
    refused.map_err(joined)??.refused(11, &["shop/ghost", "not known"])?;
    ensure!(passed.map_err(joined)??.good, "a pod outside the mesh was refused");
    Ok(())
}

/// `DEL` takes the pod out before the runtime takes its namespace away; a pod that is made again in place is in the
/// mesh again, and a late `DEL` of its first sandbox does not touch the second.
#[test]
fn del_lets_go_and_only_of_its_own_sandbox() -> Result<()> {
    let lab = strict("del")?;
    let far = lab.pod(PodSpec::new("shop", "far", "node-b"))?;
    let _echo = App::echo(&far, PORT)?;
    let agents = lab.agents()?;
    let plugin = Plugin::new(&lab, "node-a")?;
    let first = lab.pod_unlisted(PodSpec::new("shop", "again", "node-a"))?;
    scheduled(&lab, &first)?;
    let old = Attachment::of(&lab, &first, "sandbox-1")?;
    ensure!(plugin.call(&old, "ADD", &first)?.good, "ADD");
    ensure!(plugin.call(&old, "CHECK", &first)?.good, "CHECK of an attached pod");
    ensure!(plugin.call(&old, "DEL", &first)?.good, "DEL");
    ensure!(enrolment(&agents[0], &first)? == "pending", "still held after DEL");
    plugin.call(&old, "CHECK", &first)?.refused(11, &["again"])?;
    let spec = PodSpec::new("shop", "again", "node-a").addresses_of(&first);
    lab.destroy_pod(&first)?;
    let second = lab.pod_unlisted(spec)?;
    // The same pod to everybody: its UID is the first one's.
    let mut new = Attachment::of(&lab, &second, "sandbox-2")?;
    new.uid.clone_from(&old.uid);
    ensure!(plugin.call(&new, "ADD", &second)?.good, "ADD of the second sandbox");
    ensure!(plugin.call(&old, "DEL", &first)?.good, "DEL that comes late");
    reaches(&second, far.v4(PORT))?;
    ensure!(plugin.call(&new, "CHECK", &second)?.good, "CHECK of the second sandbox");
    // Garbage collection of all but other sandboxes lets go as DEL does.
    let mut config = plugin.config(None);
    config["cniVersion"] = json!("1.1.0");
    config["cni.dev/valid-attachments"] = json!([{"containerID": "another", "ifname": "eth0"}]);
    ensure!(new.call(&lab, &plugin.program, "GC", &config)?.good, "GC");
    ensure!(enrolment(&agents[0], &second)? == "pending", "still held after GC");
    Ok(())
}

/// What the plugin says without an agent or a pod: its versions, a broken chain, a container that is no pod.
#[test]
fn the_specification_is_kept() -> Result<()> {
    let lab = strict("specification")?;
    let plugin = Plugin::new(&lab, "node-a")?;
    let pod = lab.pod_unlisted(PodSpec::new("shop", "pod", "node-a"))?;
    let mut attachment = Attachment::of(&lab, &pod, "one")?;
    let versions = plugin.call(&attachment, "VERSION", &pod)?.json()?;
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let supported = versions["supportedVersions"].as_array().context("no versions")?;
        ensure!(supported.iter().any(|other| other == version), "{version} is not in {versions}");
    }
    let first = attachment.call(&lab, &plugin.program, "ADD", &plugin.config(None))?;
    first.refused(7, &["prevResult"])?;
    attachment.netns = "/run/netns/nobody-has-this".into();
    plugin.call(&attachment, "ADD", &pod)?.refused(3, &["CNI_NETNS"])?;
    ensure!(plugin.call(&attachment, "STATUS", &pod)?.good, "STATUS");
    attachment.namespace.clear();
    ensure!(plugin.call(&attachment, "ADD", &pod)?.good, "a container that is no pod was refused");
    Ok(())
}
