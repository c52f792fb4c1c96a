//! What a workload's certificate says, and what its CSR may ask for. One place for every CA of ours, so that the
//! development CA and the service never differ. Nothing but the public key is taken from a CSR: it cannot ask for
//! more than its identity (a CA flag, further names).

use std::time::{Duration, SystemTime};

use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa,
    KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::pki_types::CertificateSigningRequestDer;
use time::OffsetDateTime;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY};
use x509_parser::prelude::FromDer as _;

use super::error::CertError;
use super::tls::random_bytes;
use crate::model::Identity;

/// A leaf starts this much in the past, so that a peer whose clock is a little behind accepts it.
pub const BACKDATE: Duration = Duration::from_secs(120);
/// Bytes of an uncompressed P-256 point.
const P256_POINT_BYTES: usize = 65;

/// Which names a CSR may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Names {
    /// The identity and nothing else.
    Required,
    /// The identity, or none at all: the request says beside it which one is wanted.
    Optional,
}

/// The CSR's public key, when the CSR is signed by it, is of P-256, has no subject, and names no other identity.
pub fn check_csr(csr: &[u8], identity: &Identity, names: Names) -> Result<rcgen::PublicKey, CertError> {
    let refused =
        |detail: &str| CertError::CsrRefused { identity: identity.clone(), detail: detail.to_owned() };
    let (rest, parsed) =
        X509CertificationRequest::from_der(csr).map_err(|error| refused(&error.to_string()))?;
    if !rest.is_empty() {
        return Err(refused("bytes follow it"));
    }
    let key = &parsed.certification_request_info.subject_pki;
    let curve = key.algorithm.parameters.as_ref().and_then(|curve| curve.as_oid().ok());
    if key.algorithm.algorithm != OID_KEY_TYPE_EC_PUBLIC_KEY
        || curve != Some(OID_EC_P256)
        || key.subject_public_key.data.len() != P256_POINT_BYTES
    {
        return Err(refused("its key must be ECDSA P-256"));
    }
    let der = CertificateSigningRequestDer::from(csr);
    // Checks the signature too: the caller has the key.
    let csr = CertificateSigningRequestParams::from_der(&der).map_err(|error| refused(&error.to_string()))?;
    if csr.params.distinguished_name.iter().next().is_some() {
        return Err(refused("its subject is not empty"));
    }
    match (csr.params.subject_alt_names.as_slice(), names) {
        ([SanType::URI(uri)], _) if uri.as_str() == identity.to_string() => Ok(csr.public_key),
        ([], Names::Optional) => Ok(csr.public_key),
        _ => Err(refused("its one name must be the identity as a URI")),
    }
}

/// A workload's certificate, but for its key and its issuer.
pub fn params(
    identity: &Identity,
    now: SystemTime,
    not_after: SystemTime,
) -> Result<CertificateParams, CertError> {
    let failed = |detail: String| CertError::Generate { identity: identity.clone(), detail };
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let name = identity.to_string().try_into().map_err(|error: rcgen::Error| failed(error.to_string()))?;
    params.subject_alt_names = vec![SanType::URI(name)];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    params.serial_number = Some(serial_number().map_err(failed)?);
    params.not_before = OffsetDateTime::from(now.checked_sub(BACKDATE).unwrap_or(now));
    params.not_after = OffsetDateTime::from(not_after);
    Ok(params)
}

/// A random serial number (RFC 5280, 4.1.2.2).
pub fn serial_number() -> Result<SerialNumber, String> {
    let mut bytes: [u8; 16] =
        random_bytes().map_err(|error| format!("no randomness to be had: {error:?}"))?;
    // Positive: a leading zero bit keeps it so, a set one next to it keeps its length.
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}
