//! System calls of a set of processes, counted by the kernel's own counter through `perf stat`: nothing is traced, so
//! nothing is slowed down.
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const EVENT: &str = "raw_syscalls:sys_enter";
/// Until perf counts; it says nothing when it has begun.
const BEGIN: Duration = Duration::from_millis(300);

pub(crate) struct Calls {
    perf: Child,
}

impl Calls {
    pub(crate) fn start(pids: &[i32]) -> Result<Self> {
        let list: Vec<String> = pids.iter().map(ToString::to_string).collect();
        let perf = Command::new("perf")
            .args(["stat", "-x", ",", "-e", EVENT, "-p", &list.join(",")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("perf is missing: install linux-perf to count system calls")?;
        std::thread::sleep(BEGIN);
        Ok(Self { perf })
    }

    /// Calls since the start.
    pub(crate) fn stop(self) -> Result<u64> {
        kill(Pid::from_raw(self.perf.id().cast_signed()), Signal::SIGINT).context("cannot end perf")?;
        let said = self.perf.wait_with_output().context("cannot read what perf counted")?;
        let text = String::from_utf8_lossy(&said.stderr);
        let counted = text.lines().find(|line| line.contains(EVENT));
        match counted.and_then(|line| line.split(',').next()?.parse().ok()) {
            Some(number) => Ok(number),
            None => bail!("perf cannot count {EVENT}: {}", text.trim()),
        }
    }
}
