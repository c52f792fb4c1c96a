//! Container images without a container engine: an archive as `docker save` writes it, of one layer, in memory.
//!
//! A tar header is 512 bytes of text (POSIX ustar), and the rest is two small JSON documents.
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::json;

/// What holds a pod's namespaces.
pub(super) const PAUSE: &str = "nodemesh.io/test/pause:1";
/// `nodemesh-test-app`: on every node, for any test; `imagePullPolicy: Never`.
pub const TEST_APP: &str = "nodemesh.io/test/app:1";
pub(super) const COREDNS: &str = "nodemesh.io/test/coredns:1";

/// The program that `build.rs` has linked statically.
const APP: &str = env!("NODEMESH_TEST_APP");
const APP_PATH: &str = "usr/bin/nodemesh-test-app";

/// One file of an image.
pub struct ImageFile {
    /// Without the leading slash.
    pub path: String,
    pub content: Vec<u8>,
    pub executable: bool,
}

/// An archive for `Cluster::load_image`. `entrypoint` is the command line; a pod's `args` follow it.
pub fn archive(name: &str, files: &[ImageFile], entrypoint: &[&str]) -> Result<Vec<u8>> {
    let mut layer = Tar::default();
    for file in files {
        layer.file(&file.path, &file.content, if file.executable { 0o755 } else { 0o644 })?;
    }
    let layer = layer.finish();
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }, "os": "linux",
        "config": {"Entrypoint": entrypoint, "Env": ["PATH=/usr/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", sha256(&layer)?)]},
    })
    .to_string();
    let config_name = format!("{}.json", sha256(config.as_bytes())?);
    let manifest = json!([{"Config": config_name, "RepoTags": [name], "Layers": ["layer.tar"]}]).to_string();
    let mut archive = Tar::default();
    archive.file("manifest.json", manifest.as_bytes(), 0o644)?;
    archive.file(&config_name, config.as_bytes(), 0o644)?;
    archive.file("layer.tar", &layer, 0o644)?;
    Ok(archive.finish())
}

/// An image of one program.
pub fn archive_of_program(name: &str, program: &Path, entrypoint: &[&str]) -> Result<Vec<u8>> {
    let content = fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    let path = entrypoint.first().map_or("", |path| path.trim_start_matches('/')).to_owned();
    archive(name, &[ImageFile { path, content, executable: true }], entrypoint)
}

/// The images that every cluster has.
pub(super) fn own() -> Result<Vec<Vec<u8>>> {
    let program = format!("/{APP_PATH}");
    Ok(vec![
        archive_of_program(PAUSE, Path::new(APP), &[&program, "pause"])?,
        archive_of_program(TEST_APP, Path::new(APP), &[&program])?,
        archive_of_program(COREDNS, &super::components::coredns()?, &["/coredns"])?,
    ])
}

fn sha256(bytes: &[u8]) -> Result<String> {
    let suite = rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;
    let suite = suite.tls13().context("no suite of TLS 1.3")?;
    let hash = suite.common.hash_provider.hash(bytes);
    Ok(hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
}

const BLOCK: usize = 512;

#[derive(Default)]
struct Tar {
    bytes: Vec<u8>,
}

impl Tar {
    fn file(&mut self, path: &str, content: &[u8], mode: u32) -> Result<()> {
        let mut header = [0; BLOCK];
        let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
        anyhow::ensure!(path.len() < 100, "{path} is too long for a tar header");
        put(0, path);
        put(100, &format!("{mode:07o}"));
        put(108, "0000000");
        put(116, "0000000");
        put(124, &format!("{:011o}", content.len()));
        put(136, "00000000000");
        // The checksum counts itself as blanks.
        put(148, "        ");
        put(156, "0");
        put(257, "ustar");
        put(263, "00");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.bytes.extend(header);
        self.bytes.extend(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(BLOCK), 0);
        Ok(())
    }

    /// Two empty blocks are the end.
    fn finish(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 2 * BLOCK, 0);
        self.bytes
    }
}

#[cfg(test)]
mod tests;
