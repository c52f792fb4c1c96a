//! rustls configurations for servers outside the mesh: TLS 1.2 and 1.3 as the world speaks them, with the roots, the names
//! and the client certificate that a DestinationRule asks for. Owns: what such a server must prove. Never: falls back to
//! less than was asked for. Called by `proxy::originate`.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::pem;

static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(aws_lc_rs::default_provider()));

/// Largest file of certificates or keys that is read, bytes. The public authorities are a quarter of it.
pub const FILE_MAX_BYTES: u64 = 1024 * 1024;

/// Why there is no configuration.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ExternalError {
    #[error("{}: {problem}; put the file there that the DestinationRule names", path.display())]
    File { path: PathBuf, problem: String },
    #[error("no authority is known: {0}; mend SSL_CERT_FILE and SSL_CERT_DIR, or name caCertificates")]
    Roots(String),
    #[error("{0}")]
    Tls(#[from] rustls::Error),
}

/// What a configuration is made of.
#[derive(Debug)]
pub struct External<'a> {
    /// None = the server's certificate is not looked at.
    pub verify: Option<Verify<'a>>,
    /// Files of a certificate chain and its key.
    pub client: Option<(&'a Path, &'a Path)>,
    /// What is spoken inside; empty = nothing is said about it.
    pub alpn: &'a [&'a [u8]],
}

#[derive(Debug)]
pub struct Verify<'a> {
    /// A file of roots; none = those of this system.
    pub roots: Option<&'a Path>,
    /// Any of these instead of the name that the server is called by.
    pub names: &'a [Arc<str>],
}

/// Reads the files and makes the configuration. Blocks.
pub fn client_config(external: &External<'_>) -> Result<ClientConfig, ExternalError> {
    let verifier = match &external.verify {
        None => Verifier { roots: None, names: Box::default() },
        Some(verify) => {
            let roots = match verify.roots {
                Some(path) => roots_of(path)?,
                None => system_roots()?,
            };
            Verifier { roots: Some(roots), names: verify.names.into() }
        }
    };
    let config = ClientConfig::builder_with_provider(Arc::clone(&PROVIDER))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match external.client {
        None => config.with_no_client_auth(),
        Some((chain, key)) => {
            let certs = pem::certificates(&read(chain)?).map_err(|problem| broken(chain, problem))?;
            config.with_client_auth_cert(certs, private_key(key)?)?
        }
    };
    config.alpn_protocols = external.alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(config)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, ExternalError> {
    let text = read(path)?;
    PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|error| broken(path, error.to_string()))
}

fn roots_of(path: &Path) -> Result<Arc<RootCertStore>, ExternalError> {
    let text = read(path)?;
    let mut roots = RootCertStore::empty();
    for cert in CertificateDer::pem_slice_iter(text.as_bytes()) {
        let cert = cert.map_err(|error| broken(path, error.to_string()))?;
        roots.add(cert).map_err(|error| broken(path, error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(broken(path, "no certificate in it".to_owned()));
    }
    Ok(Arc::new(roots))
}

fn broken(path: &Path, problem: String) -> ExternalError {
    ExternalError::File { path: path.to_owned(), problem }
}

fn read(path: &Path) -> Result<String, ExternalError> {
    let failed = |error: std::io::Error| broken(path, error.to_string());
    let length = std::fs::metadata(path).map_err(failed)?.len();
    if length > FILE_MAX_BYTES {
        return Err(broken(path, format!("{length} bytes are too many")));
    }
    std::fs::read_to_string(path).map_err(failed)
}

/// The authorities that this system trusts (`SSL_CERT_FILE`, `SSL_CERT_DIR`, or where distributions keep them); in a
/// container that has none, Mozilla's as this program was built with them.
fn system_roots() -> Result<Arc<RootCertStore>, ExternalError> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    // One that cannot be read verifies nobody; the others do.
    let (_added, _ignored) = roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        // Whoever names a file means it: another set instead would trust whom they did not.
        if std::env::var_os("SSL_CERT_FILE").is_some() || std::env::var_os("SSL_CERT_DIR").is_some() {
            let problems: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
            return Err(ExternalError::Roots(problems.join(", ")));
        }
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    Ok(Arc::new(roots))
}

/// The chain ends at one of the roots, and the certificate is of the name that the server is called by, or of one of
/// `names`. Without roots nothing is asked.
#[derive(Debug)]
struct Verifier {
    roots: Option<Arc<RootCertStore>>,
    names: Box<[Arc<str>]>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(roots) = &self.roots else { return Ok(ServerCertVerified::assertion()) };
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let algorithms = PROVIDER.signature_verification_algorithms.all;
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &parsed,
            roots,
            intermediates,
            now,
            algorithms,
        )?;
        if self.names.is_empty() {
            rustls::client::verify_server_name(&parsed, server_name)?;
            return Ok(ServerCertVerified::assertion());
        }
        if self.names.iter().any(|name| is_named(end_entity, &parsed, name)) {
            return Ok(ServerCertVerified::assertion());
        }
        Err(rustls::Error::InvalidCertificate(CertificateError::NotValidForName))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &PROVIDER.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &PROVIDER.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        PROVIDER.signature_verification_algorithms.supported_schemes()
    }
}

/// Whether a certificate carries an alternative name: of the DNS (a wildcard of the certificate covers it), an address,
/// or a URI such as a SPIFFE id.
fn is_named(der: &CertificateDer<'_>, parsed: &ParsedCertificate<'_>, name: &str) -> bool {
    let dns = name.parse::<IpAddr>().map_or_else(
        |_not_an_address| ServerName::try_from(name).ok(),
        |address| Some(ServerName::from(address)),
    );
    if dns.is_some_and(|name| rustls::client::verify_server_name(parsed, &name).is_ok()) {
        return true;
    }
    let Ok((_, cert)) = X509Certificate::from_der(der) else { return false };
    let Ok(Some(names)) = cert.subject_alternative_name() else { return false };
    names.value.general_names.iter().any(|one| matches!(one, GeneralName::URI(uri) if *uri == name))
}

#[cfg(test)]
mod tests;
