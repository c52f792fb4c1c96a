//! `mesh-agent check`: what the machine must have, and what the agent says of itself.
//! Works before the agent's first start (`--pre`) and while it runs.

pub(super) mod probe;

use super::output::{Printer, Style};
use super::table::{Cell, Paint, Table, clean, paint};
use super::{CliError, Exit};
use crate::admin::{Check, Client, ClientError, Outcome};
use probe::Facts;

#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct CheckArgs {
    /// Check what must be there before the first start: this machine, or with --cluster a cluster
    #[arg(long)]
    pre: bool,
}

impl CheckArgs {
    /// Whether it is about what must be there before anything runs.
    pub(super) fn before(&self) -> bool {
        self.pre
    }
}

pub(super) async fn run(client: &Client, printer: Printer, args: &CheckArgs) -> Result<Exit, CliError> {
    let facts = Facts::read();
    let mut checks = probe::machine(&facts);
    let mut unreachable = false;
    if args.pre {
        checks.extend(probe::ports());
    } else {
        match client.get::<Vec<Check>>("check").await {
            Ok(own) => {
                let path = client.place();
                checks.push(Check::pass("agent", "answers", path));
                checks.extend(own);
            }
            Err(error @ (ClientError::Unreachable { .. } | ClientError::Answer { .. })) => {
                unreachable = true;
                let remedy = "start the agent, or check the machine alone with `mesh-agent check --pre`";
                checks.push(Check::fail("agent", "answers", error.to_string(), remedy));
            }
            Err(error) => return Err(error.into()),
        }
    }
    printer.print(&checks, |checks, style| draw(checks, style))?;
    Ok(exit(&checks, unreachable))
}

/// A machine that lacks something is worth more to a script than an agent that cannot run on it.
fn exit(checks: &[Check], unreachable: bool) -> Exit {
    let failed = checks.iter().filter(|check| check.outcome == Outcome::Fail).count();
    match (unreachable, failed) {
        (true, 1) => Exit::Unreachable,
        (_, 0) => Exit::Good,
        _ => Exit::No,
    }
}

pub(super) fn draw(checks: &[Check], style: Style) -> String {
    let mut groups: Vec<&str> = Vec::new();
    for check in checks {
        if !groups.contains(&check.group.as_str()) {
            groups.push(&check.group);
        }
    }
    let mut out = String::new();
    for group in groups {
        out.push_str(&format!("{}\n", paint(&clean(group), Some(Paint::Strong).filter(|_| style.colour))));
        let mut table = Table::plain(2);
        for check in checks.iter().filter(|check| check.group == group) {
            let (mark, colour) = match check.outcome {
                Outcome::Pass => ("ok", Paint::Good),
                Outcome::Warn => ("warn", Paint::Warn),
                Outcome::Fail => ("FAIL", Paint::Bad),
            };
            table.row(vec![Cell::painted(mark, colour), Cell::new(&check.name), Cell::new(&check.detail)]);
            if let Some(remedy) = &check.remedy {
                table.row(vec![
                    Cell::new(" "),
                    Cell::new(" "),
                    Cell::painted(format!("-> {remedy}"), colour),
                ]);
            }
        }
        out.push_str(&table.draw(style));
        out.push('\n');
    }
    out.push_str(&summary(checks, style));
    out
}

fn summary(checks: &[Check], style: Style) -> String {
    let count = |outcome| checks.iter().filter(|check| check.outcome == outcome).count();
    let (failed, warned) = (count(Outcome::Fail), count(Outcome::Warn));
    let (text, colour) = match (failed, warned) {
        (0, 0) => (format!("All {} checks passed.", checks.len()), Paint::Good),
        (0, _) => (format!("No check failed, {warned} with a warning."), Paint::Warn),
        _ => (format!("{failed} of {} checks failed.", checks.len()), Paint::Bad),
    };
    paint(&text, Some(colour).filter(|_| style.colour)) + "\n"
}

#[cfg(test)]
mod tests;
