//! `bench`: builds the agent as it is shipped and becomes the benchmark, which compares traffic with and without the mesh.
use std::env;
use std::os::unix::process::CommandExt;
use std::path::Path;

use anyhow::{Context, Result};

use crate::setup::{self, Need, envoy};
use crate::{build_ebpf, command};

pub(crate) fn run(what: Option<&str>, with_envoy: bool, json: bool) -> Result<()> {
    if what == Some("scale") {
        return scale(json);
    }
    // What is printed to standard output is the result; with --json nothing else may be there.
    eprintln!("==> setup");
    let tools = setup::ensure(Need::Lab)?;
    let http = what == Some("http");
    if http {
        setup::ensure_proxies()?;
    }
    let envoy = (with_envoy || http).then(envoy::ensure).transpose()?;
    eprintln!("==> build-ebpf");
    build_ebpf::run(&tools.kernel, false)?;
    eprintln!("==> build --release (many minutes the first time)");
    command::run(command::cargo().args(["build", "--workspace", "--locked", "--release", "--bins"]))?;
    eprintln!("==> bench");
    let own = env::current_exe().context("cannot find xtask's own binary")?;
    // target/debug/xtask -> target/release/mesh-bench
    let target = own.ancestors().nth(2).unwrap_or_else(|| Path::new("target"));
    let mut bench = command::program(&target.join("release/mesh-bench"));
    bench.args(what);
    if let Some(envoy) = envoy {
        bench.env("NODEMESH_ENVOY", envoy);
    }
    // It runs beside requests in any case.
    if with_envoy && !http {
        bench.arg("--with-envoy");
    }
    if json {
        bench.arg("--json");
    }
    Err(bench.exec()).context("cannot start mesh-bench, which cargo has just built")
}

/// What a cluster's size costs the agent: no lab is needed.
fn scale(json: bool) -> Result<()> {
    eprintln!("==> bench scale (builds the agent as it is shipped: many minutes the first time)");
    let mut bench = command::cargo();
    bench.args(["bench", "--locked", "--bench", "scale"]);
    if json {
        bench.args(["--", "--json"]);
    }
    command::run(&mut bench)
}
