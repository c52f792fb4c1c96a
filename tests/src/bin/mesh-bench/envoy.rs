//! Envoy beside the mesh: a pair with mutual TLS between them, relaying TCP or HTTP as a pair of sidecars would, or one
//! plaintext hop. The measure by which the mesh's figures are read on any machine.
//!
//! Owns: their configuration, their certificates and their processes. One worker thread each, as each agent's share of a
//! two-processor machine; no access log, as the agents have none here.
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use mesh_tests::{Lab, Pod, Process, eventually};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(20);
/// The name that both sides' certificates bear.
const PEER: &str = "peer.bench";

/// What Envoy understands of what it relays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reads {
    Bytes,
    /// HTTP/1.1 on both sides, with a route.
    Requests,
}

/// What the pair relays.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Relayed {
    pub(crate) name: &'static str,
    pub(crate) reads: Reads,
    /// Where the client finds its side, on the loopback of its pod.
    pub(crate) entry: u16,
    /// Where the server's side takes TLS.
    pub(crate) tunnel: u16,
    /// Where the application listens.
    pub(crate) application: u16,
}

pub(crate) struct EnvoyPair {
    client: Process,
    server: Process,
}

impl EnvoyPair {
    /// Starts both sides and waits until every relay answers.
    pub(crate) fn start(
        lab: &Lab,
        program: &Path,
        client: &Pod,
        server: &Pod,
        relayed: &[Relayed],
    ) -> Result<Self> {
        let dir = lab.dir().join("envoy");
        fs::create_dir_all(&dir).context("cannot create Envoy's folder")?;
        certificates(&dir)?;
        let far = server.v4(0);
        let inner = relayed.iter().map(|one| server_side(&dir, one)).collect();
        let outer = relayed.iter().map(|one| client_side(&dir, one, far)).collect();
        let server_process = spawn(lab, program, server, "server", inner)?;
        let client_process = spawn(lab, program, client, "client", outer)?;
        for one in relayed {
            eventually(&format!("Envoy's relay of {}", one.name), DEADLINE, || {
                let inner = server.run(|| Ok(TcpStream::connect(("127.0.0.1", one.tunnel)).is_ok()))?;
                let outer = client.run(|| Ok(TcpStream::connect(("127.0.0.1", one.entry)).is_ok()))?;
                Ok(inner && outer)
            })?;
        }
        Ok(Self { client: client_process, server: server_process })
    }

    pub(crate) fn pids(&self) -> Vec<i32> {
        vec![self.client.pid(), self.server.pid()]
    }
}

/// One plaintext hop in a pod: its port on the loopback for each destination.
pub(crate) fn hop(lab: &Lab, program: &Path, pod: &Pod, ways: &[(u16, SocketAddr)]) -> Result<Process> {
    fs::create_dir_all(lab.dir().join("envoy")).context("cannot create Envoy's folder")?;
    let part = |(entry, to): &(u16, SocketAddr)| {
        let name = format!("hop-{entry}");
        let at = SocketAddr::from(([127, 0, 0, 1], *entry));
        (listener(&name, Reads::Requests, at, None), cluster(&name, *to, None))
    };
    let process = spawn(lab, program, pod, "hop", ways.iter().map(part).collect())?;
    eventually("Envoy's hop", DEADLINE, || {
        pod.run(|| Ok(ways.iter().all(|(entry, _)| TcpStream::connect(("127.0.0.1", *entry)).is_ok())))
    })?;
    Ok(process)
}

fn spawn(lab: &Lab, program: &Path, pod: &Pod, side: &str, parts: Vec<(Value, Value)>) -> Result<Process> {
    let (listeners, clusters): (Vec<Value>, Vec<Value>) = parts.into_iter().unzip();
    let config = json!({"static_resources": {"listeners": listeners, "clusters": clusters}});
    let path = lab.dir().join("envoy").join(format!("{side}.json"));
    fs::write(&path, config.to_string()).context("cannot write Envoy's configuration")?;
    let mut command = Command::new(program);
    command.arg("-c").arg(&path);
    // Two of them on one machine: no shared memory for a hot restart.
    command.args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "error"]);
    lab.spawn(pod.netns(), &format!("envoy-{side}"), command).context("Envoy does not start")
}

