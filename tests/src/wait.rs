//! Waiting for what another process does: with a deadline, and an error that says what did not happen.
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

const STEP: Duration = Duration::from_millis(10);

/// Waits until `check` says yes. An error of `check` counts as "not yet" and is part of the message at the end.
pub fn eventually(
    what: &str,
    deadline: Duration,
    mut check: impl FnMut() -> Result<bool>,
) -> Result<Duration> {
    let start = Instant::now();
    loop {
        let last = match check() {
            Ok(true) => return Ok(start.elapsed()),
            Ok(false) => String::new(),
            Err(error) => format!(" ({error:#})"),
        };
        if start.elapsed() >= deadline {
            bail!("{what}: not within {deadline:?}{last}");
        }
        thread::sleep(STEP);
    }
}

/// Makes sure that `check` says yes during the whole time.
pub fn hold(what: &str, time: Duration, mut check: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while start.elapsed() < time {
        if !check()? {
            bail!("{what}: no longer so after {:?}", start.elapsed());
        }
        thread::sleep(STEP);
    }
    Ok(())
}
