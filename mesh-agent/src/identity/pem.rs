//! PEM texts of certificates, bounded. Called by the CAs of this module and by `ca`.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::error::CertError;

/// Roots in one bundle, certificates. A rotation needs two; the rest is room for neighbours' roots.
pub const BUNDLE_MAX_CERTS: usize = 16;
/// Largest PEM file read, bytes.
pub(super) const PEM_MAX_BYTES: u64 = 256 * 1024;

/// Every certificate of a PEM text, in its order; at least one and at most [`BUNDLE_MAX_CERTS`].
pub fn certificates(text: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let certs = CertificateDer::pem_slice_iter(text.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| error.to_string())?;
    match certs.len() {
        0 => Err("no certificate in it".to_owned()),
        count if count > BUNDLE_MAX_CERTS => {
            Err(format!("{count} certificates in it, more than {BUNDLE_MAX_CERTS}"))
        }
        _ => Ok(certs),
    }
}

/// The PEM text of one certificate or of several.
pub fn text(label: &str, ders: &[impl AsRef<[u8]>]) -> String {
    let mut out = String::new();
    for der in ders {
        out.push_str(&format!("-----BEGIN {label}-----\n"));
        let base64 = STANDARD.encode(der.as_ref());
        let mut rest = base64.as_str();
        while !rest.is_empty() {
            let (line, after) = rest.split_at(rest.len().min(64));
            out.push_str(line);
            out.push('\n');
            rest = after;
        }
        out.push_str(&format!("-----END {label}-----\n"));
    }
    out
}

/// Certificates of a PEM file.
pub(super) fn read(path: &Path) -> Result<Vec<CertificateDer<'static>>, CertError> {
    let text = read_text(path)?;
    let count = text.matches("-----BEGIN CERTIFICATE-----").count();
    if count > BUNDLE_MAX_CERTS {
        return Err(CertError::BundleTooLarge { path: path.to_owned(), count, limit: BUNDLE_MAX_CERTS });
    }
    certificates(&text).map_err(|detail| CertError::Pem { path: path.to_owned(), detail })
}

/// A file of at most [`PEM_MAX_BYTES`].
pub(super) fn read_text(path: &Path) -> Result<String, CertError> {
    let failed = |error: std::io::Error| CertError::Io {
        action: "read",
        path: path.to_owned(),
        cause: error.to_string(),
    };
    let length = std::fs::metadata(path).map_err(failed)?.len();
    if length > PEM_MAX_BYTES {
        return Err(CertError::Pem { path: path.to_owned(), detail: format!("{length} bytes are too many") });
    }
    std::fs::read_to_string(path).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_made_here_reads_back_as_the_same_bytes() {
        for length in [0_usize, 1, 2, 3, 47, 48, 49, 500] {
            let der: Vec<u8> = (0..length).map(|at| (at * 37 % 256) as u8).collect();
            let made = text("CERTIFICATE", &[&der]);
            if length > 0 {
                assert_eq!(certificates(&made).unwrap()[0].as_ref(), der.as_slice(), "{length}");
            }
        }
        assert!(certificates("nothing").is_err());
        let der = [1_u8, 2, 3];
        assert!(certificates(&text("CERTIFICATE", &[&der; BUNDLE_MAX_CERTS + 1])).is_err());
    }
}
