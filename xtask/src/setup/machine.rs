//! What no package can provide: root, a kernel with what the programs use, the mounted file systems.
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Result, bail};

/// The oldest kernel the programs load on.
const FLOOR: (u32, u32) = (5, 15);

pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}

/// One sentence with the remedy for the first thing that is missing.
pub(crate) fn check() -> Result<()> {
    if !is_root() {
        bail!("the lab makes network namespaces and loads kernel programs; run this as root");
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    if version(&release).is_some_and(|found| found < FLOOR) {
        bail!("kernel {} is too old; boot {}.{} or newer", release.trim(), FLOOR.0, FLOOR.1);
    }
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        bail!("the kernel has no BTF (/sys/kernel/btf/vmlinux); boot one built with CONFIG_DEBUG_INFO_BTF=y");
    }
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    if !mounts.lines().any(|line| line.split(' ').nth(2) == Some("cgroup2")) {
        bail!(
            "no cgroup v2 hierarchy is mounted; run `mount -t cgroup2 none /sys/fs/cgroup`, or boot with it"
        );
    }
    Ok(())
}

/// Major and minor of what `uname -r` says.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.trim().split(['.', '-', '+']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests;
