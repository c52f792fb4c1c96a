//! A client of the tunnel port that can do what a good one never does: any certificate, any request, bytes before
//! the answer. Made of rustls and h2 alone, so that nothing of the agent's own client is taken for granted.
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use h2::client::SendRequest;
use http::{Method, Request};
use mesh_tests::Pod;
use rcgen::{
    CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose, SanType, date_time_ymd,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio_rustls::TlsConnector;

pub(crate) const TUNNEL_PORT: u16 = 15008;
/// Ends what hangs.
const STEP_LIMIT: Duration = Duration::from_secs(15);

/// The times a certificate is good for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Validity {
    Now,
    /// Long over.
    Past,
    /// Not yet.
    Future,
}

/// Something that signs certificates.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// The mesh's own: what somebody could do who has its key.
    pub(crate) fn of(ca_dir: &Path) -> Result<Self> {
        let key = KeyPair::from_pem(&std::fs::read_to_string(ca_dir.join("ca-key.pem"))?)?;
        let cert = CertificateDer::from_pem_file(ca_dir.join("ca-cert.pem")).context("reading the CA")?;
        Ok(Self { issuer: Issuer::from_ca_cert_der(&cert, key)? })
    }

    /// A certificate with these URI names.
    pub(crate) fn leaf(&self, uris: &[&str], validity: Validity) -> Result<Credentials> {
        let key = KeyPair::generate()?;
        let cert = leaf_params(uris, validity)?.signed_by(&key, &self.issuer)?;
        Credentials::new(cert.der().clone(), &key)
    }
}

fn leaf_params(uris: &[&str], validity: Validity) -> Result<CertificateParams> {
    let mut params = CertificateParams::default();
    for uri in uris {
        params.subject_alt_names.push(SanType::URI((*uri).try_into()?));
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let (from, to) = match validity {
        Validity::Now => (2020, 2120),
        Validity::Past => (2020, 2021),
        Validity::Future => (2120, 2121),
    };
    (params.not_before, params.not_after) = (date_time_ymd(from, 1, 1), date_time_ymd(to, 1, 1));
    Ok(params)
}

/// What a client shows.
#[derive(Clone)]
pub(crate) struct Credentials {
    resolver: Arc<dyn ResolvesClientCert>,
}

impl Credentials {
    fn new(cert: CertificateDer<'static>, key: &KeyPair) -> Result<Self> {
        let der = PrivatePkcs8KeyDer::from(key.serialize_der());
        let signing = aws_lc_rs::default_provider().key_provider.load_private_key(der.into())?;
        let resolver = SingleCertAndKey::from(CertifiedKey::new(vec![cert], signing));
        Ok(Self { resolver: Arc::new(resolver) })
    }

    pub(crate) fn self_signed(uri: &str) -> Result<Self> {
        let key = KeyPair::generate()?;
        let cert = leaf_params(&[uri], Validity::Now)?.self_signed(&key)?;
        Self::new(cert.der().clone(), &key)
    }

    pub(crate) fn none() -> Self {
        Self { resolver: Arc::new(Nothing) }
    }
}

#[derive(Debug)]
struct Nothing;

impl ResolvesClientCert for Nothing {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

/// Takes any server: these scenarios are about what the server takes.
#[derive(Debug)]
struct AnyServer(CryptoProvider);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not offered".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Runs a scenario's asynchronous part.
pub(crate) fn on_a_runtime<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(work)
}

async fn step<T, E: Into<anyhow::Error>>(what: &str, work: impl Future<Output = Result<T, E>>) -> Result<T> {
    let done = tokio::time::timeout(STEP_LIMIT, work).await.with_context(|| format!("{what} hangs"))?;
    done.map_err(Into::into).with_context(|| what.to_owned())
}

pub(crate) type Tls = tokio_rustls::client::TlsStream<tokio::net::TcpStream>;

/// TLS to a pod's tunnel port from another pod's namespace.
pub(crate) async fn tls(from: &Pod, to: IpAddr, show: &Credentials) -> Result<Tls> {
    let tcp: TcpStream = from.connect(SocketAddr::new(to, TUNNEL_PORT))?;
    tcp.set_nonblocking(true)?;
    let tcp = tokio::net::TcpStream::from_std(tcp)?;
    let provider = aws_lc_rs::default_provider();
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider.clone()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer(provider)))
        .with_client_cert_resolver(Arc::clone(&show.resolver));
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.enable_sni = false;
    config.resumption = Resumption::disabled();
    let name = ServerName::IpAddress(to.into());
    step("the TLS handshake", TlsConnector::from(Arc::new(config)).connect(name, tcp)).await
}

/// A tunnel.
pub(crate) struct Tunnel {
    send: SendRequest<Bytes>,
}

/// An answered CONNECT.
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// The agent's word for why not.
    pub(crate) reason: Option<String>,
    pub(crate) recv: h2::RecvStream,
}

/// A CONNECT on its way.
pub(crate) struct Asked {
    pub(crate) answer: h2::client::ResponseFuture,
    pub(crate) stream: h2::SendStream<Bytes>,
}

impl Tunnel {
    pub(crate) async fn open(from: &Pod, to: IpAddr, show: &Credentials) -> Result<Self> {
        let tls = tls(from, to, show).await?;
        let (send, connection) = step("the HTTP/2 handshake", h2::client::handshake(tls)).await?;
        // Ends with the runtime; what it ends with is what the requests say.
        drop(tokio::spawn(connection));
        Ok(Self { send })
    }

    /// Sends a CONNECT and, before any answer, these bytes.
    pub(crate) async fn connect(&mut self, authority: &str, early: &'static [u8]) -> Result<Asked> {
        let uri = http::Uri::builder().authority(authority).build()?;
        let request = Request::builder().method(Method::CONNECT).uri(uri).body(())?;
        self.request(request, early).await
    }

    pub(crate) async fn request(&mut self, request: Request<()>, early: &'static [u8]) -> Result<Asked> {
        step("the wait for the peer's settings", std::future::poll_fn(|cx| self.send.poll_ready(cx))).await?;
        let (answer, mut stream) = self.send.send_request(request, false)?;
        if !early.is_empty() {
            stream.send_data(Bytes::from_static(early), false)?;
        }
        Ok(Asked { answer, stream })
    }

    /// One CONNECT with early bytes, and what became of it.
    pub(crate) async fn ask(&mut self, authority: &str, early: &'static [u8]) -> Result<Answer> {
        let asked = self.connect(authority, early).await?;
        answer(asked.answer).await
    }
}

pub(crate) async fn answer(answer: h2::client::ResponseFuture) -> Result<Answer> {
    let response = step("the answer", answer).await?;
    let reason = response.headers().get("nodemesh-reason").and_then(|value| value.to_str().ok());
    Ok(Answer {
        status: response.status().as_u16(),
        reason: reason.map(str::to_owned),
        recv: response.into_body(),
    })
}

/// Reads this many bytes of an accepted stream.
pub(crate) async fn read(recv: &mut h2::RecvStream, length: usize) -> Result<Vec<u8>> {
    let mut all = Vec::new();
    while all.len() < length {
        let next = tokio::time::timeout(STEP_LIMIT, recv.data()).await.context("the stream's bytes hang")?;
        let bytes = next.context("the stream ended")??;
        recv.flow_control().release_capacity(bytes.len())?;
        all.extend_from_slice(&bytes);
    }
    Ok(all)
}
