//! Makes a root certificate with its key. Called by the development CA and by `ca`'s first start.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256,
};
use time::OffsetDateTime;

use super::leaf::{BACKDATE, serial_number};

/// Life of a self-made root.
pub const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// A new root, named `NAME` and a random tag.
pub fn make_root(name: &str, now: SystemTime) -> Result<(KeyPair, rcgen::Certificate), String> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|error| error.to_string())?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Nodemesh");
    // Roots need names of their own: a chain is found by the issuer's name, and an old and a new root meet
    // in one bundle while a root rotates.
    let serial = serial_number()?;
    let tag: String = serial.to_bytes().iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    params.distinguished_name.push(DnType::CommonName, format!("{name} {tag}"));
    params.serial_number = Some(serial);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = OffsetDateTime::from(now.checked_sub(BACKDATE).unwrap_or(now));
    params.not_after = OffsetDateTime::from(now + ROOT_LIFETIME);
    let cert = params.self_signed(&key).map_err(|error| error.to_string())?;
    Ok((key, cert))
}
