//! The plugin without an agent: closed for the mesh, open for everybody else; and the plugin's files.
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_tests::{AgentSpec, App, Lab, PodSpec, client, eventually};

use crate::runtime::{Attachment, Plugin, enrolment, scheduled};

const PORT: u16 = 8080;
const PATIENCE: Duration = Duration::from_secs(10);

/// While the agent is dead a pod of the mesh is not started, nor one of a namespace that nobody knows; others are, and
/// every pod can end. The agent comes back, the runtime tries again, and the pod is in the mesh.
#[test]
fn without_an_agent_the_mesh_is_closed() -> Result<()> {
    let lab = Lab::two_nodes("no agent")?;
    lab.manifests().namespace("shop", true)?;
    lab.manifests().namespace("outside", false)?;
    lab.manifests().mtls("shop", "STRICT")?;
    let far = lab.pod(PodSpec::new("shop", "far", "node-b"))?;
    let _echo = App::echo(&far, PORT)?;
    let mut agents = lab.agents()?;
    let mut agent = agents.remove(0);
    let plugin = Plugin::new(&lab, "node-a")?;
    let pod = lab.pod_unlisted(PodSpec::new("shop", "new", "node-a"))?;
    scheduled(&lab, &pod)?;
    let add = |namespace: &str| {
        let mut attachment = Attachment::of(&lab, &pod, "one")?;
        namespace.clone_into(&mut attachment.namespace);
        plugin.call(&attachment, "ADD", &pod)
    };
    for graceful in [false, true] {
        if graceful {
            agent.stop()?;
        } else {
            agent.kill()?;
        }
        add("shop")?.refused(11, &["agent", "shop/new", "node-a.cni.sock"])?;
        add("made-since")?.refused(11, &["made-since/new"])?;
        ensure!(add("outside")?.good, "a pod outside the mesh is not started");
        ensure!(add("nodemesh-system")?.good, "the mesh's own pods are not started");
        ensure!(plugin.call(&Attachment::of(&lab, &pod, "one")?, "DEL", &pod)?.good, "DEL needs an agent");
        agent = lab.agent("node-a")?;
    }
    ensure!(add("shop")?.good, "the agent is back");
    client::echo(&mut pod.connect(far.v4(PORT))?, b"first")?;
    ensure!(enrolment(&agent, &pod)? == "captured", "not in the mesh");
    Ok(())
}

/// The agent keeps its plugin in the node's first configuration, puts it back when the network plugin writes the file
/// anew, and leaves it when it ends; the installed program is the plugin.
#[test]
fn the_agent_keeps_the_plugin_installed() -> Result<()> {
    let lab = Lab::two_nodes("plugin installed")?;
    let (bin, conf) = (lab.dir().join("cni-bin"), lab.dir().join("net.d"));
    std::fs::create_dir_all(&bin)?;
    std::fs::create_dir_all(&conf)?;
    let list = conf.join("10-lab.conflist");
    let text = "{\"name\": \"lab\", \"plugins\": [\n  {\"type\": \"bridge\"}\n]}\n";
    std::fs::write(&list, text)?;
    let arguments = ["--cni-bin-dir".to_owned(), bin.display().to_string()];
    let more = ["--cni-conf-dir".to_owned(), conf.display().to_string()];
    let arguments = arguments.into_iter().chain(more).collect();
    let agent = lab.agent_with("node-a", &AgentSpec { arguments, ..AgentSpec::default() })?;
    let installed =
        |path: &Path| std::fs::read_to_string(path).is_ok_and(|text| text.contains("nodemesh-cni"));
    for _round in 0..2 {
        eventually("the entry", PATIENCE, || Ok(installed(&list)))?;
        std::fs::write(&list, text)?;
    }
    eventually("the entry again", PATIENCE, || Ok(installed(&list)))?;
    agent.stop()?;
    ensure!(installed(&list), "an agent that ends takes its plugin away");
    let kept: serde_json::Value = serde_json::from_slice(&std::fs::read(&list)?)?;
    let pod = lab.pod_unlisted(PodSpec::new("shop", "pod", "node-a"))?;
    let attachment = Attachment::of(&lab, &pod, "one")?;
    let plugin = Plugin::new(&lab, "node-a")?;
    ensure!(kept["plugins"][1]["socket"] == plugin.socket.display().to_string(), "{kept}");
    let installed = Plugin { program: bin.join("nodemesh-cni"), ..plugin };
    installed.call(&attachment, "ADD", &pod)?.refused(11, &["agent"])
}
