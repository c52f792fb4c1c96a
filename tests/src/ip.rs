//! Network set-up by `ip -batch`: one process for all the lines of a namespace.
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Every bridge's own, which is a gateway's: left to itself a bridge takes the lowest of its cables', so that a new pod may
/// change it under neighbours who go on to send to the old one until they ask again, half a minute later.
pub(crate) const BRIDGE_MAC: &str = "02:6e:6d:00:00:01";

/// Runs the lines in the calling thread's namespace.
pub(crate) fn batch(lines: &str) -> Result<()> {
    let program = if Path::new("/usr/sbin/ip").exists() { "/usr/sbin/ip" } else { "ip" };
    let mut child = Command::new(program)
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start `ip`; run `cargo xtask setup`")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(lines.as_bytes()).context("cannot write to `ip`")?;
    }
    let out = child.wait_with_output().context("waiting for `ip`")?;
    if !out.status.success() {
        bail!("`ip` refused: {}\n{lines}", String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(())
}

/// Writes settings below `/proc/sys/net`; the kernel resolves them in the writing thread's namespace.
pub(crate) fn sysctl(settings: &[(&str, &str)]) -> Result<()> {
    for (name, value) in settings {
        let path = Path::new("/proc/sys/net").join(name);
        fs::write(&path, value).with_context(|| format!("cannot set {}", path.display()))?;
    }
    Ok(())
}
