//! A CA behind gRPC: our controller's, or istiod's, which speak the same
//! `istio.v1.auth.IstioCertificateService`. Owns: the connection, and which roots are in force.
//! Never: keeps a token; it is read from its file for each call, because the kubelet renews it.
//! Called by `ca::Ca`.
//!
//! **Roots.** The server is verified with the bundle file, read anew for each connection. Peers are verified with
//! the roots of the CA's last answer, or with the bundle file once it shares a root with those in force: then it is
//! this mesh's bundle, and a root that comes or goes reaches held certificates without a renewal. A file without a
//! common root verifies the server only (istiod whose serving certificate another CA signed).

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::Uri;
use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use super::Clock;
use super::ca::{SignRequest, SignedCert};
use super::error::CertError;
use super::pem::{self, BUNDLE_MAX_CERTS};
use super::tls;
use super::wire::{
    CLUSTER_ID_HEADER, CREATE_CERTIFICATE, CertificateRequest, CertificateResponse, MESSAGE_MAX_BYTES,
    impersonating,
};
use crate::model::Identity;

/// Longest wait for a TCP and TLS connection to the CA.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for one answer. The server itself waits some seconds for a pod it has not heard of yet.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest token file, bytes; a projected token has about one KiB.
const TOKEN_MAX_BYTES: usize = 16 * 1024;
/// Texts in one answer: a leaf, some intermediates, the roots.
const CHAIN_MAX_TEXTS: usize = 8;
/// Of the server's own words at most this many bytes are shown.
const MESSAGE_SHOWN_BYTES: usize = 512;
/// Port where the address names none: istiod's and ours.
const DEFAULT_PORT: u16 = 15012;

/// Where the CA is and how to talk to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceSettings {
    /// `https://HOST[:PORT]`.
    pub address: Uri,
    /// PEM bundle that verifies the server.
    pub root: PathBuf,
    /// The agent's token.
    pub token: PathBuf,
    /// What the CA knows this cluster by.
    pub cluster_id: String,
}

/// See the module's header.
pub struct CaService {
    settings: ServiceSettings,
    clock: Arc<dyn Clock>,
    /// Calls run here, whoever asks: a connection must outlive the data-plane worker that first needed it.
    runtime: tokio::runtime::Handle,
    link: Mutex<Link>,
}

#[derive(Default)]
struct Link {
    /// The connection, and the bundle that it was verified with.
    channel: Option<(Vec<CertificateDer<'static>>, Channel)>,
    /// What peers are verified with; empty before the first answer.
    in_force: Vec<CertificateDer<'static>>,
}

impl CaService {
    /// Opens nothing yet. Must be called within the control runtime.
    pub fn new(settings: ServiceSettings, clock: Arc<dyn Clock>) -> Result<Self, CertError> {
        let bad = |problem: &str| CertError::Address {
            address: settings.address.to_string(),
            problem: problem.to_owned(),
        };
        if settings.address.scheme_str() != Some("https") {
            return Err(bad("its scheme is not https"));
        }
        let host = settings.address.host().ok_or_else(|| bad("it names no host"))?;
        server_name(host).map_err(|error| bad(&error.to_string()))?;
        let runtime = tokio::runtime::Handle::current();
        Ok(Self { settings, clock, runtime, link: Mutex::default() })
    }

    /// Where the CA is.
    pub fn address(&self) -> String {
        self.settings.address.to_string()
    }

    pub(super) fn bundle_path(&self) -> PathBuf {
        self.settings.root.clone()
    }

    /// The roots to trust now.
    pub(super) fn roots(&self) -> Result<Vec<CertificateDer<'static>>, CertError> {
        let file = pem::read(&self.settings.root)?;
        let mut link = self.link.lock();
        if link.in_force.is_empty() {
            return Ok(file);
        }
        link.in_force = in_force(&link.in_force, &file);
        Ok(link.in_force.clone())
    }

    pub(super) async fn sign(self: &Arc<Self>, request: SignRequest) -> Result<SignedCert, CertError> {
        let identity = request.identity.clone();
        let service = Arc::clone(self);
        let call = self.runtime.spawn(async move { service.call(request).await });
        call.await.unwrap_or(Err(CertError::Dropped { identity }))
    }

