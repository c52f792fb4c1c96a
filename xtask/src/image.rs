//! `image`: the container image, as an archive that containerd, Docker and Podman take, made without any of them. One
//! static program and four small files; no shell, no package, no base image to keep up to date. The same tree gives the
//! same bytes.
mod archive;
mod tar;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use self::archive::Image;
use self::tar::Entry;
use crate::setup::{self, Need};
use crate::{build_ebpf, command, paths};

/// The repository in the image's name; the manifests name the same.
const NAME: &str = "nodemesh.io/mesh-agent";
const VERSION: &str = env!("CARGO_PKG_VERSION");
const PROGRAM: &str = "mesh-agent";

/// Names for the two users that containers run as, for whoever looks from outside.
const PASSWD: &str = "root:x:0:0:root:/:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/:/sbin/nologin\n";
const GROUP: &str = "root:x:0:\nnonroot:x:65532:\n";
/// Without it the C library asks nothing but DNS for a name, and /etc/hosts is the kubelet's.
const NSSWITCH: &str = "hosts: files dns\n";

/// Program header type of the segment that names a dynamic loader.
const PT_INTERP: u32 = 3;

/// `dev` builds with the quick profile of the tests; a `program` that is there already is packed as it is.
pub(crate) fn run(dev: bool, program: Option<PathBuf>, out: Option<PathBuf>) -> Result<()> {
    let target = host_target()?;
    let program = match program {
        Some(program) => program,
        None => {
            let tools = setup::ensure(Need::Build)?;
            build_ebpf::run(&tools.kernel, false)?;
            build(dev)?
        }
    };
    let bytes = fs::read(&program).with_context(|| format!("cannot read {}", program.display()))?;
    check_static(&bytes)?;
    let suffix = if dev { "-dev" } else { "" };
    let out = out.unwrap_or_else(|| folder().join(format!("{PROGRAM}-{VERSION}{suffix}.tar")));
    let image = Image {
        name: format!("{NAME}:{VERSION}"),
        version: VERSION.to_owned(),
        architecture: architecture(&target)?,
        entrypoint: format!("/{PROGRAM}"),
    };
    let digest = archive::write(&image, &entries(&bytes), &out)?;
    println!("{}", out.display());
    println!("{} {digest}", image.name);
    println!("import it on a node: ctr -n k8s.io images import {}", out.display());
    Ok(())
}

fn folder() -> PathBuf {
    paths::root().join("target/image")
}

/// In the order of the archive, folders before what is in them.
fn entries(program: &[u8]) -> Vec<Entry<'_>> {
    vec![
        Entry::folder("etc", 0o755),
        Entry::file("etc/group", 0o644, GROUP.as_bytes()),
        Entry::file("etc/nsswitch.conf", 0o644, NSSWITCH.as_bytes()),
        Entry::file("etc/passwd", 0o644, PASSWD.as_bytes()),
        Entry::file(PROGRAM, 0o755, program),
        Entry::folder("run", 0o755),
        Entry::folder("tmp", 0o1777),
        Entry::folder("var", 0o755),
        Entry::link("var/run", "/run"),
    ]
}

/// The target that cargo builds for when none is named.
fn host_target() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let text = command::output(Command::new(rustc).arg("-vV").current_dir(paths::root()))?;
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc -vV names no host")
}

fn architecture(target: &str) -> Result<&'static str> {
    match target.split('-').next() {
        Some("x86_64") => Ok("amd64"),
        Some("aarch64") => Ok("arm64"),
        _ => bail!("there is no image for {target}; build on x86-64 or arm64"),
    }
}

/// Builds the program with the C library inside. Only the last step, linking, is told so: what is compiled before is the
/// same as for any other build, and is there already.
fn build(dev: bool) -> Result<PathBuf> {
    let profile = if dev { "dev" } else { "release" };
    eprintln!("==> build the static program ({profile})");
    let mut cargo = command::cargo();
    cargo.args(["rustc", "--locked", "--package", "mesh-agent", "--bin", PROGRAM, "--profile", profile]);
    cargo.args(["--message-format", "json-render-diagnostics", "--", "-Ctarget-feature=+crt-static"]);
    // Names of functions stay for whoever profiles it; lines would double the size.
    cargo.arg("-Cstrip=debuginfo");
    let out = cargo.stderr(Stdio::inherit()).output().context("cannot start cargo")?;
    if !out.status.success() {
        bail!("the program does not compile ({})", out.status);
    }
    let said = String::from_utf8_lossy(&out.stdout);
    let mut built = said.lines().filter_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        message["executable"].as_str().map(PathBuf::from)
    });
    built.next_back().context("cargo names no program that it has built")
}

/// A program that needs a loader would not start in an image that has none.
fn check_static(elf: &[u8]) -> Result<()> {
    let number = |at: usize, length: usize| -> Option<u64> {
        let mut bytes = [0; 8];
        bytes[..length].copy_from_slice(elf.get(at..at + length)?);
        Some(u64::from_le_bytes(bytes))
    };
    // ELF64, little endian: program headers at 32, their size at 54 and count at 56.
    let headers = || {
        let (offset, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
        (0..count)
            .map(|at| number(usize::try_from(offset + at * size).ok()?, 4))
            .collect::<Option<Vec<u64>>>()
    };
    let kinds = (elf.starts_with(b"\x7fELF\x02\x01")).then(headers).flatten();
    let Some(kinds) = kinds else { bail!("the compiler made no 64-bit little-endian program") };
    if kinds.contains(&u64::from(PT_INTERP)) {
        bail!(
            "the program is not static; is the static C library installed (Debian: libc6-dev), and does the target allow it?"
        );
    }
    Ok(())
}

/// Writes beside and renames.
fn place(path: &Path, write: impl FnOnce(&mut fs::File) -> Result<()>) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    }
    let next = path.with_extension("next");
    let mut file = fs::File::create(&next).with_context(|| format!("cannot write {}", next.display()))?;
    write(&mut file)?;
    fs::rename(&next, path).with_context(|| format!("cannot replace {}", path.display()))
}

#[cfg(test)]
mod tests;
