//! The compiler of the kernel programs: one that has the source of `core` and a linker that reads its bitcode.
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{apt, tool};
use crate::{command, paths};

/// A compiler, its cargo and a linker that were seen to work together.
#[derive(Debug)]
pub(crate) struct KernelToolchain {
    pub(crate) cargo: PathBuf,
    pub(crate) rustc: PathBuf,
    pub(crate) linker: PathBuf,
}

impl KernelToolchain {
    pub(crate) fn describe(&self) -> String {
        let version = command::output(Command::new(&self.rustc).arg("--version")).unwrap_or_default();
        format!("{} with {}", version.trim(), self.linker.display())
    }
}

/// Debian's compiler, whose source package goes with it.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CARGO: &str = "/usr/bin/cargo";

/// The smallest program for the target. It needs no `core`, so it compiles in milliseconds, and it fails exactly
/// when the linker cannot read this compiler's bitcode. Three language items are what a function without `core` takes.
const PROBE: &str = r#"
#![allow(internal_features)]
#![feature(no_core, lang_items)]
#![no_core]
#![no_main]
#[lang = "pointee_sized"]
pub trait PointeeSized {}
#[lang = "meta_sized"]
pub trait MetaSized: PointeeSized {}
#[lang = "sized"]
pub trait Sized: MetaSized {}
#[unsafe(no_mangle)]
#[unsafe(link_section = "socket")]
pub extern "C" fn probe() -> u32 { 7 }
"#;

/// Finds a working pair, or makes one.
pub(crate) fn ensure() -> Result<KernelToolchain> {
    if let Some(found) = find() {
        return Ok(found);
    }
    let missing: Vec<apt::Package> = [
        (DEBIAN_RUSTC, "rustc-web", "a compiler whose source is packaged with it"),
        (DEBIAN_CARGO, "cargo-web", "the cargo of that compiler"),
        (
            "/usr/lib/rustlib/src/rust/library/core/src/lib.rs",
            "rust-web-src",
            "the kernel programs compile `core`",
        ),
    ]
    .into_iter()
    .filter(|(path, _, _)| !Path::new(path).exists())
    .map(|(_, name, why)| apt::Package { name, why })
    .collect();
    apt::install_missing(&missing).context(
        "no compiler can build the kernel programs; either `rustup component add rust-src` and \
         `cargo install --locked bpf-linker`, or Debian 12 as root",
    )?;
    if let Some(found) = find() {
        return Ok(found);
    }
    let debian = KernelToolchain {
        cargo: PathBuf::from(DEBIAN_CARGO),
        rustc: PathBuf::from(DEBIAN_RUSTC),
        linker: paths::tools().join("bin/bpf-linker"),
    };
    let llvm = llvm_prefix()?;
    tool::install(&tool::LINKER, &debian, Some(&llvm))?;
    probe(&debian).context("bpf-linker was built but cannot link what this compiler makes")?;
    Ok(debian)
}

/// The first compiler and linker that work together: the user's own before Debian's.
fn find() -> Option<KernelToolchain> {
    let linkers: Vec<PathBuf> = paths::program_dirs()
        .into_iter()
        .map(|dir| dir.join("bpf-linker"))
        .filter(|path| path.is_file())
        .collect();
    compilers()
        .into_iter()
        .flat_map(|(cargo, rustc)| {
            linkers.iter().map(move |linker| KernelToolchain {
                cargo: cargo.clone(),
                rustc: rustc.clone(),
                linker: linker.clone(),
            })
        })
        .find(|candidate| probe(candidate).is_ok())
}

/// Compilers that come with the source of `core`.
fn compilers() -> Vec<(PathBuf, PathBuf)> {
    let mut rustcs = Vec::from([PathBuf::from(DEBIAN_RUSTC)]);
    // Asked in the workspace, where rustup answers for the pinned toolchain.
    let mut ask = Command::new("rustc");
    ask.args(["--print", "sysroot"]).current_dir(paths::root());
    if let Ok(sysroot) = command::output(&mut ask) {
        rustcs.insert(0, Path::new(sysroot.trim()).join("bin/rustc"));
    }
    rustcs.dedup();
    rustcs
        .into_iter()
        .filter_map(|rustc| {
            let bin = rustc.parent()?;
            let cargo = bin.join("cargo");
            let core = bin.parent()?.join("lib/rustlib/src/rust/library/core/src/lib.rs");
            (rustc.is_file() && cargo.is_file() && core.is_file()).then_some((cargo, rustc))
        })
        .collect()
}

fn probe(candidate: &KernelToolchain) -> Result<()> {
    let dir = paths::tools().join("probe");
    fs::create_dir_all(&dir).context("cannot create the probe's folder")?;
    let source = dir.join("probe.rs");
    fs::write(&source, PROBE).context("cannot write the probe")?;
    let mut rustc = Command::new(&candidate.rustc);
    rustc.env("RUSTC_BOOTSTRAP", "1").env_remove("LD_LIBRARY_PATH").arg(&source);
    rustc.args([
        "--edition",
        "2024",
        "--crate-type",
        "bin",
        "--target",
        "bpfel-unknown-none",
        "-Cdebuginfo=2",
    ]);
    rustc.arg("-Clink-arg=--btf").arg(format!("-Clinker={}", candidate.linker.display()));
    let made = command::output(rustc.arg("-o").arg(dir.join("probe.o")));
    if let Err(error) = fs::remove_dir_all(&dir) {
        eprintln!("setup: {} stays behind: {error}", dir.display());
    }
    made.map(drop)
}

/// A folder that looks like an LLVM installation as far as bpf-linker's build looks: `lib/libLLVM.so`. Debian's
/// compiler brings the library alone, under its versioned name.
fn llvm_prefix() -> Result<PathBuf> {
    let mut found = None;
    for dir in ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"] {
        let path = Path::new(dir).join("libLLVM.so.22.1");
        if path.exists() {
            found = Some(path);
            break;
        }
    }
    let Some(library) = found else {
        bail!(
            "libLLVM.so.22.1 is missing though Debian's compiler needs it; run `apt-get install --reinstall libllvm22`"
        );
    };
    let prefix = paths::tools().join("llvm-22");
    let link = prefix.join("lib/libLLVM.so");
    fs::create_dir_all(prefix.join("lib")).context("cannot create the LLVM folder")?;
    if fs::read_link(&link).ok().as_ref() != Some(&library) {
        if link.is_symlink() {
            fs::remove_file(&link).context("cannot replace the link to LLVM")?;
        }
        symlink(&library, &link).context("cannot link LLVM")?;
    }
    Ok(prefix)
}
