//! Makes a key and its CSR. The key is P-256, lives in this process's memory and is never written.

use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};

use super::error::CertError;
use crate::model::Identity;

/// A key with the CSR that asks for its certificate.
pub(super) struct KeyAndCsr {
    pub(super) key: KeyPair,
    pub(super) csr: Vec<u8>,
}

/// A new key and a CSR with an empty subject and the identity as its single URI name, as Istio's CA wants it.
pub(super) fn key_and_csr(identity: &Identity) -> Result<KeyAndCsr, CertError> {
    let failed =
        |error: rcgen::Error| CertError::Generate { identity: identity.clone(), detail: error.to_string() };
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into().map_err(failed)?)];
    let csr = params.serialize_request(&key).map_err(failed)?.der().to_vec();
    Ok(KeyAndCsr { key, csr })
}
