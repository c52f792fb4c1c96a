//! Where Helm is. Owns nothing else. Called by the tests of what is shipped.
use std::env;
use std::path::PathBuf;

use anyhow::{Context, Result};

/// The pin is the truth, here and for whoever builds it.
const PINS: &str = include_str!("../kube/helm/go.mod");

/// Helm as it is pinned: built by `cargo xtask setup`, or a Helm 3 on PATH.
pub fn program() -> Result<PathBuf> {
    let version = PINS
        .lines()
        .find_map(|line| line.trim().trim_start_matches("require ").strip_prefix("helm.sh/helm/v3 "))
        .and_then(|version| version.split(' ').next())
        .context("tests/kube/helm/go.mod pins no Helm")?;
    let home = env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let cache = env::var_os("NODEMESH_KUBE").map(PathBuf::from).unwrap_or_else(|| {
        env::var_os("XDG_CACHE_HOME").map_or_else(|| home.join(".cache"), PathBuf::from).join("nodemesh/kube")
    });
    let built = cache.join(format!("helm-{version}/helm"));
    let on_path =
        env::var_os("PATH").map(|path| env::split_paths(&path).collect::<Vec<_>>()).unwrap_or_default();
    let found = std::iter::once(built.clone())
        .chain(on_path.into_iter().map(|dir| dir.join("helm")))
        .find(|path| path.is_file());
    found.with_context(|| {
        format!(
            "helm {version} is missing: not at {} and not on PATH; run `cargo xtask setup`, or in tests/kube/helm: \
             CGO_ENABLED=0 go build -o {} helm.sh/helm/v3/cmd/helm",
            built.display(),
            built.display()
        )
    })
}
