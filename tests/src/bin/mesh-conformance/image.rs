//! The image that the suite's pods run, which no registry has to be asked for: the echo client and server it is made of,
//! from their Go module.
use std::fs;

use anyhow::{Context, Result};
use mesh_tests::cluster::{ImageFile, archive};

use crate::suite::component;

/// What the suite's `mesh/manifests.yaml` names.
const NAME: &str = "registry.k8s.io/gateway-api/echo-advanced:v1.5.1";
const PINS: &str = include_str!("../../../kube/echo/go.mod");

/// An archive of it.
pub(crate) fn echo() -> Result<Vec<u8>> {
    let folder = component(PINS, "istio.io/istio", "echo")?;
    let mut files = Vec::new();
    for program in ["client", "server"] {
        let path = folder.join(program);
        let content = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        files.push(ImageFile { path: format!("usr/bin/{program}"), content, executable: true });
    }
    // Its HTTPS port wants a certificate; nobody verifies it.
    let key = rcgen::KeyPair::generate().context("cannot make a key")?;
    let params =
        rcgen::CertificateParams::new(vec!["echo".to_owned()]).context("cannot describe a certificate")?;
    let certificate = params.self_signed(&key).context("cannot sign a certificate")?;
    for (path, text) in [("cert.crt", certificate.pem()), ("cert.key", key.serialize_pem())] {
        files.push(ImageFile { path: path.to_owned(), content: text.into_bytes(), executable: false });
    }
    archive(NAME, &files, &["/usr/bin/server"])
}
