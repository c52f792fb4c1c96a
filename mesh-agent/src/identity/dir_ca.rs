//! The development CA in a folder (`--ca-dir`): for demos, tests and machines without Kubernetes.
//! Owns three files: `ca-key.pem` (0600), `ca-cert.pem` (its certificate) and `root-cert.pem` (every root to
//! trust). To rotate the root: put the next root into `root-cert.pem`, wait until every agent has read it,
//! then replace the pair. Never: keeps the signing key in memory between signatures.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PublicKeyData as _, SanType, SerialNumber,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};
use time::OffsetDateTime;

use super::ca::{SignRequest, SignedCert};
use super::error::CertError;
use super::tls::random_bytes;

const KEY_FILE: &str = "ca-key.pem";
const CERT_FILE: &str = "ca-cert.pem";
const BUNDLE_FILE: &str = "root-cert.pem";
const LOCK_FILE: &str = ".lock";
/// Roots in one bundle, certificates. A rotation needs two; the rest is room for neighbours' roots.
pub const BUNDLE_MAX_CERTS: usize = 16;
/// Largest PEM file read, bytes.
const PEM_MAX_BYTES: u64 = 256 * 1024;
/// Life of a self-made root.
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// A leaf starts this much in the past, so that a peer whose clock is a little behind accepts it.
const BACKDATE: Duration = Duration::from_secs(120);

/// A CA whose key and certificates are files in one folder. Several agents may share it.
#[derive(Debug)]
pub struct DirCa {
    dir: PathBuf,
}

/// The files' contents, read under the lock.
struct Pair {
    key: KeyPair,
    cert: CertificateDer<'static>,
    roots: Vec<CertificateDer<'static>>,
}

impl DirCa {
    /// Opens the folder; makes it, the root key and the root certificate when they are not there.
    pub fn open(dir: &Path) -> Result<Self, CertError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|error| io_error("create", dir, &error))?;
        let ca = Self { dir: dir.to_owned() };
        ca.load()?;
        Ok(ca)
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn bundle_path(&self) -> PathBuf {
        self.dir.join(BUNDLE_FILE)
    }

    /// The roots to trust, read anew: another agent or the operator may have changed them.
    pub fn roots(&self) -> Result<Vec<CertificateDer<'static>>, CertError> {
        read_certs(&self.bundle_path())
    }

    /// Checks a CSR and signs it. Nothing but the public key is taken from it, so that a CSR cannot ask for more
    /// than its identity (a CA flag, further names).
    pub(super) fn sign(&self, request: &SignRequest) -> Result<SignedCert, CertError> {
        let public_key = check_csr(request)?;
        let pair = self.load()?;
        let failed = |error: rcgen::Error| CertError::Generate {
            identity: request.identity.clone(),
            detail: error.to_string(),
        };
        let issuer = Issuer::from_ca_cert_der(&pair.cert, pair.key).map_err(failed)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names =
            vec![SanType::URI(request.identity.to_string().try_into().map_err(failed)?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(
            serial_number()
                .map_err(|detail| CertError::Generate { identity: request.identity.clone(), detail })?,
        );
        params.not_before = OffsetDateTime::from(request.now.checked_sub(BACKDATE).unwrap_or(request.now));
        params.not_after = OffsetDateTime::from(request.now + request.lifetime);
        let leaf = params.signed_by(&public_key, &issuer).map_err(failed)?;
        let mut chain = vec![leaf.der().clone()];
        // A signing certificate that is no root itself is an intermediate: the peer needs it to find the root.
        if !pair.roots.contains(&pair.cert) {
            chain.push(pair.cert);
        }
        Ok(SignedCert { chain, roots: pair.roots })
    }

    /// Reads the pair and the bundle, making what is missing, under an exclusive lock so that two agents that
    /// start at once agree on one root.
    fn load(&self) -> Result<Pair, CertError> {
        let lock_path = self.dir.join(LOCK_FILE);
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&lock_path)
            .map_err(|error| io_error("open", &lock_path, &error))?;
        // The kernel drops the lock with the descriptor, also when the agent is killed while it holds it.
        lock.lock().map_err(|error| io_error("lock", &lock_path, &error))?;
        let key_path = self.dir.join(KEY_FILE);
        // The key is written last: while it is missing, the pair is not complete.
        if !key_path.exists() {
            self.create()?;
        }
        self.read_pair(&key_path)
    }

    fn read_pair(&self, key_path: &Path) -> Result<Pair, CertError> {
        let mode = fs::metadata(key_path).map_err(|error| io_error("read", key_path, &error))?.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(CertError::KeyExposed { path: key_path.to_owned(), mode });
        }
        let bad_pem = |path: &Path, detail: String| CertError::Pem { path: path.to_owned(), detail };
        let key =
            KeyPair::from_pem(&read_text(key_path)?).map_err(|error| bad_pem(key_path, error.to_string()))?;
        let cert_path = self.dir.join(CERT_FILE);
        let cert = read_certs(&cert_path)?
            .into_iter()
            .next()
            .ok_or_else(|| bad_pem(&cert_path, "no certificate in it".to_owned()))?;
        if !belongs_to(&cert, &key) {
            return Err(CertError::Mismatch { path: cert_path });
        }
        Ok(Pair { key, cert, roots: self.roots()? })
    }

    /// Makes a root and adds it to the bundle; roots that are there already stay trusted.
    fn create(&self) -> Result<(), CertError> {
        let path = self.dir.join(CERT_FILE);
        let failed = |error: rcgen::Error| CertError::Pem { path: path.clone(), detail: error.to_string() };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "Nodemesh");
        // Roots need names of their own: a chain is found by the issuer's name, and an old and a new root meet
        // in one bundle while a root rotates.
        let serial = serial_number().map_err(|detail| CertError::Pem { path: path.clone(), detail })?;
        let tag: String = serial.to_bytes().iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        params.distinguished_name.push(DnType::CommonName, format!("development root {tag}"));
        params.serial_number = Some(serial);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let now = SystemTime::now();
        params.not_before = OffsetDateTime::from(now.checked_sub(BACKDATE).unwrap_or(now));
        params.not_after = OffsetDateTime::from(now + ROOT_LIFETIME);
        let cert = params.self_signed(&key).map_err(failed)?;
        let bundle_path = self.bundle_path();
        let mut bundle = if bundle_path.exists() { read_text(&bundle_path)? } else { String::new() };
        if !bundle.is_empty() && !bundle.ends_with('\n') {
            bundle.push('\n');
        }
        bundle.push_str(&cert.pem());
        self.write(BUNDLE_FILE, 0o644, &bundle)?;
        self.write(CERT_FILE, 0o644, &cert.pem())?;
        self.write(KEY_FILE, 0o600, &key.serialize_pem())
    }

    /// Writes a file so that a reader sees the old or the new one, never half of it.
    fn write(&self, name: &str, mode: u32, text: &str) -> Result<(), CertError> {
        let path = self.dir.join(name);
        let draft = self.dir.join(format!("{name}.new"));
        let write = || -> std::io::Result<()> {
            // A draft that a killed agent left may have another mode; it is never reused.
            match fs::remove_file(&draft) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = OpenOptions::new().create_new(true).write(true).mode(mode).open(&draft)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&draft, &path)?;
            File::open(&self.dir)?.sync_all()
        };
        write().map_err(|error| io_error("write", &path, &error))
    }
}

