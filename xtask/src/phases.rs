//! The steps of a long verb: announced, timed, and summed up at the end so that a failure is found without scrolling.
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

#[derive(Default)]
pub(crate) struct Phases {
    done: Vec<Phase>,
}

struct Phase {
    name: String,
    took: Duration,
    report: Report,
    error: Option<String>,
}

/// What a step says of itself in the summary.
#[derive(Default)]
pub(crate) struct Report {
    /// Of one line, beside its time.
    pub(crate) note: String,
    /// Said once more at the very end if the step failed, where it is found without scrolling.
    pub(crate) details: String,
}

impl Phases {
    /// Runs one step; gives its value, or `None` after a failure, which `finish` reports.
    pub(crate) fn run<T>(&mut self, name: &str, step: impl FnOnce(&mut Report) -> Result<T>) -> Option<T> {
        println!("\n==> {name}");
        let start = Instant::now();
        let mut report = Report::default();
        let result = step(&mut report);
        let error = result.as_ref().err().map(|error| format!("{error:#}"));
        if let Some(error) = &error {
            eprintln!("{name}: {error}");
        }
        self.done.push(Phase { name: name.to_owned(), took: start.elapsed(), report, error });
        result.ok()
    }

    /// The summary; an error when any step failed.
    pub(crate) fn finish(self) -> Result<()> {
        println!("\n==> summary");
        for phase in &self.done {
            let verdict = if phase.error.is_some() { "FAILED" } else { "ok" };
            println!(
                "{:<16} {verdict:<7} {:>7.1} s  {}",
                phase.name,
                phase.took.as_secs_f64(),
                phase.report.note
            );
        }
        let total: Duration = self.done.iter().map(|phase| phase.took).sum();
        let failed: Vec<&str> =
            self.done.iter().filter(|phase| phase.error.is_some()).map(|phase| phase.name.as_str()).collect();
        if failed.is_empty() {
            println!("\nall good, in {:.0} s", total.as_secs_f64());
            return Ok(());
        }
        for phase in self.done.iter().filter(|phase| phase.error.is_some()) {
            println!("\n{}: {}", phase.name, phase.error.as_deref().unwrap_or_default());
            print!("{}", phase.report.details);
        }
        bail!("failed: {} (after {:.0} s)", failed.join(", "), total.as_secs_f64())
    }
}
