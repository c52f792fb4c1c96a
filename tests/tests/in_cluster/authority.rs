//! Whom the CA on the cluster refuses. A client of its own, made of rustls and h2 alone, with real tokens of the cluster.
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::{BufMut as _, Bytes, BytesMut};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;

use crate::mesh::{Mesh, PodOf, SYSTEM, namespace};

const NS: &str = "apart";
/// Of the shipped controllers' Service.
pub(crate) const NAME: &str = "nodemesh-controller.nodemesh-system.svc";
const METHOD: &str = "https://nodemesh-controller/istio.v1.auth.IstioCertificateService/CreateCertificate";
const DEADLINE: Duration = Duration::from_secs(15);
/// gRPC's numbers.
pub(crate) const OK: &str = "0";
const PERMISSION_DENIED: &str = "7";
const UNAUTHENTICATED: &str = "16";

/// The agent's token of node-a gets an identity that runs there. One that runs on node-b only, a token for another
/// audience, one that is bound to no pod, one of an account that is no agent's, a made-up one, and no token get nothing.
pub(crate) fn refusals(mesh: &Mesh) -> Result<()> {
    let pod = PodOf { namespace: NS, args: "[sleep]", ..PodOf::default() };
    mesh.cluster.apply(
        &[
            namespace(NS, false, &["here", "there"]),
            PodOf { name: "here", account: "here", node: "node-a", ..pod }.yaml(),
            PodOf { name: "there", account: "there", node: "node-b", ..pod }.yaml(),
        ]
        .concat(),
    )?;
    mesh.cluster.wait_ready(NS, "", 2)?;
    let good = token_of_agent(mesh, "istio-ca")?;
    let elsewhere = token_of_agent(mesh, "elsewhere")?;
    let unbound = token(mesh, (SYSTEM, "nodemesh-agent"), None, "istio-ca")?;
    let stranger = token(mesh, (NS, "here"), Some("here"), "istio-ca")?;
    for (what, token, wanted, status, words) in [
        ("an identity of its node", Some(&*good), "here", OK, ""),
        ("an identity of the other node", Some(&*good), "there", PERMISSION_DENIED, "no live pod"),
        ("another audience", Some(&*elsewhere), "here", UNAUTHENTICATED, "the token is refused"),
        ("a token bound to no pod", Some(&*unbound), "here", PERMISSION_DENIED, "bound to no pod"),
        ("an account that is no agent's", Some(&*stranger), "here", PERMISSION_DENIED, "not among"),
        ("a made-up token", Some("no.real.token"), "here", UNAUTHENTICATED, "the token is refused"),
        ("no token", None, "here", UNAUTHENTICATED, ""),
    ] {
        let answer = ask(mesh, token, &format!("spiffe://cluster.local/ns/{NS}/sa/{wanted}"));
        let answer = answer.with_context(|| what.to_owned())?;
        ensure!(answer.status == status && answer.said.contains(words), "{what}: {answer:?}");
        ensure!((answer.length > 0) == (status == OK), "{what}: a message of {} bytes", answer.length);
    }
    let log = mesh.kubectl("logs -n nodemesh-system -l app=nodemesh-controller --tail=-1")?;
    for token in [&good, &elsewhere, &unbound, &stranger] {
        ensure!(!log.contains(&**token), "a token is in a controller's log");
    }
    mesh.kubectl(&format!("delete namespace {NS} --wait=false")).map(drop)
}

/// A token of a service account, bound to a pod or to none.
fn token(
    mesh: &Mesh,
    (namespace, account): (&str, &str),
    pod: Option<&str>,
    audience: &str,
) -> Result<String> {
    let bound = pod.map_or(String::new(), |pod| format!("--bound-object-kind=Pod --bound-object-name={pod}"));
    let words = format!("create token {account} -n {namespace} --audience={audience} {bound}");
    Ok(mesh.kubectl(&words)?.trim().to_owned())
}

/// As the agent on node-a has one.
pub(crate) fn token_of_agent(mesh: &Mesh, audience: &str) -> Result<String> {
    let agents = mesh.cluster.pods(SYSTEM, "app=nodemesh-agent")?;
    let agent =
        agents.iter().find(|pod| pod["spec"]["nodeName"] == "node-a").context("no agent on node-a")?;
    let agent = agent["metadata"]["name"].as_str().context("a pod without a name")?;
    token(mesh, (SYSTEM, "nodemesh-agent"), Some(agent), audience)
}

