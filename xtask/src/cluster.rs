//! `cluster`: prepares and builds what a Kubernetes cluster needs, then becomes the program that keeps it.
use std::env;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};

use crate::setup::{self, Need};
use crate::{build_ebpf, command};

pub(crate) fn run(words: &[String]) -> Result<()> {
    let own = env::current_exe().context("cannot find xtask's own binary")?;
    let program = own.with_file_name("mesh-cluster");
    // What only speaks to a cluster that is up has nothing to prepare, and should answer at once.
    let brings_up = words.iter().find(|word| matches!(word.as_str(), "up" | "down" | "kubectl"));
    if brings_up.is_some_and(|verb| verb == "up") || !program.is_file() {
        prepare()?;
    }
    let mut cluster: Command = command::program(&program);
    Err(cluster.args(words).exec()).context("cannot start mesh-cluster, which cargo has just built")
}

fn prepare() -> Result<()> {
    println!("==> setup");
    let tools = setup::ensure(Need::Cluster)?;
    println!("==> build-ebpf");
    build_ebpf::run(&tools.kernel, false)?;
    println!("==> build (some minutes the first time)");
    // All of the workspace, as `test` does: another selection would build the tree twice.
    command::run(command::cargo().args(["build", "--workspace", "--locked", "--bins"]))?;
    println!("==> cluster");
    Ok(())
}