    async fn call(&self, request: SignRequest) -> Result<SignedCert, CertError> {
        let identity = request.identity;
        let (bundle, token) = self.read_files().await?;
        let channel = self.channel(&bundle)?;
        let message = CertificateRequest {
            csr: pem::text("CERTIFICATE REQUEST", &[request.csr]),
            validity_duration: i64::try_from(request.lifetime.as_secs()).unwrap_or(i64::MAX),
            metadata: Some(impersonating(identity.to_string())),
        };
        let mut message = Request::new(message);
        message.metadata_mut().insert("authorization", token);
        if let Ok(cluster) = self.settings.cluster_id.parse() {
            message.metadata_mut().insert(CLUSTER_ID_HEADER, cluster);
        }
        let answer = match tokio::time::timeout(CALL_TIMEOUT, create_certificate(channel, message)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(status)) => return Err(self.failed(identity, &status)),
            Err(_elapsed) => {
                let status = Status::deadline_exceeded(format!("no answer within {CALL_TIMEOUT:?}"));
                return Err(self.failed(identity, &status));
            }
        };
        let signed = read_answer(&answer)
            .and_then(|signed| verify(&signed, self.clock.now()).map(|()| signed))
            .map_err(|detail| CertError::AnswerRefused { identity, detail })?;
        let mut link = self.link.lock();
        link.in_force = in_force(&signed.roots, &bundle);
        Ok(SignedCert { roots: link.in_force.clone(), ..signed })
    }

    /// Both files, off the runtime's thread.
    async fn read_files(&self) -> Result<(Vec<CertificateDer<'static>>, MetadataValue<Ascii>), CertError> {
        let (root, token) = (self.settings.root.clone(), self.settings.token.clone());
        let shown = root.clone();
        let read =
            tokio::task::spawn_blocking(move || Ok::<_, CertError>((pem::read(&root)?, read_token(token)?)));
        read.await.unwrap_or_else(|error| {
            Err(CertError::Io { action: "read", path: shown, cause: error.to_string() })
        })
    }

    /// The connection, made anew when the bundle that it was verified with has changed.
    fn channel(&self, bundle: &[CertificateDer<'static>]) -> Result<Channel, CertError> {
        let mut link = self.link.lock();
        if let Some((verified_with, channel)) = &link.channel
            && verified_with == bundle
        {
            return Ok(channel.clone());
        }
        let config = client_config(bundle, &self.clock).map_err(|error| CertError::Pem {
            path: self.settings.root.clone(),
            detail: error.to_string(),
        })?;
        let connector = Connector { tls: TlsConnector::from(Arc::new(config)) };
        let channel = Endpoint::from(self.settings.address.clone()).connect_with_connector_lazy(connector);
        link.channel = Some((bundle.to_vec(), channel.clone()));
        Ok(channel)
    }

    fn failed(&self, identity: Identity, status: &Status) -> CertError {
        let detail = shown(status);
        match status.code() {
            Code::Unauthenticated
            | Code::PermissionDenied
            | Code::InvalidArgument
            | Code::FailedPrecondition
            | Code::Unimplemented => CertError::Refused {
                identity,
                address: self.address(),
                code: status.code().description(),
                detail,
            },
            _ => {
                // The next call dials again and so may reach another replica.
                self.link.lock().channel = None;
                CertError::Unavailable { identity, address: self.address(), detail }
            }
        }
    }
}

/// The unary call, as generated code would make it.
async fn create_certificate(
    channel: Channel,
    message: Request<CertificateRequest>,
) -> Result<CertificateResponse, Status> {
    let mut grpc = tonic::client::Grpc::new(channel)
        .max_decoding_message_size(MESSAGE_MAX_BYTES)
        .max_encoding_message_size(MESSAGE_MAX_BYTES);
    grpc.ready().await.map_err(|error| Status::unavailable(chain_text(&error)))?;
    let codec = tonic_prost::ProstCodec::default();
    let answer = grpc.unary(message, PathAndQuery::from_static(CREATE_CERTIFICATE), codec).await?;
    Ok(answer.into_inner())
}

