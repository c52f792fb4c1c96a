//! `demo`: prepares and builds what the demo needs, then becomes the demo, so that Ctrl-C reaches it and nobody else.
use std::env;
use std::os::unix::process::CommandExt;

use anyhow::{Context, Result};

use crate::setup::{self, Need};
use crate::{build_ebpf, command};

pub(crate) fn run(exit: bool) -> Result<()> {
    println!("==> setup");
    let tools = setup::ensure(Need::Lab)?;
    println!("==> build-ebpf");
    build_ebpf::run(&tools.kernel, false)?;
    println!("==> build (some minutes the first time)");
    // All of the workspace, as `test` does: features of a dependency depend on what is asked for, and another selection
    // would build the tree twice.
    command::run(command::cargo().args(["build", "--workspace", "--locked", "--bins"]))?;
    println!("==> demo\n");
    let own = env::current_exe().context("cannot find xtask's own binary")?;
    let mut demo = command::program(&own.with_file_name("mesh-demo"));
    if exit {
        demo.arg("--exit");
    }
    Err(demo.exec()).context("cannot start mesh-demo, which cargo has just built")
}
