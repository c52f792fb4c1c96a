//! The agent's own ports: what must not answer does not, from where it must not.
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};

use anyhow::{Context, Result};
use mesh_tests::client::{self, Dial};
use mesh_tests::{App, Pod, PodSpec};

use crate::mesh::{Fate, Mesh, PORT, probe};

/// Nobody reaches the capture ports of a pod by dialling them: not a stranger, not another pod of the mesh, not the
/// node, not the pod itself.
#[test]
fn the_capture_ports_do_not_answer() -> Result<()> {
    let mesh = Mesh::new("capture ports")?;
    let abroad = mesh.lab.pod(PodSpec::new("outside", "abroad", "node-b"))?;
    let _echo = App::echo(&mesh.near, PORT)?;
    for port in [15001, 15006] {
        for to in mesh.near.both(port) {
            for from in [&mesh.stranger, &abroad, &mesh.client, &mesh.far, &mesh.near] {
                let fate = probe(from, to)?;
                assert_ne!(fate, Fate::Echoed, "{} to {to}", from.id());
            }
            for from in [&mesh.stranger, &abroad] {
                assert_eq!(probe(from, to)?, Fate::Refused, "{} to {to}", from.id());
            }
            let node = mesh.lab.node("node-a")?;
            let error = node.run(|| client::dial(to, &Dial::default())).err().context("the node got in")?;
            assert_eq!(client::io_kind(&error), Some(ErrorKind::ConnectionRefused), "{error:#}");
        }
    }
    // And the agents live on.
    for agent in &mesh.agents {
        assert_eq!(agent.cli(&["status"])?.code, 0);
    }
    Ok(())
}

/// Nothing answers: refused at once, or by the agent that captured the connection and found nobody there.
fn unanswered(pod: &Pod, to: SocketAddr) -> Result<()> {
    let error = pod.get(to, "/metrics").err().with_context(|| format!("{} reaches {to}", pod.id()))?;
    let ended = [ErrorKind::ConnectionRefused, ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];
    let kind = client::io_kind(&error);
    anyhow::ensure!(kind.is_some_and(|kind| ended.contains(&kind)), "{} to {to}: {error:#}", pod.id());
    Ok(())
}

/// The admin API is a Unix socket for root alone; from a pod neither it nor the metrics can be reached, and the
/// readiness port, which a kubelet needs, answers nothing else.
#[test]
fn the_admin_api_cannot_be_reached_from_a_pod() -> Result<()> {
    let mesh = Mesh::new("admin API")?;
    for agent in &mesh.agents {
        let file = std::fs::metadata(agent.admin_socket())?;
        assert!(file.file_type().is_socket());
        assert_eq!(file.permissions().mode() & 0o777, 0o600);
        assert!(agent.metrics()?.contains("istio_build"));
        let node = mesh.lab.node(agent.node())?;
        for pod in [&mesh.client, &mesh.stranger, &mesh.far] {
            for ip in node.ips() {
                unanswered(pod, SocketAddr::new(ip, 15020))?;
                let ready = SocketAddr::new(ip, 15021);
                // The readiness port listens on IPv4 alone unless told otherwise.
                if ip.is_ipv6() {
                    continue;
                }
                assert_eq!(pod.get(ready, "/healthz/ready")?.status, 200);
                for path in [
                    "/metrics",
                    "/status",
                    "/v1/status",
                    "/connections",
                    "/check",
                    "/",
                    "/healthz/../metrics",
                ] {
                    let reply = pod.get(ready, path)?;
                    assert_eq!(reply.status, 404, "{path}: {}", reply.text());
                }
            }
            // What listens on the node's loopback is not on the pod's.
            unanswered(pod, SocketAddr::from(([127, 0, 0, 1], 15020)))?;
            // Abstract sockets belong to a network namespace: none of the agent's is in a pod's.
            let sockets = pod.run(|| Ok(std::fs::read_to_string("/proc/thread-self/net/unix")?))?;
            assert!(!sockets.contains("nodemesh"), "{sockets}");
        }
        // What would be written by a pod's user: the pins are root's alone.
        let mode = std::fs::metadata(agent.bpf_dir())?.permissions().mode();
        assert_eq!(mode & 0o077, 0, "{mode:o}");
    }
    Ok(())
}
