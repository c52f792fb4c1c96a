//! What the scenarios do to agents and look at from outside.
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::client::{self, Dial};
use mesh_tests::{Agent, Lab, Pod, Process, eventually};

use crate::shop::{PATIENCE, PORT, Shop};

/// Destinations of both relayed paths: the other node over HBONE in both families, and this node.
pub(crate) fn relayed(shop: &Shop) -> Vec<SocketAddr> {
    vec![shop.far.v4(PORT), shop.vip, shop.far.v6(PORT)]
}

/// Each stream still carries bytes in both directions.
pub(crate) fn all_echo(streams: &mut [TcpStream]) -> Result<()> {
    streams.iter_mut().try_for_each(|stream| client::echo(stream, b"still here"))
}

/// The status of the node's readiness endpoint; an error while nobody listens.
pub(crate) fn readiness(lab: &Lab, node: &str) -> Result<u16> {
    let how = Dial { deadline: Duration::from_secs(2), ..Dial::default() };
    lab.node(node)?.run(|| {
        let stream = client::dial(SocketAddr::from(([127, 0, 0, 1], 15021)), &how)?;
        Ok(client::get(stream, "localhost", "/healthz/ready")?.status)
    })
}

/// All that an agent could have changed in a pod's namespace, as text.
pub(crate) fn traces(pod: &Pod) -> Result<String> {
    const COMMANDS: [(&str, &[&str]); 5] = [
        ("ip", &["rule"]),
        ("ip", &["-6", "rule"]),
        ("ip", &["route", "show", "table", "all"]),
        ("ip", &["-6", "route", "show", "table", "all"]),
        ("ss", &["-Hltn"]),
    ];
    const SETTINGS: [&str; 4] =
        ["ipv4/tcp_fwmark_accept", "ipv4/fwmark_reflect", "ipv6/fwmark_reflect", "ipv4/ip_nonlocal_bind"];
    pod.run(|| {
        let mut all = String::new();
        for (program, arguments) in COMMANDS {
            let output = Command::new(program).args(arguments).output().context(program)?;
            ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
            all.push_str(&String::from_utf8_lossy(&output.stdout));
        }
        for setting in SETTINGS {
            let value = std::fs::read_to_string(format!("/proc/sys/net/{setting}"))?;
            all.push_str(&format!("{setting} {value}"));
        }
        Ok(all)
    })
}

/// Sockets of agents in the lab's folder, and whatever else they have beside them.
pub(crate) fn socket_files(lab: &Lab) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(lab.dir())? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.contains(".sock") {
            found.push(path);
        }
    }
    Ok(found)
}

/// A holder, and the arguments that make an agent use it.
pub(crate) fn holder(lab: &Lab, name: &str) -> Result<(Process, Vec<String>)> {
    let path = lab.dir().join(format!("{name}.hold"));
    let mut command = Command::new(mesh_tests::agent::binary()?);
    command.arg("hold").arg("--socket").arg(&path);
    let mut process = lab.spawn(lab.node("node-a")?.netns(), name, command)?;
    eventually("the holder to listen", PATIENCE, || {
        process.check_alive()?;
        Ok(path.exists())
    })?;
    Ok((process, vec!["--holder-socket".to_owned(), path.display().to_string()]))
}

/// The process that answers on the agent's socket.
pub(crate) fn answering(agent: &Agent) -> Result<i64> {
    agent.ask(&["status"])?["pid"].as_i64().context("no pid")
}

/// Waits until this very process has taken office.
pub(crate) fn in_office(agent: &mut Agent) -> Result<()> {
    let pid = i64::from(agent.pid());
    let mut last = String::new();
    eventually("the agent to take office", PATIENCE, || {
        agent.process().check_alive()?;
        let status = agent.ask(&["status"])?;
        last = status["state"].to_string();
        Ok(status["pid"].as_i64() == Some(pid) && status["state"] == "ready")
    })
    .with_context(|| last.clone())?;
    Ok(())
}

/// Adds what the agents' logs tell of connections that failed: among thousands of lines the reason is not the last.
pub(crate) fn with_reasons(lab: &Lab, result: Result<()>) -> Result<()> {
    const LINES: usize = 5;
    result.with_context(|| {
        let mut said = String::from("failed connections in the agents' logs:");
        for node in lab.nodes() {
            let log = std::fs::read_to_string(lab.log_path(&format!("agent-{}", node.name())));
            for line in
                log.unwrap_or_default().lines().filter(|line| line.contains("connection failed")).take(LINES)
            {
                said.push_str(&format!("\n{}: {line}", node.name()));
            }
        }
        said
    })
}
