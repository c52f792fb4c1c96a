//! The cluster's own certificate authority, and the kubeconfigs made with it.
//!
//! Who speaks to the API server is known by a client certificate: common name is the user, organisation is the
//! group. So a test may be anybody at any time, without a list of users that would have to be there before.
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

/// Members may do everything; the group is built into the API server.
pub(super) const MASTERS: &str = "system:masters";

pub(super) struct Pki {
    dir: PathBuf,
    ca_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate with its key, as files.
pub(super) struct Pair {
    pub(super) cert: PathBuf,
    pub(super) key: PathBuf,
}

impl Pki {
    pub(super) fn create(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).context("cannot create the cluster's folder for keys")?;
        let key = KeyPair::generate().context("cannot make the cluster's CA key")?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "nodemesh-test-cluster");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let ca_pem = params.self_signed(&key).context("cannot make the cluster's CA certificate")?.pem();
        fs::write(dir.join("ca.crt"), &ca_pem).context("cannot write the cluster's CA certificate")?;
        write_secret(&dir.join("ca.key"), &key.serialize_pem())?;
        Ok(Self { dir: dir.to_path_buf(), ca_pem, issuer: Issuer::new(params, key) })
    }

    pub(super) fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    pub(super) fn ca(&self) -> Pair {
        Pair { cert: self.dir.join("ca.crt"), key: self.dir.join("ca.key") }
    }

    pub(super) fn server(&self, name: &str, alternative_names: &[&str]) -> Result<Pair> {
        let names: Vec<String> = alternative_names.iter().map(|name| (*name).to_owned()).collect();
        let params = CertificateParams::new(names).context("a name for a certificate")?;
        let (cert, key) = self.sign(params, name, None, ExtendedKeyUsagePurpose::ServerAuth)?;
        self.store(name, &cert, &key)
    }

    pub(super) fn client(&self, file: &str, user: &str, group: Option<&str>) -> Result<Pair> {
        let (cert, key) = self.client_pem(user, group)?;
        self.store(file, &cert, &key)
    }

    /// Keys alone, for tokens of service accounts. The API server does not take the private half for the public one.
    pub(super) fn key(&self, name: &str) -> Result<()> {
        let key = KeyPair::generate().context("cannot make a key")?;
        write_secret(&self.dir.join(format!("{name}.key")), &key.serialize_pem())?;
        write_secret(&self.dir.join(format!("{name}.pub")), &key.public_key_pem())
    }

    /// A kubeconfig for this user, with nothing outside the file.
    pub(super) fn kubeconfig(
        &self,
        path: &Path,
        server: &str,
        user: &str,
        group: Option<&str>,
    ) -> Result<()> {
        let (cert, key) = self.client_pem(user, group)?;
        let text = serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "nodemesh",
            "clusters": [{"name": "nodemesh", "cluster": {
                "server": server, "certificate-authority-data": base64(self.ca_pem.as_bytes()),
            }}],
            "users": [{"name": user, "user": {
                "client-certificate-data": base64(cert.as_bytes()), "client-key-data": base64(key.as_bytes()),
            }}],
            "contexts": [{"name": "nodemesh", "context": {"cluster": "nodemesh", "user": user}}],
        });
        write_secret(path, &format!("{text:#}\n"))
    }

    fn client_pem(&self, user: &str, group: Option<&str>) -> Result<(String, String)> {
        self.sign(CertificateParams::default(), user, group, ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn sign(
        &self,
        mut params: CertificateParams,
        name: &str,
        group: Option<&str>,
        usage: ExtendedKeyUsagePurpose,
    ) -> Result<(String, String)> {
        params.distinguished_name.push(DnType::CommonName, name);
        if let Some(group) = group {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().context("cannot make a key")?;
        let cert = params.signed_by(&key, &self.issuer).with_context(|| format!("cannot sign {name}"))?;
        Ok((cert.pem(), key.serialize_pem()))
    }

    fn store(&self, name: &str, cert: &str, key: &str) -> Result<Pair> {
        let pair =
            Pair { cert: self.dir.join(format!("{name}.crt")), key: self.dir.join(format!("{name}.key")) };
        fs::write(&pair.cert, cert).with_context(|| format!("cannot write {}", pair.cert.display()))?;
        write_secret(&pair.key, key)?;
        Ok(pair)
    }
}

fn write_secret(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text)
        .and_then(|()| fs::set_permissions(path, Permissions::from_mode(0o600)))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let mut block = [0; 3];
        block[..chunk.len()].copy_from_slice(chunk);
        let bits = u32::from_be_bytes([0, block[0], block[1], block[2]]);
        for place in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * place) & 63) as usize];
            text.push(if place <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests;
