//! Finds the kernel programs' object and tells the crate where it is. Builds nothing itself: a cargo
//! inside cargo would hide its toolchain from whoever has to mend it.

use std::env;
use std::path::PathBuf;
use std::process::exit;

const VARIABLE: &str = "MESH_BPF_OBJECT";

fn main() {
    println!("cargo::rerun-if-env-changed={VARIABLE}");
    let object = env::var_os(VARIABLE).map_or_else(default_path, PathBuf::from);
    println!("cargo::rerun-if-changed={}", object.display());
    if !object.is_file() {
        println!(
            "cargo::error=the kernel programs are not built ({} is missing): run `cargo xtask build-ebpf`, or name an object in {VARIABLE}",
            object.display()
        );
        exit(1);
    }
    println!("cargo::rustc-env={VARIABLE}={}", object.display());
}

fn default_path() -> PathBuf {
    let manifest = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from).unwrap_or_default();
    manifest.join("../target/bpf/mesh.bpf.o")
}
