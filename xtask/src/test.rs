//! `test`: what must hold before anything lands. Prepares, lints, then runs every test, and goes on after a failure
//! so that one run shows everything that is wrong.
mod results;

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use crate::phases::{Phases, Report};
use crate::setup::{self, Need};
use crate::test::results::Results;
use crate::{build_ebpf, command, conformance, image, paths};

/// With a filter only the tests with this in their name; without one everything, Gateway API's suite included.
pub(crate) fn run(filter: Option<&str>) -> Result<()> {
    let mut phases = Phases::default();
    let packed = check(&mut phases, filter);
    // Not if what it runs could not be built.
    if filter.is_none()
        && packed.is_some()
        && phases.run("setup suite", |_| setup::ensure_conformance()).is_some()
    {
        phases.run("conformance", |_| conformance::whole_suite(conformance::OF_CI));
    }
    phases.finish()
}

/// `None` if the image could not be made, and so no cluster's test can be run.
fn check(phases: &mut Phases, filter: Option<&str>) -> Option<()> {
    let need = if filter.is_some() { Need::Cluster } else { Need::Checks };
    if let Some(tools) = phases.run("setup", |_| setup::ensure(need))
        && phases.run("build-ebpf", |_| build_ebpf::run(&tools.kernel, false)).is_some()
    {
        if filter.is_none() {
            lint(phases);
        }
        if phases.run("build", |_| build()).is_some() {
            // What the cluster's tests install.
            let packed = phases.run("image", |_| image::run(true, None, None));
            phases.run("test", |report| run_tests(filter, report));
            return packed;
        }
    }
    None
}

fn lint(phases: &mut Phases) {
    phases.run("fmt", |_| {
        command::run(command::cargo().args(["fmt", "--all", "--check"]))?;
        let kernel = paths::root().join("mesh-ebpf/Cargo.toml");
        command::run(command::cargo().args(["fmt", "--check", "--manifest-path"]).arg(kernel))
    });
    phases.run("clippy", |report| {
        let mut clippy = command::cargo();
        clippy.args(["clippy", "--workspace", "--all-targets", "--locked"]);
        if pinned_compiler()? {
            clippy.args(["--", "-D", "warnings"]);
        } else {
            // Another version knows other lints; what it says is advice.
            "not the pinned compiler: warnings do not fail".clone_into(&mut report.note);
        }
        command::run(&mut clippy)
    });
    phases.run("deny", |_| {
        // Not `advisories`: it fetches a git repository, and a test run has to give the same answer without a network.
        for manifest in ["Cargo.toml", "mesh-ebpf/Cargo.toml"] {
            let mut check = command::cargo();
            check.args([
                "deny",
                "--all-features",
                "--locked",
                "--manifest-path",
                manifest,
                "--config",
                "deny.toml",
            ]);
            // The smaller tree has fewer licences than the list.
            check.args(["check", "--hide-inclusion-graph", "--allow", "license-not-encountered"]);
            command::run(check.args(["bans", "licenses", "sources"]))?;
        }
        Ok(())
    });
}

/// Whether this is the compiler of `rust-toolchain.toml`. Without rustup nothing reads that file.
fn pinned_compiler() -> Result<bool> {
    let pin = fs::read_to_string(paths::root().join("rust-toolchain.toml"))
        .context("cannot read rust-toolchain.toml")?;
    let channel = pin.lines().find_map(|line| line.trim().strip_prefix("channel")).unwrap_or_default();
    let wanted = channel.trim_matches([' ', '=', '"']);
    let version = command::output(command::cargo().arg("--version"))?;
    Ok(version.split(' ').nth(1) == Some(wanted))
}

/// The lab runs the agent as a process; `cargo test` alone may leave an old binary in place. Programs and tests in one
/// call, because features of a dependency depend on what is asked for: two calls would build the tree twice.
fn build() -> Result<()> {
    command::run(command::cargo().args(["build", "--workspace", "--locked", "--bins", "--tests"]))
}

fn run_tests(filter: Option<&str>, report: &mut Report) -> Result<()> {
    let mut cargo = command::cargo();
    cargo.args(["test", "--workspace", "--locked", "--no-fail-fast"]).args(filter);
    let mut child = cargo.stdout(Stdio::piped()).spawn().context("cannot start `cargo test`")?;
    let mut results = Results::default();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            let line = line.context("reading what `cargo test` says")?;
            results.add(&line);
            println!("{line}");
        }
    }
    let status = child.wait().context("waiting for `cargo test`")?;
    report.note = format!("{} passed, {} failed", results.passed, results.failed);
    report.details = results.details();
    if results.ignored > 0 {
        bail!(
            "{} tests are ignored; a test that cannot run here has to fail and say what is missing",
            results.ignored
        );
    }
    if !status.success() {
        bail!("`cargo test` ended with {status}");
    }
    if results.passed == 0 {
        bail!("no test matches {:?}", filter.unwrap_or_default());
    }
    Ok(())
}
