//! `conformance`: prepares and builds what Gateway API's suite needs, then runs the program that runs it.
use std::env;
use std::process::Command;

use anyhow::{Context, Result};

use crate::{build_ebpf, command, image, paths, setup};

/// Where the report is kept that people read. CI leaves it alone: each report has a date.
const KEPT: &str = "docs/conformance/gateway-api-mesh.yaml";
pub(crate) const OF_CI: &str = "target/conformance/gateway-api-mesh.yaml";

/// `test` is one test of the suite; only a run of all of them, with a mesh, is worth a report.
pub(crate) fn run(test: Option<&str>, stay: bool, without_mesh: bool) -> Result<()> {
    println!("==> setup");
    let tools = setup::ensure_conformance()?;
    println!("==> build-ebpf");
    build_ebpf::run(&tools.kernel, false)?;
    println!("==> build (some minutes the first time)");
    // All of the workspace, as `test` does: another selection would build the tree twice.
    command::run(command::cargo().args(["build", "--workspace", "--locked", "--bins"]))?;
    println!("==> image");
    image::run(true, None, None)?;
    println!("==> conformance");
    if test.is_none() && !stay && !without_mesh {
        return whole_suite(KEPT);
    }
    let mut suite = program()?;
    suite.args(test.iter().flat_map(|test| ["--run", test]));
    suite.args(stay.then_some("--stay")).args(without_mesh.then_some("--without-mesh"));
    command::run(&mut suite)
}

/// Everything it needs is there.
pub(crate) fn whole_suite(report: &str) -> Result<()> {
    command::run(program()?.arg("--report").arg(paths::root().join(report)))
}

fn program() -> Result<Command> {
    let own = env::current_exe().context("cannot find xtask's own binary")?;
    Ok(command::program(&own.with_file_name("mesh-conformance")))
}
