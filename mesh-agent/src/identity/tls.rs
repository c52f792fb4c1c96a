//! rustls configurations and verifiers for the mesh: TLS 1.3, ALPN h2, both sides with a certificate.
//! Owns: what a peer's chain and name must be. Never: falls back to anything weaker.

use std::fmt;
use std::sync::{Arc, LazyLock};
use std::time::UNIX_EPOCH;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::time_provider::TimeProvider;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, OtherError,
    RootCertStore, ServerConfig, SignatureScheme,
};

use super::Clock;
use super::error::PeerError;
use super::san::certificate_identity;
use crate::model::{Identity, Reason};

/// The one protocol spoken inside the mesh's TLS.
pub(crate) const ALPN_H2: &[u8] = b"h2";

static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = vec![
        aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
        aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
    ];
    // The hybrid group comes last: it is there for peers that insist on it, a tunnel costs one handshake.
    provider.kx_groups = vec![
        aws_lc_rs::kx_group::X25519,
        aws_lc_rs::kx_group::SECP256R1,
        aws_lc_rs::kx_group::SECP384R1,
        aws_lc_rs::kx_group::X25519MLKEM768,
    ];
    Arc::new(provider)
});

/// The cryptography of the mesh, handed to rustls explicitly: a process-wide default could be another's.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::clone(&PROVIDER)
}

/// Random bytes from the provider's generator.
pub(super) fn random_bytes<const N: usize>() -> Result<[u8; N], rustls::crypto::GetRandomFailed> {
    let mut bytes = [0; N];
    PROVIDER.secure_random.fill(&mut bytes)?;
    Ok(bytes)
}

/// What both sides' configurations are made from.
pub(super) struct TlsParts {
    pub(super) identity: Identity,
    pub(super) key: Arc<CertifiedKey>,
    pub(super) roots: Arc<RootCertStore>,
    pub(super) clock: Arc<dyn Clock>,
}

/// A configuration for dialling a peer that must be one of `expected`.
pub(super) fn client_config(parts: &TlsParts, expected: &[Identity]) -> Result<ClientConfig, rustls::Error> {
    let verifier =
        ServerVerifier { roots: Arc::clone(&parts.roots), expected: expected.into(), provider: provider() };
    let mut config = ClientConfig::builder_with_details(provider(), time_provider(&parts.clock))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&parts.key))));
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    // The receiver picks its certificate by the address dialled; a name would only leak.
    config.enable_sni = false;
    // A resumed session would outlive the certificate that it was authenticated with.
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// A configuration for accepting peers of the own trust domain.
pub(super) fn server_config(parts: &TlsParts) -> Result<ServerConfig, rustls::Error> {
    let chain = WebPkiClientVerifier::builder_with_provider(Arc::clone(&parts.roots), provider())
        .clear_root_hint_subjects()
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))?;
    let verifier = ClientVerifier { chain, trust_domain: parts.identity.trust_domain().to_owned() };
    let mut config = ServerConfig::builder_with_details(provider(), time_provider(&parts.clock))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&parts.key))));
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(config)
}

/// The reason that a failed handshake (or the alert that ended a connection) is reported with.
pub fn reason_of_tls_error(error: &rustls::Error) -> Reason {
    use AlertDescription as Alert;
    match error {
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) => {
            match inner.downcast_ref::<PeerError>() {
                Some(PeerError::WrongIdentity { .. }) => Reason::WrongIdentity,
                _ => Reason::PeerCertificate,
            }
        }
        rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented => {
            Reason::PeerCertificate
        }
        rustls::Error::AlertReceived(
            Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::AccessDenied
            | Alert::CertificateRequired,
        ) => Reason::PeerCertificate,
        _ => Reason::TlsHandshake,
    }
}

fn refuse(error: PeerError) -> rustls::Error {
    rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}

/// Lets rustls read the injected clock.
struct ClockTime(Arc<dyn Clock>);

impl fmt::Debug for ClockTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClockTime")
    }
}

impl TimeProvider for ClockTime {
    fn current_time(&self) -> Option<UnixTime> {
        self.0.now().duration_since(UNIX_EPOCH).ok().map(UnixTime::since_unix_epoch)
    }
}

/// The injected clock as rustls reads it.
pub fn time_provider(clock: &Arc<dyn Clock>) -> Arc<dyn TimeProvider> {
    Arc::new(ClockTime(Arc::clone(clock)))
}

/// Client side: the chain ends at our bundle and the one URI name is an expected identity. DNS names say nothing.
#[derive(Debug)]
struct ServerVerifier {
    roots: Arc<RootCertStore>,
    expected: Box<[Identity]>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.roots,
            intermediates,
            now,
            self.provider.signature_verification_algorithms.all,
        )?;
        let found = certificate_identity(end_entity).map_err(refuse)?;
        if self.expected.contains(&found) {
            return Ok(ServerCertVerified::assertion());
        }
        let expected = self.expected.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ");
        Err(refuse(PeerError::WrongIdentity { found, expected }))
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::PeerIncompatible(rustls::PeerIncompatible::Tls12NotOfferedOrEnabled))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Server side: webpki checks the chain, this checks the one URI name and its trust domain.
#[derive(Debug)]
struct ClientVerifier {
    chain: Arc<dyn ClientCertVerifier>,
    trust_domain: String,
}

impl ClientCertVerifier for ClientVerifier {
    fn offer_client_auth(&self) -> bool {
        true
    }

    fn client_auth_mandatory(&self) -> bool {
        true
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.chain.verify_client_cert(end_entity, intermediates, now)?;
        let found = certificate_identity(end_entity).map_err(refuse)?;
        if found.trust_domain() == self.trust_domain {
            return Ok(verified);
        }
        Err(refuse(PeerError::TrustDomain { found, expected: self.trust_domain.clone() }))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests;