/// The file's roots where it speaks of the same mesh as those in force, else these.
fn in_force(
    current: &[CertificateDer<'static>],
    file: &[CertificateDer<'static>],
) -> Vec<CertificateDer<'static>> {
    let shared = file.iter().any(|root| current.contains(root));
    if shared { file.to_vec() } else { current.to_vec() }
}

/// Takes the answer apart: leaf first, roots in the last text, intermediates between.
fn read_answer(answer: &CertificateResponse) -> Result<SignedCert, String> {
    if answer.cert_chain.len() > CHAIN_MAX_TEXTS {
        return Err(format!("{} texts in it, more than {CHAIN_MAX_TEXTS}", answer.cert_chain.len()));
    }
    let (first, others) = answer.cert_chain.split_first().ok_or("its chain is empty")?;
    let (last, middle) = others.split_last().ok_or("its chain has no root")?;
    let mut chain = pem::certificates(first)?;
    for text in middle {
        chain.extend(pem::certificates(text)?);
    }
    let roots = pem::certificates(last)?;
    // Some CAs repeat the root among the intermediates; no peer needs it.
    chain.retain(|cert| !roots.contains(cert));
    if chain.is_empty() || chain.len() + roots.len() > BUNDLE_MAX_CERTS {
        return Err(format!("{} certificates in it", chain.len() + roots.len()));
    }
    Ok(SignedCert { chain, roots })
}

/// A chain that does not end at the answer's own roots is of no use to any peer.
fn verify(signed: &SignedCert, now: SystemTime) -> Result<(), String> {
    let mut store = RootCertStore::empty();
    for root in &signed.roots {
        store.add(root.clone()).map_err(|error| error.to_string())?;
    }
    let (leaf, intermediates) = signed.chain.split_first().ok_or("its chain is empty")?;
    let leaf = ParsedCertificate::try_from(leaf).map_err(|error| error.to_string())?;
    let now = UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap_or_default());
    rustls::client::verify_server_cert_signed_by_trust_anchor(
        &leaf,
        &store,
        intermediates,
        now,
        tls::provider().signature_verification_algorithms.all,
    )
    .map_err(|error| format!("its chain does not verify: {error}"))
}

fn client_config(
    roots: &[CertificateDer<'static>],
    clock: &Arc<dyn Clock>,
) -> Result<ClientConfig, rustls::Error> {
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(root.clone())?;
    }
    let mut config = ClientConfig::builder_with_details(tls::provider(), tls::time_provider(clock))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(store)
        .with_no_client_auth();
    config.alpn_protocols = vec![tls::ALPN_H2.to_vec()];
    Ok(config)
}

fn read_token(path: PathBuf) -> Result<MetadataValue<Ascii>, CertError> {
    let failed = |cause: String| CertError::Token { path: path.clone(), cause };
    let text = std::fs::read_to_string(&path).map_err(|error| failed(error.to_string()))?;
    let token = text.trim();
    if token.is_empty() || token.len() > TOKEN_MAX_BYTES {
        return Err(failed(format!("it holds {} bytes, not 1 to {TOKEN_MAX_BYTES}", token.len())));
    }
    let mut value: MetadataValue<Ascii> = format!("Bearer {token}")
        .parse()
        .map_err(|_not_ascii| failed("it holds bytes that no token has".to_owned()))?;
    // Kept out of debug logs.
    value.set_sensitive(true);
    Ok(value)
}

/// A status in words, without what only a program reads, and bounded.
fn shown(status: &Status) -> String {
    let mut text = status.message().to_owned();
    if let Some(source) = std::error::Error::source(status) {
        text = format!("{text}: {}", chain_text(source));
    }
    let end = (0..=MESSAGE_SHOWN_BYTES.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    text.truncate(end.unwrap_or(0));
    if text.is_empty() { status.code().description().to_owned() } else { text }
}

/// An error with its causes: tonic's own text says only "transport error".
fn chain_text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

fn server_name(host: &str) -> Result<ServerName<'static>, rustls::pki_types::InvalidDnsNameError> {
    ServerName::try_from(host.trim_matches(['[', ']']).to_owned())
}

/// Opens TCP, then TLS with the server's name checked.
#[derive(Clone)]
struct Connector {
    tls: TlsConnector,
}

impl Connector {
    async fn open(self, uri: Uri) -> io::Result<TokioIo<TlsStream<TcpStream>>> {
        let host = uri.host().ok_or_else(|| io::Error::other("the address names no host"))?;
        let host = host.trim_matches(['[', ']']);
        let open = async {
            let tcp = TcpStream::connect((host, uri.port_u16().unwrap_or(DEFAULT_PORT))).await?;
            tcp.set_nodelay(true)?;
            let name = server_name(host).map_err(io::Error::other)?;
            self.tls.connect(name, tcp).await
        };
        match tokio::time::timeout(CONNECT_TIMEOUT, open).await {
            Ok(opened) => opened.map(TokioIo::new),
            Err(_elapsed) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no connection within {CONNECT_TIMEOUT:?}"),
            )),
        }
    }
}

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().open(uri))
    }
}

impl std::fmt::Debug for CaService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CaService({})", self.settings.address)
    }
}

#[cfg(test)]
mod tests;
