//! One workload's certificate with its key and the TLS configurations made from them.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::Clock;
use super::ca::SignedCert;
use super::error::CertError;
use super::san::certificate_identity;
use super::tls::{self, TlsParts};
use crate::model::Identity;

/// A certificate, its key and what to trust. Immutable: a renewal makes a new one.
pub struct WorkloadCert {
    pub identity: Identity,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
    /// Lower-case hexadecimal.
    pub serial: String,
    parts: TlsParts,
    root_ders: Vec<CertificateDer<'static>>,
    server: Arc<ServerConfig>,
    /// Refuses every server; handed out where a configuration for the wanted identities cannot be built.
    client: ClientConfig,
}

impl WorkloadCert {
    /// Checks a CA's answer (leaf for this identity and this key, valid times) and builds the configurations.
    pub(super) fn new(
        identity: &Identity,
        key: &rcgen::KeyPair,
        signed: SignedCert,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, CertError> {
        let refused = |detail: String| CertError::AnswerRefused { identity: identity.clone(), detail };
        let leaf = signed.chain.first().ok_or_else(|| refused("its chain is empty".to_owned()))?.clone();
        let found = certificate_identity(&leaf).map_err(|error| refused(error.to_string()))?;
        if found != *identity {
            return Err(refused(format!("it is for {found}")));
        }
        let (not_before, not_after, serial) = {
            let (_, parsed) =
                x509_parser::parse_x509_certificate(&leaf).map_err(|error| refused(error.to_string()))?;
            let validity = parsed.validity();
            let not_before = time_of(validity.not_before.timestamp());
            (not_before, time_of(validity.not_after.timestamp()), hex(parsed.raw_serial()))
        };
        if not_after <= clock.now() {
            return Err(refused("it has expired already".to_owned()));
        }
        let provider = tls::provider();
        let der = PrivatePkcs8KeyDer::from(key.serialize_der());
        let signing =
            provider.key_provider.load_private_key(der.into()).map_err(|error| refused(error.to_string()))?;
        let certified = CertifiedKey::new(signed.chain, signing);
        certified.keys_match().map_err(|error| refused(error.to_string()))?;
        let parts = TlsParts {
            identity: identity.clone(),
            key: Arc::new(certified),
            roots: Arc::new(RootCertStore::empty()),
            clock,
        };
        Self::assemble(parts, (not_before, not_after), serial, signed.roots)
    }

    /// The same certificate with another bundle: a root came or went.
    pub(super) fn with_roots(&self, roots: Vec<CertificateDer<'static>>) -> Result<Self, CertError> {
        let parts = TlsParts {
            identity: self.identity.clone(),
            key: Arc::clone(&self.parts.key),
            roots: Arc::clone(&self.parts.roots),
            clock: Arc::clone(&self.parts.clock),
        };
        Self::assemble(parts, (self.not_before, self.not_after), self.serial.clone(), roots)
    }

    fn assemble(
        mut parts: TlsParts,
        (not_before, not_after): (SystemTime, SystemTime),
        serial: String,
        root_ders: Vec<CertificateDer<'static>>,
    ) -> Result<Self, CertError> {
        let identity = parts.identity.clone();
        let refused = |error: rustls::Error| CertError::AnswerRefused {
            identity: identity.clone(),
            detail: error.to_string(),
        };
        let mut roots = RootCertStore::empty();
        for root in &root_ders {
            roots.add(root.clone()).map_err(refused)?;
        }
        parts.roots = Arc::new(roots);
        let server = Arc::new(tls::server_config(&parts).map_err(refused)?);
        let client = tls::client_config(&parts, &[]).map_err(refused)?;
        Ok(Self { identity, not_before, not_after, serial, parts, root_ders, server, client })
    }

    /// For dialling a peer that must prove to be one of `expected`.
    pub fn client_config(&self, expected: &[Identity]) -> Arc<ClientConfig> {
        // The same call succeeded in `assemble`; should it ever fail, the configuration that trusts nobody is
        // the safe answer.
        Arc::new(tls::client_config(&self.parts, expected).unwrap_or_else(|_| self.client.clone()))
    }

    /// For accepting peers of the own trust domain.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }

    /// Whether the certificate is past its end at `now`.
    pub fn expired(&self, now: SystemTime) -> bool {
        self.not_after <= now
    }

    /// The clock that its end is judged with.
    pub fn clock(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.parts.clock)
    }

    /// The chain as sent to peers, leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.parts.key.cert
    }

    /// The roots this certificate's holder trusts.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.root_ders
    }
}

impl fmt::Debug for WorkloadCert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the key.
        write!(f, "WorkloadCert({}, serial {})", self.identity, self.serial)
    }
}

pub(super) fn time_of(unix_seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(unix_seconds).unwrap_or(0))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
