//! A signing certificate with its key. Owns: the checks without which a certificate would be issued that no peer
//! accepts, or that somebody else's authority would answer for. Never: decides who gets a certificate.
//! Called by `store` (reads it from the Secret) and `issue` (signs).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData as _, SanType,
};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::identity::leaf::{self, BACKDATE, Names};
use crate::identity::{CertError, pem, provider, root};
use crate::model::Identity;

/// Life of the service's own certificate; it is made anew at half of it.
pub const SERVING_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// Longest chain between a leaf and its root, certificates.
const CHAIN_MAX_CERTS: usize = 6;

/// The three texts of cert-manager's Secret layout.
#[derive(Clone, PartialEq, Eq)]
pub struct Material {
    /// `tls.crt`: the signing certificate, then what leads from it to a root.
    pub chain: String,
    /// `tls.key`.
    pub key: String,
    /// `ca.crt`: every root to trust; may hold several. Absent = the last certificate of the chain.
    pub roots: Option<String>,
}

/// Why a key pair cannot sign for the mesh. Each names the key of the Secret and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignerError {
    #[error("{key} cannot be read: {detail}; put PEM there")]
    Pem { key: &'static str, detail: String },
    #[error("tls.crt certificate {index} ({subject}) {problem}; {remedy}")]
    Certificate { index: usize, subject: String, problem: String, remedy: &'static str },
    #[error("tls.key does not belong to the first certificate of tls.crt; restore the pair")]
    Mismatch,
    #[error(
        "a certificate signed by it verifies with none of the {roots} roots of ca.crt ({detail}); put its root into ca.crt and what lies between into tls.crt"
    )]
    NoRoot { roots: usize, detail: String },
    #[error("a certificate could not be made: {0}")]
    Generate(String),
}

/// See the module's header.
pub struct Signer {
    issuer: Issuer<'static, KeyPair>,
    /// What a leaf's holder sends after the leaf; empty when a root signs.
    intermediates: Vec<CertificateDer<'static>>,
    anchor: CertificateDer<'static>,
    roots: Vec<CertificateDer<'static>>,
    not_after: SystemTime,
    material: Material,
}

/// A signed certificate.
#[derive(Clone, Debug)]
pub struct Issued {
    pub leaf: CertificateDer<'static>,
    /// Lower-case hexadecimal.
    pub serial: String,
    pub not_after: SystemTime,
}

impl Material {
    /// A new self-made root.
    pub fn self_made(now: SystemTime) -> Result<Self, SignerError> {
        let (key, cert) = root::make_root("mesh root", now).map_err(SignerError::Generate)?;
        Ok(Self { chain: cert.pem(), key: key.serialize_pem(), roots: Some(cert.pem()) })
    }
}

impl Signer {
    /// Reads and checks a key pair, and has it sign a certificate for nobody to see that peers would accept it.
    pub fn read(material: &Material, trust_domain: &str, now: SystemTime) -> Result<Self, SignerError> {
        let certs =
            |key, text: &str| pem::certificates(text).map_err(|detail| SignerError::Pem { key, detail });
        let chain = certs("tls.crt", &material.chain)?;
        if chain.len() > CHAIN_MAX_CERTS {
            let detail = format!("{} certificates, more than {CHAIN_MAX_CERTS}", chain.len());
            return Err(SignerError::Pem { key: "tls.crt", detail });
        }
        let roots = match &material.roots {
            Some(text) => certs("ca.crt", text)?,
            None => chain.last().cloned().into_iter().collect(),
        };
        for (index, cert) in chain.iter().enumerate() {
            check_authority(index, cert, now)?;
        }
        let first = chain.first().ok_or(SignerError::Mismatch)?;
        let key = KeyPair::from_pem(&material.key)
            .map_err(|error| SignerError::Pem { key: "tls.key", detail: error.to_string() })?;
        let (subject_key, not_after) = {
            let parsed = parse(first)?;
            (
                parsed.public_key().subject_public_key.data.to_vec(),
                time_of(parsed.validity().not_after.timestamp()),
            )
        };
        if subject_key != key.der_bytes() {
            return Err(SignerError::Mismatch);
        }
        let issuer = Issuer::from_ca_cert_der(first, key)
            .map_err(|error| SignerError::Pem { key: "tls.crt", detail: error.to_string() })?;
        let intermediates: Vec<_> = chain.iter().filter(|cert| !roots.contains(cert)).cloned().collect();
        let mut signer = Self {
            issuer,
            anchor: first.clone(),
            intermediates,
            roots,
            not_after,
            material: material.clone(),
        };
        signer.anchor = signer.find_anchor(trust_domain, now)?;
        Ok(signer)
    }

