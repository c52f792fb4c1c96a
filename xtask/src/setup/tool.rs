//! Rust programs that Debian does not package, built once at a pinned version into the tools folder.
use std::env;

use anyhow::{Context, Result};

use super::kernel::KernelToolchain;
use crate::{command, paths};

/// A pinned program from crates.io.
pub(crate) struct Tool {
    pub(crate) name: &'static str,
    pub(crate) version: &'static str,
    pub(crate) why: &'static str,
    pub(crate) arguments: &'static [&'static str],
}

pub(crate) const DENY: Tool = Tool {
    name: "cargo-deny",
    version: "0.20.2",
    why: "it checks licences, sources and banned crates",
    arguments: &[],
};

/// One feature per LLVM: this one must match the LLVM of the compiler, whose bitcode it reads.
pub(crate) const LINKER: Tool = Tool {
    name: "bpf-linker",
    version: "0.13.0",
    why: "it links the kernel programs",
    arguments: &["--no-default-features", "--features", "llvm-22"],
};

/// Builds the tool unless a program of that name is there already.
pub(crate) fn ensure(tool: &Tool, kernel: &KernelToolchain) -> Result<()> {
    if paths::find_program(tool.name).is_some() {
        return Ok(());
    }
    install(tool, kernel, None)
}

/// Builds the tool with the given compiler.
pub(crate) fn install(tool: &Tool, kernel: &KernelToolchain, llvm: Option<&std::path::Path>) -> Result<()> {
    println!("setup: building {} {}: {} (a few minutes, once)", tool.name, tool.version, tool.why);
    let mut cargo = command::foreign_cargo(&kernel.cargo, &kernel.rustc);
    cargo.current_dir("/").args(["install", "--locked", "--force", "--root"]).arg(paths::tools());
    cargo.args([tool.name, "--version", &format!("={}", tool.version)]).args(tool.arguments);
    // Built once, run for seconds: half the build time is worth more here than the optimiser's last word.
    for (name, value) in [("LTO", "off"), ("DEBUG", "0"), ("OPT_LEVEL", "1"), ("CODEGEN_UNITS", "16")] {
        cargo.env(format!("CARGO_PROFILE_RELEASE_{name}"), value);
    }
    if let Some(prefix) = llvm {
        cargo.env("LLVM_PREFIX", prefix);
    }
    if env::var_os("CARGO_TERM_COLOR").is_none() {
        cargo.env("CARGO_TERM_COLOR", "never");
    }
    command::run(&mut cargo).with_context(|| {
        format!(
            "cannot build {0}; run `cargo install --locked {0} --version ={1}` to see why",
            tool.name, tool.version
        )
    })
}
