//! The development CA in a folder (`--ca-dir`): for demos, tests and machines without Kubernetes.
//! Owns three files: `ca-key.pem` (0600), `ca-cert.pem` (its certificate) and `root-cert.pem` (every root to
//! trust). To rotate the root: put the next root into `root-cert.pem`, wait until every agent has read it,
//! then replace the pair. Never: keeps the signing key in memory between signatures.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rcgen::{Issuer, KeyPair, PublicKeyData as _};
use rustls::pki_types::CertificateDer;

use super::ca::{SignRequest, SignedCert};
use super::error::CertError;
use super::leaf::{self, Names};
use super::pem;
use super::root::make_root;

const KEY_FILE: &str = "ca-key.pem";
const CERT_FILE: &str = "ca-cert.pem";
const BUNDLE_FILE: &str = "root-cert.pem";
const LOCK_FILE: &str = ".lock";

/// A CA whose key and certificates are files in one folder. Several agents may share it.
#[derive(Debug)]
pub struct DirCa {
    dir: PathBuf,
}

/// PEM texts of one moment.
pub struct DirTexts {
    pub cert: String,
    pub key: String,
    pub bundle: String,
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
        pem::read(&self.bundle_path())
    }

    /// The files as texts, for a service that signs with this CA.
    pub fn texts(&self) -> Result<DirTexts, CertError> {
        let pair = self.load()?;
        Ok(DirTexts {
            cert: pem::text("CERTIFICATE", &[&pair.cert]),
            key: pair.key.serialize_pem(),
            bundle: pem::text("CERTIFICATE", &pair.roots),
        })
    }

    /// Checks a CSR and signs it.
    pub fn sign(&self, request: &SignRequest) -> Result<SignedCert, CertError> {
        let public_key = leaf::check_csr(&request.csr, &request.identity, Names::Required)?;
        let pair = self.load()?;
        let failed = |error: rcgen::Error| CertError::Generate {
            identity: request.identity.clone(),
            detail: error.to_string(),
        };
        let issuer = Issuer::from_ca_cert_der(&pair.cert, pair.key).map_err(failed)?;
        let params = leaf::params(&request.identity, request.now, request.now + request.lifetime)?;
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
        let key = KeyPair::from_pem(&pem::read_text(key_path)?)
            .map_err(|error| bad_pem(key_path, error.to_string()))?;
        let cert_path = self.dir.join(CERT_FILE);
        let cert = pem::read(&cert_path)?
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
        let (key, cert) = make_root("development root", SystemTime::now())
            .map_err(|detail| CertError::Pem { path: path.clone(), detail })?;
        let bundle_path = self.bundle_path();
        let mut bundle = if bundle_path.exists() { pem::read_text(&bundle_path)? } else { String::new() };
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

fn belongs_to(cert: &CertificateDer<'_>, key: &KeyPair) -> bool {
    x509_parser::parse_x509_certificate(cert)
        .is_ok_and(|(_, parsed)| parsed.public_key().subject_public_key.as_ref() == key.der_bytes())
}

fn io_error(action: &'static str, path: &Path, error: &std::io::Error) -> CertError {
    CertError::Io { action, path: path.to_owned(), cause: error.to_string() }
}

#[cfg(test)]
mod tests;
