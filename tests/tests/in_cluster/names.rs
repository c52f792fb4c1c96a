//! By which names and addresses pods of the mesh are reached, and whom they reach. All pods are STRICT.
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Result, ensure};
use mesh_tests::client::IO_DEADLINE;

use crate::mesh::{Mesh, PodOf, SOON, namespace};

const NS: &str = "names";
const NODE_PORT: u16 = 30080;

fn manifests() -> String {
    let web = PodOf { namespace: NS, args: "[serve]", ..PodOf::default() };
    let service = |name: &str, spec: &str| {
        format!(
            "---\n{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: {NS}}}, spec: {{{spec}}}}}\n"
        )
    };
    [
        namespace(NS, true, &["app"]),
        PodOf { name: "client", node: "node-a", args: "[sleep]", ..web }.yaml(),
        PodOf { name: "web-a", node: "node-a", labels: "app: web, one: a", ..web }.yaml(),
        PodOf { name: "web-b", node: "node-b", labels: "app: web, one: b", ..web }.yaml(),
        service("web", "selector: {app: web}, ports: [{port: 80, targetPort: 8080}]"),
        service("headless", "clusterIP: None, selector: {app: web}, ports: [{port: 8080}]"),
        service("web-a-alone", "selector: {one: a}, ports: [{port: 80, targetPort: 8080}]"),
        service(
            "outside",
            &format!("type: NodePort, selector: {{one: b}}, ports: [{{port: 8080, nodePort: {NODE_PORT}}}]"),
        ),
        format!(
            "---\n{{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {{name: default, \
             namespace: {NS}}}, spec: {{mtls: {{mode: STRICT}}}}}}\n"
        ),
    ]
    .concat()
}

pub(crate) fn start(mesh: &Mesh) -> Result<()> {
    mesh.cluster.apply(&manifests())?;
    mesh.cluster.wait_ready(NS, "", 3)?;
    mesh.wait_captured(NS, &["client", "web-a", "web-b"])
}

fn name(said: &str) -> Result<&str> {
    said.lines().find_map(|line| line.strip_prefix("name=")).with_context(|| format!("no name in {said:?}"))
}

/// Both pods of a ClusterIP answer, near and far, by the short name and by the whole one.
pub(crate) fn cluster_ip(mesh: &Mesh) -> Result<()> {
    for url in ["http://web/", "http://web.names.svc.cluster.local./"] {
        let mut names = BTreeSet::new();
        mesh.cluster.wait("both pods of the Service to answer", SOON, || {
            names.insert(name(&mesh.app(NS, "client", &["get", url])?)?.to_owned());
            Ok(names.len() == 2)
        })?;
    }
    Ok(())
}

/// A headless Service's name is its pods' addresses; each of them is reached, the far one through a tunnel.
pub(crate) fn headless(mesh: &Mesh) -> Result<()> {
    let wanted = BTreeSet::from([mesh.ip(NS, "web-a")?, mesh.ip(NS, "web-b")?]);
    let mut found = BTreeSet::new();
    mesh.cluster.wait("DNS to know the headless Service", SOON, || {
        let said = mesh.app(NS, "client", &["resolve", "headless"])?;
        found = said.lines().map(str::to_owned).collect();
        Ok(found == wanted)
    })?;
    mesh.on_the_link("by-headless-name", false, || {
        for address in &found {
            mesh.app(NS, "client", &["get", &format!("http://{address}:8080/by-headless-name")])?;
        }
        mesh.app(NS, "client", &["get", "http://headless:8080/by-headless-name"]).map(drop)
    })
}

/// A pod reaches itself by its own Service, by its own address, and by loopback.
pub(crate) fn hairpin(mesh: &Mesh) -> Result<()> {
    let own = format!("http://{}:8080/", mesh.ip(NS, "web-a")?);
    for url in ["http://web-a-alone/", &own, "http://127.0.0.1:8080/"] {
        let said = mesh.app(NS, "web-a", &["get", url]).with_context(|| url.to_owned())?;
        ensure!(name(&said)? == "web-a", "{url}: {said}");
    }
    Ok(())
}

/// From outside the cluster by either node's address: kube-proxy brings it to the pod as any plaintext, so a STRICT pod
/// refuses it, and with PERMISSIVE it is answered.
pub(crate) fn node_port(mesh: &Mesh) -> Result<()> {
    let ask = |node: usize| {
        let to = SocketAddr::from((mesh.cluster.node(node)?.ip(), NODE_PORT));
        mesh.cluster.link().run(|| get(to))
    };
    for node in [0, 1] {
        ensure!(
            ask(node).is_err(),
            "a STRICT pod answered plaintext that came by the NodePort of node {node}"
        );
    }
    let path = format!("/apis/security.istio.io/v1/namespaces/{NS}/peerauthentications/default");
    let mode = |mode: &str| mesh.cluster.patch(&path, &serde_json::json!({"spec": {"mtls": {"mode": mode}}}));
    mode("PERMISSIVE")?;
    for node in [0, 1] {
        mesh.cluster.wait("the NodePort to answer", SOON, || Ok(name(&ask(node)?)? == "web-b"))?;
    }
    mode("STRICT")
}

/// `kubernetes.default`, by name and Service address: TLS to a server outside the mesh, from inside a captured pod.
pub(crate) fn api_server(mesh: &Mesh) -> Result<()> {
    // Plain HTTP on its TLS port: it says so in an answer of its own, so the connection stood in both directions.
    let asked = mesh.app(NS, "client", &["get", "http://kubernetes.default:443/"]);
    let said = format!("{:#}", asked.err().context("the API server took plaintext")?);
    ensure!(said.contains("status 400"), "not the API server's answer: {said}");
    Ok(())
}

/// The body of an answer.
fn get(to: SocketAddr) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, IO_DEADLINE)?;
    stream.set_read_timeout(Some(IO_DEADLINE))?;
    write!(stream, "GET / HTTP/1.1\r\nhost: {to}\r\nconnection: close\r\n\r\n")?;
    let mut said = [0; 1024];
    let length = stream.read(&mut said)?;
    ensure!(length > 0, "{to} closed before it answered");
    Ok(String::from_utf8_lossy(&said[..length]).into_owned())
}
