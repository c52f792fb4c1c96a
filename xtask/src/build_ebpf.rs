//! `build-ebpf`: compiles `mesh-ebpf` for the kernel's virtual machine and leaves one object for the agent to embed.
//!
//! The compiler is a stable one. Building `core` for this target is still called unstable, so that one child process
//! is allowed to do it (`RUSTC_BOOTSTRAP`); nothing else is.
use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::setup::KernelToolchain;
use crate::{command, paths};

const TARGET: &str = "bpfel-unknown-none";
/// The instruction set: with compare-and-swap. Linux has had it since 5.12, and the agent asks for 5.15.
const CPU: &str = "v3";

/// What the object depends on besides the compiler.
const SOURCES: &[&str] = &["mesh-ebpf", "mesh-common", "Cargo.toml"];

/// Compiles where something changed since the last object; writes the object only where it differs, so that its
/// modification time does not make cargo build the agent again.
pub(crate) fn run(kernel: &KernelToolchain, force: bool) -> Result<()> {
    let object = paths::bpf().join("mesh.bpf.o");
    let stamp = paths::bpf().join("mesh.bpf.stamp");
    let now = fingerprint(kernel)?;
    if !force && object.is_file() && fs::read_to_string(&stamp).is_ok_and(|last| last == now) {
        eprintln!("target/bpf/mesh.bpf.o is up to date");
        return Ok(());
    }
    let built = fs::read(compile(kernel)?).context("cannot read the compiled object")?;
    if !built.starts_with(b"\x7fELF") {
        bail!("the compiler made no ELF object of mesh-ebpf");
    }
    fs::create_dir_all(paths::bpf()).context("cannot create target/bpf")?;
    if fs::read(&object).is_ok_and(|last| last == built) {
        eprintln!("target/bpf/mesh.bpf.o is unchanged ({} bytes)", built.len());
    } else {
        replace(&object, &built)?;
        eprintln!("target/bpf/mesh.bpf.o is new ({} bytes)", built.len());
    }
    let sum = command::output(Command::new("sha256sum").arg("mesh.bpf.o").current_dir(paths::bpf()))?;
    replace(&paths::bpf().join("mesh.bpf.o.sha256"), sum.as_bytes())?;
    replace(&stamp, now.as_bytes())
}

fn compile(kernel: &KernelToolchain) -> Result<PathBuf> {
    let dir = paths::root().join("mesh-ebpf");
    if !dir.join("Cargo.toml").is_file() {
        bail!("mesh-ebpf/Cargo.toml is missing; the clone is incomplete");
    }
    let mut cargo = command::foreign_cargo(&kernel.cargo, &kernel.rustc);
    cargo.current_dir(&dir).env("RUSTC_BOOTSTRAP", "1").env("CARGO_TARGET_DIR", paths::bpf().join("build"));
    cargo.env(
        "RUSTFLAGS",
        format!("-Cdebuginfo=2 -Ctarget-cpu={CPU} -Clink-arg=--btf -Clinker={}", kernel.linker.display()),
    );
    cargo.args(["build", "--release", "--target", TARGET, "-Zbuild-std=core"]);
    cargo.arg("--message-format=json-render-diagnostics");
    if dir.join("Cargo.lock").is_file() {
        cargo.arg("--locked");
    }
    let mut child = cargo.stdout(Stdio::piped()).spawn().context("cannot start cargo for mesh-ebpf")?;
    let mut objects = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            objects.extend(executable(&line.context("reading what cargo says")?));
        }
    }
    let status = child.wait().context("waiting for cargo")?;
    if !status.success() {
        bail!("the kernel programs do not compile ({status})");
    }
    match objects.as_slice() {
        [one] => Ok(one.clone()),
        _ => bail!("mesh-ebpf has to make exactly one program, it made {}", objects.len()),
    }
}

/// The program that one of cargo's messages announces.
fn executable(message: &str) -> Option<PathBuf> {
    let message: serde_json::Value = serde_json::from_str(message).ok()?;
    (message["reason"] == "compiler-artifact").then(|| message["executable"].as_str().map(PathBuf::from))?
}

/// Changes whenever the object could: the sources' bytes, the compiler, the linker.
fn fingerprint(kernel: &KernelToolchain) -> Result<String> {
    let mut hasher = DefaultHasher::new();
    command::output(Command::new(&kernel.rustc).arg("-vV"))?.hash(&mut hasher);
    kernel.linker.hash(&mut hasher);
    CPU.hash(&mut hasher);
    let linker = fs::metadata(&kernel.linker).context("cannot read the linker")?;
    (linker.len(), linker.modified().ok()).hash(&mut hasher);
    for source in SOURCES {
        hash_tree(&paths::root().join(source), &mut hasher)?;
    }
    Ok(format!("{:016x}\n", hasher.finish()))
}

fn hash_tree(path: &Path, hasher: &mut DefaultHasher) -> Result<()> {
    if path.is_file() {
        path.file_name().hash(hasher);
        fs::read(path).with_context(|| format!("cannot read {}", path.display()))?.hash(hasher);
        return Ok(());
    }
    let entries = fs::read_dir(path).with_context(|| format!("cannot list {}", path.display()))?;
    let mut inside = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>()?;
    inside.sort();
    for entry in inside {
        if entry.file_name().is_none_or(|name| name != "target") {
            hash_tree(&entry, hasher)?;
        }
    }
    Ok(())
}

/// Writes beside and renames: a reader sees the old file or the new one, never half of it.
fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let next = path.with_extension("next");
    fs::write(&next, bytes).with_context(|| format!("cannot write {}", next.display()))?;
    fs::rename(&next, path).with_context(|| format!("cannot replace {}", path.display()))
}
