//! Reads the one SPIFFE id out of a certificate. Strict: exactly one URI name (SPIFFE X.509-SVID, section 2).

use std::time::SystemTime;

use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::cert::time_of;
use super::error::PeerError;
use crate::model::Identity;

/// The identity in a certificate. Other kinds of names are ignored; a name that cannot be decoded is not
/// (CVE-2025-66220: a crafted OTHERNAME must never pass for a URI).
pub fn certificate_identity(der: &CertificateDer<'_>) -> Result<Identity, PeerError> {
    let (rest, parsed) =
        X509Certificate::from_der(der).map_err(|error| PeerError::Unreadable(error.to_string()))?;
    if !rest.is_empty() {
        return Err(PeerError::Unreadable("bytes after the certificate".to_owned()));
    }
    let names = parsed
        .subject_alternative_name()
        .map_err(|error| PeerError::Unreadable(error.to_string()))?
        .map(|extension| extension.value.general_names.as_slice())
        .unwrap_or_default();
    let mut uris = Vec::new();
    for name in names {
        match name {
            GeneralName::URI(uri) => uris.push(*uri),
            GeneralName::Invalid(tag, _) => {
                return Err(PeerError::Unreadable(format!("a subject name of tag {} is malformed", tag.0)));
            }
            _ => {}
        }
    }
    match uris.as_slice() {
        [uri] => Ok(uri.parse()?),
        other => Err(PeerError::UriCount(other.len())),
    }
}

/// The verified peer of a finished handshake.
pub fn peer_identity(connection: &rustls::CommonState) -> Result<Identity, PeerError> {
    certificate_identity(peer_leaf(connection)?)
}

/// When the certificate of the verified peer of a finished handshake ends.
pub fn peer_not_after(connection: &rustls::CommonState) -> Result<SystemTime, PeerError> {
    let (_, parsed) = X509Certificate::from_der(peer_leaf(connection)?)
        .map_err(|error| PeerError::Unreadable(error.to_string()))?;
    Ok(time_of(parsed.validity().not_after.timestamp()))
}

fn peer_leaf(connection: &rustls::CommonState) -> Result<&CertificateDer<'static>, PeerError> {
    connection.peer_certificates().and_then(|chain| chain.first()).ok_or(PeerError::Missing)
}