/// What the CA answered.
#[derive(Debug)]
pub(crate) struct Answer {
    /// gRPC's number.
    pub(crate) status: String,
    pub(crate) said: String,
    /// Of the message that came, in bytes.
    length: usize,
}

/// Asks a controller for a certificate, from node-a.
fn ask(mesh: &Mesh, token: Option<&str>, identity: &str) -> Result<Answer> {
    let controllers = mesh.cluster.pods(SYSTEM, "app=nodemesh-controller")?;
    let ip = controllers.first().and_then(|pod| pod["status"]["podIP"].as_str()).context("no controller")?;
    let to = format!("{ip}:15012").parse()?;
    let stream =
        mesh.cluster.node(0)?.netns()?.run(|| Ok(std::net::TcpStream::connect_timeout(&to, DEADLINE)?))?;
    let roots = mesh
        .kubectl("get configmap -n nodemesh-system nodemesh-ca-root -o jsonpath={.data.root-cert\\.pem}")?;
    ask_by(stream, &roots, token, identity)
}

/// The same by a connection that stands.
pub(crate) fn ask_by(
    stream: std::net::TcpStream,
    roots: &str,
    token: Option<&str>,
    identity: &str,
) -> Result<Answer> {
    stream.set_nonblocking(true)?;
    let (token, message) = (token.map(str::to_owned), request(identity)?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let talk = talk(stream, roots, token.as_deref(), message);
        tokio::time::timeout(DEADLINE, talk).await.context("the CA does not answer")?
    })
}

async fn talk(
    stream: std::net::TcpStream,
    roots: &str,
    token: Option<&str>,
    message: Bytes,
) -> Result<Answer> {
    let stream = tokio::net::TcpStream::from_std(stream)?;
    let tls = TlsConnector::from(tls(roots)?).connect(ServerName::try_from(NAME)?, stream).await?;
    let (mut send, connection) = h2::client::handshake(tls).await?;
    let driver = tokio::spawn(connection);
    let mut head =
        http::Request::post(METHOD).header("content-type", "application/grpc").header("te", "trailers");
    if let Some(token) = token {
        head = head.header("authorization", format!("Bearer {token}"));
    }
    let (answer, mut body) = send.send_request(head.body(())?, false)?;
    body.send_data(message, true)?;
    let answer = answer.await?;
    let text = |headers: &http::HeaderMap, name: &str| {
        headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
    };
    // A refusal has no body: what it says stands in the head.
    let mut headers = answer.headers().clone();
    let (mut body, mut length) = (answer.into_body(), 0);
    while let Some(part) = body.data().await {
        length += part?.len();
    }
    if let Some(trailers) = body.trailers().await? {
        headers = trailers;
    }
    driver.abort();
    // gRPC writes blanks as %20 in it, and quotes as %22.
    let said = text(&headers, "grpc-message").replace("%20", " ").replace("%22", "\"");
    Ok(Answer { status: text(&headers, "grpc-status"), said, length })
}

fn tls(roots: &str) -> Result<Arc<ClientConfig>> {
    let mut store = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(roots.as_bytes()) {
        store.add(root?)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(store)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// `IstioCertificateRequest` in gRPC's frame: the CSR is field 1, the metadata field 4, a `Struct` with one text.
fn request(identity: &str) -> Result<Bytes> {
    let key = rcgen::KeyPair::generate()?;
    let mut params = rcgen::CertificateParams::default();
    // The identity is the CA's to write.
    params.distinguished_name = rcgen::DistinguishedName::new();
    let csr = params.serialize_request(&key)?.pem()?;
    let value = field(3, identity.as_bytes());
    let entry = [field(1, b"ImpersonatedIdentity"), field(2, &value)].concat();
    let message = [field(1, csr.as_bytes()), field(4, &field(1, &entry))].concat();
    let mut bytes = BytesMut::new();
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(message.len())?);
    bytes.extend_from_slice(&message);
    Ok(bytes.freeze())
}

/// A field of bytes: its tag, its length as a varint, and itself.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    const BYTES: u8 = 2;
    let mut out = vec![number << 3 | BYTES];
    let mut length = content.len();
    while length >= 0x80 {
        out.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
    out.extend_from_slice(content);
    out
}
