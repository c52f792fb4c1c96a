//! kubectl, as a user runs it.
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail};

use super::components;

/// Runs it to the end and gives its standard output; what it says on standard error is part of a failure's message.
pub(super) fn run(kubeconfig: &Path, arguments: &[&str], input: Option<&str>) -> Result<String> {
    let mut child = command(kubeconfig)?
        .args(arguments)
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start kubectl")?;
    let stdin = child.stdin.take();
    let out = thread::scope(|scope| {
        // Beside the reading: an input larger than a pipe would stop both.
        scope.spawn(|| {
            // A kubectl that does not read to the end says why by itself.
            stdin.zip(input).map(|(mut pipe, text)| pipe.write_all(text.as_bytes()))
        });
        child.wait_with_output()
    });
    let out = out.context("waiting for kubectl")?;
    if !out.status.success() {
        bail!(
            "`kubectl {}` ended with {}: {}",
            arguments.join(" "),
            out.status,
            String::from_utf8_lossy(&out.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// To be run with arguments of one's own; nothing of the user's configuration is read or written.
pub(super) fn command(kubeconfig: &Path) -> Result<Command> {
    let mut kubectl = Command::new(components::kubernetes("kubectl")?);
    kubectl.arg(format!("--kubeconfig={}", kubeconfig.display())).env_remove("KUBECONFIG");
    if let Some(dir) = kubeconfig.parent() {
        kubectl.env("HOME", dir);
    }
    Ok(kubectl)
}