    /// The root that certificates from here verify with.
    pub fn anchor(&self) -> &CertificateDer<'static> {
        &self.anchor
    }

    /// Every root of `ca.crt`.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    pub fn material(&self) -> &Material {
        &self.material
    }

    /// What stands between a leaf and the root.
    pub fn intermediates(&self) -> &[CertificateDer<'static>] {
        &self.intermediates
    }

    /// Checks a CSR and signs it. A certificate never outlives the one that signed it.
    pub fn sign(
        &self,
        csr: &[u8],
        identity: &Identity,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Issued, CertError> {
        let public_key = leaf::check_csr(csr, identity, Names::Optional)?;
        let failed = |detail: String| CertError::Generate { identity: identity.clone(), detail };
        let not_after = (now + lifetime).min(self.not_after);
        if not_after <= now {
            return Err(failed("the signing certificate has expired".to_owned()));
        }
        let params = leaf::params(identity, now, not_after)?;
        let serial =
            hex(params.serial_number.as_ref().map(rcgen::SerialNumber::to_bytes).unwrap_or_default());
        let leaf = params.signed_by(&public_key, &self.issuer).map_err(|error| failed(error.to_string()))?;
        Ok(Issued { leaf: leaf.der().clone(), serial, not_after })
    }

    /// A certificate for the service itself, by DNS name or address.
    pub fn serving(&self, names: &[String], now: SystemTime) -> Result<Arc<CertifiedKey>, SignerError> {
        let failed = |detail: String| SignerError::Generate(detail);
        let key =
            KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|error| failed(error.to_string()))?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        for name in names {
            let name = match name.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_not_an_address) => SanType::DnsName(
                    name.as_str()
                        .try_into()
                        .map_err(|error: rcgen::Error| failed(format!("server name `{name}`: {error}")))?,
                ),
            };
            params.subject_alt_names.push(name);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(leaf::serial_number().map_err(failed)?);
        params.not_before = OffsetDateTime::from(now.checked_sub(BACKDATE).unwrap_or(now));
        params.not_after = OffsetDateTime::from((now + SERVING_LIFETIME).min(self.not_after));
        let cert = params.signed_by(&key, &self.issuer).map_err(|error| failed(error.to_string()))?;
        let mut chain = vec![cert.der().clone()];
        chain.extend(self.intermediates.iter().cloned());
        let der = PrivatePkcs8KeyDer::from(key.serialize_der());
        let signing = provider()
            .key_provider
            .load_private_key(der.into())
            .map_err(|error| failed(error.to_string()))?;
        Ok(Arc::new(CertifiedKey::new(chain, signing)))
    }

    /// Has a workload's certificate signed and verifies it as peers will, with one root after the other. This sees
    /// what single checks would not: name constraints, usages of intermediates, a name that is written otherwise.
    fn find_anchor(
        &self,
        trust_domain: &str,
        now: SystemTime,
    ) -> Result<CertificateDer<'static>, SignerError> {
        let failed = |error: String| SignerError::Generate(error);
        let identity = Identity::new(trust_domain, "nodemesh-system", "probe")
            .map_err(|error| failed(error.to_string()))?;
        let key =
            KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|error| failed(error.to_string()))?;
        let until = (now + Duration::from_secs(60)).min(self.not_after);
        let leaf = leaf::params(&identity, now, until)
            .map_err(|error| failed(error.to_string()))?
            .signed_by(&key, &self.issuer)
            .map_err(|error| failed(error.to_string()))?;
        let mut detail = "ca.crt is empty".to_owned();
        for root in &self.roots {
            match verify(leaf.der(), &self.intermediates, root, now) {
                Ok(()) => return Ok(root.clone()),
                Err(error) => detail = error,
            }
        }
        Err(SignerError::NoRoot { roots: self.roots.len(), detail })
    }
}

fn verify(
    leaf: &CertificateDer<'static>,
    intermediates: &[CertificateDer<'static>],
    root: &CertificateDer<'static>,
    now: SystemTime,
) -> Result<(), String> {
    // webpki takes a root at its word; a peer's TLS library may not.
    let end = X509Certificate::from_der(root).map_err(|error| error.to_string())?.1.validity().not_after;
    if time_of(end.timestamp()) <= now {
        return Err("the root has expired".to_owned());
    }
    let mut store = RootCertStore::empty();
    store.add(root.clone()).map_err(|error| error.to_string())?;
    let parsed = ParsedCertificate::try_from(leaf).map_err(|error| error.to_string())?;
    let now = UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap_or_default());
    rustls::client::verify_server_cert_signed_by_trust_anchor(
        &parsed,
        &store,
        intermediates,
        now,
        provider().signature_verification_algorithms.all,
    )
    .map_err(|error| error.to_string())
}

/// What every certificate of `tls.crt` must be.
fn check_authority(index: usize, cert: &CertificateDer<'_>, now: SystemTime) -> Result<(), SignerError> {
    let parsed = parse(cert)?;
    let subject = parsed.subject().to_string();
    let refused = |problem: &str, remedy: &'static str| {
        Err(SignerError::Certificate { index, subject: subject.clone(), problem: problem.to_owned(), remedy })
    };
    if time_of(parsed.validity().not_before.timestamp()) > now {
        return refused("is not valid yet", "check the clocks");
    }
    if time_of(parsed.validity().not_after.timestamp()) <= now {
        return refused("has expired", "renew it");
    }
    let constraints = parsed.basic_constraints().ok().flatten().map(|extension| extension.value);
    let Some(constraints) = constraints.filter(|constraints| constraints.ca) else {
        return refused("is no CA (basicConstraints CA:TRUE)", "in cert-manager set `isCA: true`");
    };
    // RFC 5280, 4.2.1.9: how many authorities may stand below; the first of the chain has none, the next one.
    if constraints.path_len_constraint.is_some_and(|most| (most as usize) < index) {
        return refused(
            "allows fewer authorities below it (pathLen) than there are",
            "issue it with a larger pathLen",
        );
    }
    let usage = parsed.key_usage().ok().flatten().map(|extension| extension.value);
    if usage.is_some_and(|usage| !usage.key_cert_sign()) {
        return refused("may not sign certificates (keyUsage)", "in cert-manager add the usage `cert sign`");
    }
    Ok(())
}

fn parse<'a>(cert: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, SignerError> {
    X509Certificate::from_der(cert)
        .map(|(_, parsed)| parsed)
        .map_err(|error| SignerError::Pem { key: "tls.crt", detail: error.to_string() })
}

fn time_of(unix_seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(unix_seconds).unwrap_or(0))
}

fn hex(bytes: Vec<u8>) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never the key.
        f.debug_struct("Signer").field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
