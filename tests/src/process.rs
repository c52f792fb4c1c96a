//! Child processes inside a namespace, with what they say kept in a file and shown when a test fails.
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::netns::NetNs;
use crate::wait::eventually;

/// Each process of a lab carries the lab's name in this variable; that is how a sweep knows what it may end.
pub(crate) const LAB_VARIABLE: &str = "NODEMESH_LAB";

/// A running program. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: String,
    log: PathBuf,
    child: Child,
}

impl Process {
    /// Starts `command` inside `ns`; standard output and error go to `log`, after what is there.
    pub(crate) fn start(ns: &NetNs, lab: &str, mut command: Command, log: &Path) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let out = File::options().create(true).append(true).open(log).context("cannot open a log")?;
        let err = out.try_clone().context("cannot duplicate a log")?;
        command.env(LAB_VARIABLE, lab).stdin(Stdio::null()).stdout(out).stderr(err);
        // A child lives in the namespace of the thread that made it.
        let child = ns.run(|| command.spawn().with_context(|| format!("cannot start {name}")))?;
        Ok(Self { name, log: log.to_path_buf(), child })
    }

    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// All it said so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.pid()), signal).with_context(|| format!("cannot signal {}", self.name))
    }

    /// SIGTERM, then waits for the end.
    pub fn terminate(&mut self, deadline: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait(deadline)
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.child.kill().with_context(|| format!("cannot kill {}", self.name))?;
        self.child.wait().context("waiting for a killed process")
    }

    pub fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let mut ended = None;
        eventually(&format!("{} to end", self.name), deadline, || {
            ended = self.child.try_wait().context("waiting for a process")?;
            Ok(ended.is_some())
        })?;
        ended.context("a process ended without a status")
    }

    /// An error with its last words when it has ended.
    pub fn check_alive(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait().context("waiting for a process")? {
            bail!("{} ended with {status}:\n{}", self.name, tail(&self.log(), 20));
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails only when it has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The last lines of a text.
pub(crate) fn tail(text: &str, lines: usize) -> &str {
    let starts: Vec<usize> =
        text.match_indices('\n').map(|(at, _)| at + 1).filter(|at| *at < text.len()).collect();
    let from = starts.len().checked_sub(lines).and_then(|skip| starts.get(skip)).copied().unwrap_or(0);
    &text[from..]
}

/// When a process started, in clock ticks since boot; with the id it names a process once and for all.
pub fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program's name stands in parentheses and may hold anything; the 22nd field is the 20th after it.
    let (_, after) = stat.rsplit_once(')')?;
    let mut fields = after.split_whitespace();
    if fields.next()? == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// The ids of the live processes of a lab.
pub fn of_lab(lab: &str) -> Vec<i32> {
    let marker = format!("{LAB_VARIABLE}={lab}");
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|variable| variable == marker.as_bytes())
        })
        .filter(|pid| start_time(*pid).is_some())
        .collect()
}

/// Ends every process of a lab and waits until they are gone.
pub(crate) fn end_all(lab: &str) {
    let gone = eventually("the lab's processes to end", Duration::from_secs(5), || {
        let left = of_lab(lab);
        for pid in &left {
            // An error means that it ended meanwhile, which is what we want.
            kill(Pid::from_raw(*pid), Signal::SIGKILL).ok();
        }
        Ok(left.is_empty())
    });
    if let Err(error) = gone {
        eprintln!("lab {lab}: {error:#}");
    }
}
