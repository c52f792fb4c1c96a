//! Where the cluster's programs are: `KUBEBUILDER_ASSETS`, what `cargo xtask setup` built, or `PATH`.
use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// What `setup` builds; the pins are the truth, here and there.
const KUBERNETES_PINS: &str = include_str!("../../kube/kubernetes/go.mod");
const COREDNS_PINS: &str = include_str!("../../kube/coredns/go.mod");

/// Where Debian puts what is not for users.
const MORE_DIRS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// The version of Kubernetes that is pinned, as `v1.36.3`.
pub fn version() -> &'static str {
    pinned(KUBERNETES_PINS, "k8s.io/kubernetes")
}

fn coredns_version() -> &'static str {
    pinned(COREDNS_PINS, "github.com/coredns/coredns")
}

fn pinned(pins: &'static str, module: &str) -> &'static str {
    let words: Vec<&str> = pins.split_whitespace().collect();
    // `tool MODULE` stands in the file too; the pin is where a version follows.
    let pairs = words.windows(2);
    pairs
        .filter(|pair| pair[0] == module)
        .map(|pair| pair[1])
        .find(|next| next.starts_with('v'))
        .unwrap_or_default()
}

/// The folder of the components that `setup` builds, by version; outside the build folder, so that it survives.
fn cache() -> PathBuf {
    if let Some(dir) = env::var_os("NODEMESH_KUBE") {
        return PathBuf::from(dir);
    }
    let home = || env::var_os("HOME").map(PathBuf::from).filter(|home| home.is_absolute());
    let cache =
        env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(|| home().map(|home| home.join(".cache")));
    cache.unwrap_or_else(|| PathBuf::from("/var/cache")).join("nodemesh/kube")
}

fn elsewhere() -> Vec<PathBuf> {
    let mut dirs: Vec<PathBuf> = env::var_os("PATH").iter().flat_map(env::split_paths).collect();
    dirs.extend(MORE_DIRS.map(PathBuf::from));
    dirs
}

/// A program of Kubernetes, of the pinned minor version.
pub fn kubernetes(name: &str) -> Result<PathBuf> {
    let built = cache().join(version()).join(name);
    let assets = env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
    let mut refused = Vec::new();
    for (dir, trusted) in assets
        .map(|dir| (dir, false))
        .into_iter()
        .chain([(cache().join(version()), true)])
        .chain(elsewhere().into_iter().map(|dir| (dir, false)))
    {
        let path = dir.join(name);
        if !path.is_file() {
            continue;
        }
        if trusted {
            return Ok(path);
        }
        let said = said_version(&path, name);
        if minor(&said).is_some() && minor(&said) == minor(version()) {
            return Ok(path);
        }
        refused.push(format!("{} is {:?}", path.display(), said.trim()));
    }
    let refused = if refused.is_empty() { String::new() } else { format!(" ({})", refused.join("; ")) };
    bail!(
        "{name} {} is missing: not in KUBEBUILDER_ASSETS, {} or PATH{refused}; run `cargo xtask setup`, which builds it",
        version(),
        built.display()
    )
}

/// The cluster's DNS server, which runs in a pod and so has to be static: only ours is known to be.
pub(super) fn coredns() -> Result<PathBuf> {
    let path = cache().join(format!("coredns-{}", coredns_version())).join("coredns");
    if !path.is_file() {
        bail!("{} is missing; run `cargo xtask setup`, which builds it", path.display());
    }
    Ok(path)
}

/// A program of the distribution's; `package` is what Debian calls it.
pub(super) fn system(name: &str, package: &str) -> Result<PathBuf> {
    let assets = env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
    let found = assets.into_iter().chain(elsewhere()).map(|dir| dir.join(name)).find(|path| path.is_file());
    found.with_context(|| {
        format!("{name} is missing; run `cargo xtask setup`, or install {package} with the package manager")
    })
}

/// `PATH` for the cluster's programs, which call others (containerd: runc; kubelet: mount; kube-proxy: nft).
pub(super) fn path() -> Result<OsString> {
    env::join_paths(elsewhere()).context("PATH names a folder with a colon")
}

fn said_version(program: &Path, name: &str) -> String {
    let arguments: &[&str] = if name == "kubectl" { &["version", "--client"] } else { &["--version"] };
    let out = Command::new(program).args(arguments).output();
    out.map(|out| String::from_utf8_lossy(&out.stdout).into_owned()).unwrap_or_default()
}

/// Major and minor of the first `vX.Y.Z` in a text.
fn minor(text: &str) -> Option<(u32, u32)> {
    let word = text.split_whitespace().find_map(|word| word.strip_prefix('v'))?;
    let mut parts = word.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests;