/// The CSR's public key, when the CSR is signed by it, has no subject and names exactly the identity.
fn check_csr(request: &SignRequest) -> Result<rcgen::PublicKey, CertError> {
    let refused = |detail: String| CertError::CsrRefused { identity: request.identity.clone(), detail };
    let der = CertificateSigningRequestDer::from(request.csr.as_slice());
    let csr = CertificateSigningRequestParams::from_der(&der).map_err(|error| refused(error.to_string()))?;
    if csr.params.distinguished_name.iter().next().is_some() {
        return Err(refused("its subject is not empty".to_owned()));
    }
    match csr.params.subject_alt_names.as_slice() {
        [SanType::URI(uri)] if uri.as_str() == request.identity.to_string() => Ok(csr.public_key),
        _ => Err(refused("its one name must be the identity as a URI".to_owned())),
    }
}

fn belongs_to(cert: &CertificateDer<'_>, key: &KeyPair) -> bool {
    x509_parser::parse_x509_certificate(cert)
        .is_ok_and(|(_, parsed)| parsed.public_key().subject_public_key.as_ref() == key.der_bytes())
}

fn serial_number() -> Result<SerialNumber, String> {
    let mut bytes: [u8; 16] =
        random_bytes().map_err(|error| format!("no randomness to be had: {error:?}"))?;
    // RFC 5280, 4.1.2.2: positive; a leading zero bit keeps it so, a set one next to it keeps its length.
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

fn read_certs(path: &Path) -> Result<Vec<CertificateDer<'static>>, CertError> {
    let text = read_text(path)?;
    let certs = CertificateDer::pem_slice_iter(text.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| CertError::Pem { path: path.to_owned(), detail: error.to_string() })?;
    match certs.len() {
        0 => Err(CertError::Pem { path: path.to_owned(), detail: "no certificate in it".to_owned() }),
        count if count > BUNDLE_MAX_CERTS => {
            Err(CertError::BundleTooLarge { path: path.to_owned(), count, limit: BUNDLE_MAX_CERTS })
        }
        _ => Ok(certs),
    }
}

fn read_text(path: &Path) -> Result<String, CertError> {
    let length = fs::metadata(path).map_err(|error| io_error("read", path, &error))?.len();
    if length > PEM_MAX_BYTES {
        return Err(CertError::Pem { path: path.to_owned(), detail: format!("{length} bytes are too many") });
    }
    fs::read_to_string(path).map_err(|error| io_error("read", path, &error))
}

fn io_error(action: &'static str, path: &Path, error: &std::io::Error) -> CertError {
    CertError::Io { action, path: path.to_owned(), cause: error.to_string() }
}

#[cfg(test)]
mod tests;