fn client_side(dir: &Path, relayed: &Relayed, far: SocketAddr) -> (Value, Value) {
    let context = json!({
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "common_tls_context": common(dir),
    });
    let to = SocketAddr::new(far.ip(), relayed.tunnel);
    let entry = SocketAddr::from(([127, 0, 0, 1], relayed.entry));
    (listener(relayed.name, relayed.reads, entry, None), cluster(relayed.name, to, Some(context)))
}

fn server_side(dir: &Path, relayed: &Relayed) -> (Value, Value) {
    let context = json!({
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "require_client_certificate": true,
        "common_tls_context": common(dir),
    });
    let tunnel = SocketAddr::from(([0, 0, 0, 0], relayed.tunnel));
    let application = SocketAddr::from(([127, 0, 0, 1], relayed.application));
    (listener(relayed.name, relayed.reads, tunnel, Some(context)), cluster(relayed.name, application, None))
}

fn listener(name: &str, reads: Reads, at: SocketAddr, tls: Option<Value>) -> Value {
    let filter = match reads {
        Reads::Bytes => json!({
            "name": "envoy.filters.network.tcp_proxy",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                "stat_prefix": name, "cluster": name,
            },
        }),
        Reads::Requests => json!({
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.\
                          HttpConnectionManager",
                "stat_prefix": name,
                "route_config": {"virtual_hosts": [{
                    "name": name, "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": name, "timeout": "0s"}}],
                }]},
                "http_filters": [{
                    "name": "envoy.filters.http.router",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
                        "suppress_envoy_headers": true,
                    },
                }],
            },
        }),
    };
    let mut chain = json!({"filters": [filter]});
    if let Some(tls) = tls {
        chain["transport_socket"] = transport(tls);
    }
    json!({"name": name, "address": address(at), "filter_chains": [chain]})
}

fn cluster(name: &str, to: SocketAddr, tls: Option<Value>) -> Value {
    let endpoint = json!({"endpoint": {"address": address(to)}});
    let mut cluster = json!({
        "name": name, "type": "STATIC", "connect_timeout": "5s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    });
    if let Some(tls) = tls {
        cluster["transport_socket"] = transport(tls);
    }
    cluster
}

fn transport(context: Value) -> Value {
    json!({"name": "envoy.transport_sockets.tls", "typed_config": context})
}

fn address(at: SocketAddr) -> Value {
    json!({"socket_address": {"address": at.ip().to_string(), "port_value": at.port()}})
}

fn common(dir: &Path) -> Value {
    let file = |name: &str| json!({"filename": dir.join(name)});
    json!({
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificates": [{"certificate_chain": file("cert.pem"), "private_key": file("key.pem")}],
        "validation_context": {
            "trusted_ca": file("root.pem"),
            "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": PEER}}],
        },
    })
}

/// A root and one certificate that both sides use.
fn certificates(dir: &Path) -> Result<()> {
    let root_key = KeyPair::generate().context("cannot make a key")?;
    let mut root = CertificateParams::new(Vec::new()).context("cannot describe a root")?;
    // Another name than the leaf's, or the leaf would be taken for self-signed.
    root.distinguished_name.push(DnType::CommonName, "bench root");
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root_cert = root.self_signed(&root_key).context("cannot sign a root")?;
    let issuer = Issuer::new(root, root_key);
    let key = KeyPair::generate().context("cannot make a key")?;
    let cert = CertificateParams::new(vec![PEER.to_owned()])
        .and_then(|leaf| leaf.signed_by(&key, &issuer))
        .context("cannot sign a certificate")?;
    for (name, text) in
        [("root.pem", root_cert.pem()), ("cert.pem", cert.pem()), ("key.pem", key.serialize_pem())]
    {
        fs::write(dir.join(name), text).with_context(|| format!("cannot write {name}"))?;
    }
    Ok(())
}

/// The program that `cargo xtask bench --with-envoy` has fetched.
pub(crate) fn program() -> Result<PathBuf> {
    let path = std::env::var_os("NODEMESH_ENVOY").map(PathBuf::from);
    path.context("NODEMESH_ENVOY does not name Envoy; run `cargo xtask bench --with-envoy`, which fetches it")
}
