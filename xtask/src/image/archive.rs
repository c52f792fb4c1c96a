//! An OCI image layout in a tar archive, with the one file beside that makes it a `docker save` archive too.
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::place;
use super::tar::{self, Entry};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Not compressed: a compressor's next version would change the digest, and nodes are near.
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const EPOCH: &str = "1970-01-01T00:00:00Z";

/// What is said about the image.
pub(super) struct Image {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) architecture: &'static str,
    pub(super) entrypoint: String,
}

/// A piece of the image, known by its digest.
struct Blob {
    digest: String,
    bytes: Vec<u8>,
}

impl Blob {
    fn new(bytes: Vec<u8>) -> Result<Self> {
        Ok(Self { digest: sha256(&bytes)?, bytes })
    }

    fn json(value: &Value) -> Result<Self> {
        // `serde_json` sorts the keys of a map: the same value is the same text.
        Self::new(serde_json::to_vec(value).context("cannot write JSON")?)
    }

    fn path(&self) -> String {
        format!("blobs/sha256/{}", self.digest)
    }

    fn descriptor(&self, kind: &str) -> Value {
        json!({ "mediaType": kind, "digest": format!("sha256:{}", self.digest), "size": self.bytes.len() })
    }
}

/// Writes the archive and returns the image's digest.
pub(super) fn write(image: &Image, entries: &[Entry<'_>], out: &Path) -> Result<String> {
    let mut layer = Vec::new();
    tar::write(entries, &mut layer).context("cannot make the layer")?;
    let layer = Blob::new(layer)?;
    let config = Blob::json(&config(image, &layer))?;
    let manifest = Blob::json(&json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": config.descriptor(CONFIG),
        "layers": [layer.descriptor(LAYER)],
    }))?;
    let mut described = manifest.descriptor(MANIFEST);
    described["platform"] = json!({ "architecture": image.architecture, "os": "linux" });
    // The first is what containerd names the image by, the second what the format itself knows.
    described["annotations"] = json!({
        "io.containerd.image.name": image.name,
        "org.opencontainers.image.ref.name": image.version,
    });
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [described] });
    let docker = json!([{ "Config": config.path(), "RepoTags": [image.name], "Layers": [layer.path()] }]);
    let (index, docker) = (Blob::json(&index)?, Blob::json(&docker)?);
    let mut blobs = [&config, &layer, &manifest];
    blobs.sort_by_key(|blob| &blob.digest);
    let paths = blobs.map(Blob::path);
    let mut files = vec![Entry::folder("blobs", 0o755), Entry::folder("blobs/sha256", 0o755)];
    files.extend(paths.iter().zip(blobs).map(|(path, blob)| Entry::file(path, 0o644, &blob.bytes)));
    files.push(Entry::file("index.json", 0o644, &index.bytes));
    files.push(Entry::file("manifest.json", 0o644, &docker.bytes));
    files.push(Entry::file("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#));
    place(out, |file| tar::write(&files, file).context("cannot write the archive"))?;
    Ok(format!("sha256:{}", manifest.digest))
}

fn config(image: &Image, layer: &Blob) -> Value {
    json!({
        "architecture": image.architecture,
        "os": "linux",
        "created": EPOCH,
        "config": {
            "Entrypoint": [image.entrypoint],
            "Env": ["PATH=/"],
            "WorkingDir": "/",
            "Labels": {
                "org.opencontainers.image.title": "Nodemesh agent, controller and CLI",
                "org.opencontainers.image.version": image.version,
                "org.opencontainers.image.licenses": "Apache-2.0",
            },
        },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", layer.digest)] },
        "history": [{ "created": EPOCH, "created_by": "cargo xtask image" }],
    })
}

fn sha256(bytes: &[u8]) -> Result<String> {
    let mut child = Command::new("sha256sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start sha256sum (coreutils)")?;
    child
        .stdin
        .take()
        .context("sha256sum takes no input")?
        .write_all(bytes)
        .context("sha256sum ended early")?;
    let out = child.wait_with_output().context("waiting for sha256sum")?;
    let text = String::from_utf8_lossy(&out.stdout);
    match text.split_whitespace().next() {
        Some(digest) if out.status.success() && digest.len() == 64 => Ok(digest.to_owned()),
        _ => bail!("sha256sum ended with {} and said {text:?}", out.status),
    }
}
