//! The plugin at the end of a real chain: Debian's bridge and host-local before it.
use std::path::Path;

use anyhow::{Context, Result, ensure};
use mesh_tests::{App, Lab, PodSpec, client};
use serde_json::{Value, json};

use crate::runtime::{Attachment, Plugin, enrolment, scheduled};

const PORT: u16 = 8080;
const PLUGINS: &str = "/usr/lib/cni";

/// The bridge plugin gives an empty namespace its network, ours takes its result, and the pod is in the mesh with the
/// address that the bridge plugin chose; in the end both let go.
#[test]
fn behind_the_bridge_plugin() -> Result<()> {
    let bridge = Path::new(PLUGINS).join("bridge");
    ensure!(bridge.is_file(), "{PLUGINS}/bridge is missing: install containernetworking-plugins");
    let lab = Lab::two_nodes("behind the bridge plugin")?;
    lab.manifests().namespace("shop", true)?;
    lab.manifests().mtls("shop", "STRICT")?;
    let near = lab.pod(PodSpec::new("shop", "near", "node-a"))?;
    let _echo = App::echo(&near, PORT)?;
    let agent = lab.agent("node-a")?;
    let pod = lab.pod_unlisted(PodSpec::new("shop", "bridged", "node-a"))?;
    scheduled(&lab, &pod)?;
    // The lab's own cable is pulled: the plugin is to make one.
    pod.run(|| {
        let deleted = std::process::Command::new("ip").args(["link", "del", "eth0"]).status()?;
        ensure!(deleted.success(), "cannot pull the cable");
        Ok(())
    })?;
    let attachment = Attachment::of(&lab, &pod, "bridged")?;
    let network = network(&lab, &near)?;
    let made = attachment.call(&lab, &bridge, "ADD", &network)?;
    ensure!(made.good, "bridge: {}", made.output);
    let result = made.json()?;
    let plugin = Plugin::new(&lab, "node-a")?;
    let added = attachment.call(&lab, &plugin.program, "ADD", &plugin.config(Some(&result)))?;
    ensure!(added.good && added.json()? == result, "nodemesh-cni: {}", added.output);
    ensure!(enrolment(&agent, &pod)? == "captured", "not in the mesh");
    client::echo(&mut pod.connect(near.v4(PORT))?, b"through the bridge")?;
    for (program, config) in [(&plugin.program, plugin.config(Some(&result))), (&bridge, network)] {
        let ended = attachment.call(&lab, program, "DEL", &config)?;
        ensure!(ended.good, "{}: {}", program.display(), ended.output);
    }
    Ok(())
}

/// A configuration of the bridge plugin on the lab's own bridge, with addresses that the lab does not use.
fn network(lab: &Lab, near: &mesh_tests::Pod) -> Result<Value> {
    let std::net::IpAddr::V4(address) = near.ips()[0] else { anyhow::bail!("the first address is IPv4") };
    let [a, b, c, _] = address.octets();
    let range = json!({
        "subnet": format!("{a}.{b}.{c}.0/24"), "gateway": format!("{a}.{b}.{c}.1"),
        "rangeStart": format!("{a}.{b}.{c}.240"), "rangeEnd": format!("{a}.{b}.{c}.249"),
    });
    let data = lab.dir().join("host-local");
    std::fs::create_dir_all(&data).context("cannot make a folder for addresses")?;
    Ok(json!({
        "cniVersion": "1.0.0", "name": "lab", "type": "bridge", "bridge": "cni0",
        "ipam": {"type": "host-local", "dataDir": data, "ranges": [[range]], "routes": [{"dst": "0.0.0.0/0"}]},
    }))
}
