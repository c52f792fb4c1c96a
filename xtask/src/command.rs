//! Child processes: a clean environment for cargo, and failures that name the command.
use std::env;
use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::paths;

/// What `cargo run` sets for us and another cargo must not inherit: it would describe the wrong package, and build
/// scripts that watch these variables would run again for nothing.
const INHERITED: &[&str] = &[
    "CARGO",
    "CARGO_MANIFEST_DIR",
    "CARGO_MANIFEST_PATH",
    "CARGO_PRIMARY_PACKAGE",
    "CARGO_CRATE_NAME",
    "CARGO_BIN_NAME",
    "RUST_RECURSION_COUNT",
    "LD_LIBRARY_PATH",
];

/// What chooses or changes a compiler; a child that brings its own compiler drops these too.
const COMPILER: &[&str] = &[
    "RUSTUP_TOOLCHAIN",
    "RUSTC",
    "RUSTC_WRAPPER",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTDOC",
    "RUSTFLAGS",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_BUILD_RUSTC",
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_TARGET_DIR",
    "RUSTC_BOOTSTRAP",
];

/// The cargo that runs us, for work on the workspace.
pub(crate) fn cargo() -> Command {
    let program = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(program);
    clean(&mut command);
    command.current_dir(paths::root());
    command
}

/// Any cargo, with a compiler of its own: nothing of the surrounding toolchain leaks in.
pub(crate) fn foreign_cargo(program: &Path, rustc: &Path) -> Command {
    let mut command = Command::new(program);
    clean(&mut command);
    for name in COMPILER {
        command.env_remove(name);
    }
    command.env("RUSTC", rustc);
    command
}

/// A program of ours, where it finds what `setup` has installed.
pub(crate) fn program(path: &Path) -> Command {
    let mut command = Command::new(path);
    clean(&mut command);
    command
}

fn clean(command: &mut Command) {
    for name in INHERITED {
        command.env_remove(name);
    }
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("CARGO_PKG_")) {
            command.env_remove(name);
        }
    }
    if let Ok(path) = env::join_paths(paths::program_dirs()) {
        command.env("PATH", path);
    }
}

/// Runs to the end with the terminal as it is.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start `{}`", name(command)))?;
    if !status.success() {
        bail!("`{}` ended with {status}", name(command));
    }
    Ok(())
}

/// Runs to the end and gives its standard output; what it says on standard error is part of a failure's message.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    command.stdin(Stdio::null());
    let out = command.output().with_context(|| format!("cannot start `{}`", name(command)))?;
    if !out.status.success() {
        let said = String::from_utf8_lossy(&out.stderr);
        bail!("`{}` ended with {}: {}", name(command), out.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// The command as a person would type it.
fn name(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|arg| arg.to_string_lossy().into_owned()));
    words.join(" ")
}
