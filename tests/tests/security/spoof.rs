//! A pod that takes another pod's address takes neither its identity nor its way through the kernel.
use std::net::IpAddr;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use mesh_tests::client::Dial;
use mesh_tests::{AgentSpec, App, Pod};
use serde_json::json;

use crate::mesh::{Fate, Mesh, PORT, probe, probe_as};

/// Runs iproute2 in a pod.
fn ip(pod: &Pod, arguments: &[&str]) -> Result<String> {
    let output = pod.run(|| Ok(Command::new("ip").args(arguments).output()?))?;
    ensure!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn link_address(pod: &Pod) -> Result<String> {
    let text = ip(pod, &["-o", "link", "show", "dev", "eth0"])?;
    let mut words = text.split_whitespace().skip_while(|word| *word != "link/ether");
    Ok(words.nth(1).context("no link address")?.to_owned())
}

/// Lets the victim's packets and the server's answers go to the thief, as a forged ARP or neighbour answer would.
fn steal(thief: &Pod, server: &Pod, address: IpAddr) -> Result<()> {
    let (length, family) = if address.is_ipv4() { ("32", "-4") } else { ("128", "-6") };
    let mut add = vec!["address", "add"];
    let text = format!("{address}/{length}");
    add.extend([text.as_str(), "dev", "eth0"]);
    if address.is_ipv6() {
        add.push("nodad");
    }
    ip(thief, &add)?;
    let (address, mac) = (address.to_string(), link_address(thief)?);
    ip(server, &[family, "neigh", "replace", &address, "lladdr", &mac, "dev", "eth0", "nud", "permanent"])?;
    Ok(())
}

/// An unenrolled pod of the same node with the address of an enrolled one, answers and all, is a stranger: the
/// policy that lets the victim in refuses it, whether mutual TLS is demanded or not.
#[test]
fn a_stolen_address_is_not_an_identity() -> Result<()> {
    let mesh = Mesh::with("stolen address", true, |lab| {
        let only_client = json!({"rules": [{"from": [{"source": {
            "principals": ["cluster.local/ns/shop/sa/client"],
        }}]}]});
        lab.manifests().authorization("shop", "only-client", &only_client)?;
        Ok([AgentSpec::default(), AgentSpec::default()])
    })?;
    let echo = App::echo(&mesh.near, PORT)?;
    for to in mesh.near.both(PORT) {
        mesh.wait_fate(&mesh.client, to, Fate::Echoed)?;
        assert_eq!(probe(&mesh.stranger, to)?, Fate::Cut, "the stranger as himself");
    }
    // The victim's bypass is in force: nothing of it may serve the thief.
    let before = echo.stats().accepted();
    for (family, to) in mesh.near.both(PORT).into_iter().enumerate() {
        let address = mesh.client.ips()[family];
        steal(&mesh.stranger, &mesh.near, address)?;
        let how = Dial { source: Some(address), ..Dial::default() };
        // That it ends with a reset, not in silence, shows that the answers do reach the thief.
        assert_eq!(probe_as(&mesh.stranger, to, &how)?, Fate::Cut, "{address}");
        let from =
            if address.is_ipv6() { format!("src.addr=[{address}]:") } else { format!("src.addr={address}:") };
        mesh.wait_logged("node-a", &[&from, "reason=\"policy_not_allowed\"", "path=\"plain\""])?;
    }
    assert_eq!(echo.stats().accepted(), before);
    Ok(())
}
