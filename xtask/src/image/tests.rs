use std::process::Command;

use super::*;

fn image() -> Image {
    Image {
        name: "nodemesh.io/mesh-agent:0.0.1".into(),
        version: "0.0.1".into(),
        architecture: "amd64",
        entrypoint: "/mesh-agent".into(),
    }
}

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("nodemesh-image-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _gone = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn the_same_content_gives_the_same_bytes_and_other_content_another_digest() {
    let folder = Folder::new("same");
    let (one, two, other) = (folder.0.join("1.tar"), folder.0.join("2.tar"), folder.0.join("3.tar"));
    let first = archive::write(&image(), &entries(b"program"), &one).unwrap();
    let second = archive::write(&image(), &entries(b"program"), &two).unwrap();
    assert_eq!(first, second);
    assert_eq!(fs::read(&one).unwrap(), fs::read(&two).unwrap());
    assert_ne!(archive::write(&image(), &entries(b"another"), &other).unwrap(), first);
}

/// Whatever reads it follows digests: each blob must be where its digest says and be what it says.
#[test]
fn every_blob_is_found_by_its_digest_and_tar_reads_the_archive() {
    let folder = Folder::new("blobs");
    let archive = folder.0.join("image.tar");
    let digest = archive::write(&image(), &entries(b"program"), &archive).unwrap();
    let unpack = |what: &Path, to: &Path| {
        fs::create_dir_all(to).unwrap();
        command::run(Command::new("tar").arg("-xf").arg(what).arg("-C").arg(to)).unwrap();
    };
    let layout = folder.0.join("layout");
    unpack(&archive, &layout);
    let json =
        |path: &Path| -> serde_json::Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
    let blob = |described: &serde_json::Value| {
        let digest = described["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap().to_owned();
        let path = layout.join("blobs/sha256").join(&digest);
        assert_eq!(fs::metadata(&path).unwrap().len(), described["size"].as_u64().unwrap());
        let sum = command::output(Command::new("sha256sum").arg(&path)).unwrap();
        assert!(sum.starts_with(&digest), "{sum}");
        path
    };
    let index = json(&layout.join("index.json"));
    let described = &index["manifests"][0];
    assert_eq!(described["digest"], digest);
    assert_eq!(described["annotations"]["io.containerd.image.name"], "nodemesh.io/mesh-agent:0.0.1");
    let manifest = json(&blob(described));
    let config = json(&blob(&manifest["config"]));
    assert_eq!(config["config"]["Entrypoint"][0], "/mesh-agent");
    assert_eq!(config["rootfs"]["diff_ids"][0], manifest["layers"][0]["digest"]);
    let docker = json(&layout.join("manifest.json"));
    assert_eq!(docker[0]["RepoTags"][0], "nodemesh.io/mesh-agent:0.0.1");
    assert!(layout.join(docker[0]["Config"].as_str().unwrap()).is_file());
    let files = folder.0.join("files");
    unpack(&blob(&manifest["layers"][0]), &files);
    assert_eq!(fs::read(files.join("mesh-agent")).unwrap(), b"program");
    assert_eq!(fs::read_to_string(files.join("etc/nsswitch.conf")).unwrap(), NSSWITCH);
    assert_eq!(fs::read_link(files.join("var/run")).unwrap(), Path::new("/run"));
}

/// xtask itself is linked as usual, and so needs a loader.
#[test]
fn a_program_that_needs_a_loader_is_refused() {
    let own = fs::read(std::env::current_exe().unwrap()).unwrap();
    let error = check_static(&own).unwrap_err().to_string();
    assert!(error.contains("not static"), "{error}");
    assert!(check_static(b"#!/bin/sh").is_err());
}
