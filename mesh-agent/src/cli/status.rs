//! `mesh-agent status`.

use super::human::{age, count};
use super::output::{Printer, Style};
use super::table::{Cell, Paint, Table, clean, paint};
use super::{CliError, Exit};
use crate::admin::{Client, Severity, State, Status};

pub(super) async fn run(client: &Client, printer: Printer) -> Result<Exit, CliError> {
    let status: Status = client.get("status").await?;
    printer.print(&status, draw)?;
    Ok(if status.state == State::Ready { Exit::Good } else { Exit::No })
}

pub(super) fn draw(status: &Status, style: Style) -> String {
    let mut out = facts(status, style).draw(style);
    if !status.limits.is_empty() && (style.wide || status.limits.iter().any(|limit| limit.hits > 0)) {
        let mut table = Table::new(&["LIMIT", "USED", "MAX", "HITS"]);
        for limit in status.limits.iter().filter(|limit| style.wide || limit.hits > 0) {
            let hits = limit.hits.to_string();
            table.row(vec![
                Cell::new(&limit.name),
                Cell::new(limit.used.map(|used| used.to_string()).unwrap_or_default()),
                Cell::new(limit.max.to_string()),
                if limit.hits > 0 { Cell::painted(hits, Paint::Warn) } else { Cell::new(hits) },
            ]);
        }
        out.push('\n');
        out.push_str(&table.draw(style));
    }
    for diagnostic in &status.source.diagnostics {
        let (word, colour) = match diagnostic.severity {
            Severity::Warning => ("warning", Paint::Warn),
            Severity::Error => ("error", Paint::Bad),
        };
        out.push_str(&format!(
            "\n{}: {}: {}: {}\n  {}\n",
            paint(word, Some(colour).filter(|_| style.colour)),
            clean(&diagnostic.object),
            clean(&diagnostic.field),
            clean(&diagnostic.message),
            clean(&diagnostic.remedy),
        ));
    }
    out
}

fn facts(status: &Status, style: Style) -> Table {
    let mut table = Table::plain(0);
    let mut fact =
        |name: &str, value: Cell| table.row(vec![Cell::painted(format!("{name}:"), Paint::Dim), value]);
    fact("Node", Cell::painted(&status.node, Paint::Strong));
    let life = format!("up {}, pid {}", age(status.started.until(style.now)), status.pid);
    fact(
        "State",
        match status.state {
            State::Ready => Cell::painted(format!("ready ({life})"), Paint::Good),
            State::Starting => {
                Cell::painted(format!("starting: {} ({life})", status.missing.join("; ")), Paint::Warn)
            }
            State::Draining => Cell::painted(format!("draining ({life})"), Paint::Warn),
        },
    );
    fact("Version", Cell::new(&status.version));
    fact("Trust domain", Cell::new(&status.trust_domain));
    fact("Workers", Cell::new(status.workers.to_string()));
    let capture = &status.capture;
    fact(
        "Capture",
        match (&capture.problem, capture.attached) {
            (Some(problem), _) => Cell::painted(problem, Paint::Bad),
            (None, true) => Cell::new(format!("attached ({}, ABI {})", capture.bpf_dir, capture.abi)),
            (None, false) => Cell::painted("not attached", Paint::Bad),
        },
    );
    fact("Source", source(status, style));
    let pods = &status.workloads;
    let text = format!("{} known, {} on this node, {} enrolled", pods.known, pods.local, pods.enrolled);
    fact("Workloads", Cell::new(text));
    fact("Services", Cell::new(status.services.to_string()));
    fact("Policies", Cell::new(status.policies.to_string()));
    let certs = status.certificates;
    let text = format!("{} of {} valid", certs.valid, certs.total);
    let all = certs.valid == certs.total;
    fact("Certificates", if all { Cell::new(text) } else { Cell::painted(text, Paint::Warn) });
    fact("Connections", connections(status));
    table
}

fn source(status: &Status, style: Style) -> Cell {
    let source = &status.source;
    let version = source.world_version;
    if let Some(since) = source.stale_since {
        let text = format!("{}, version {version}, STALE for {}", source.from, age(since.until(style.now)));
        return Cell::painted(text, Paint::Bad);
    }
    let loaded = age(source.loaded.until(style.now));
    let text = format!("{}, version {version}, loaded {loaded} ago", source.from);
    match source.diagnostics.len() {
        0 => Cell::new(text),
        problems => Cell::painted(format!("{text}, {}", count(problems, "problem", "problems")), Paint::Warn),
    }
}

fn connections(status: &Status) -> Cell {
    let total: u64 = status.connections.values().sum();
    let parts: Vec<String> =
        status.connections.iter().filter(|(_, n)| **n > 0).map(|(path, n)| format!("{n} {path}")).collect();
    Cell::new(if parts.is_empty() { total.to_string() } else { format!("{total} ({})", parts.join(", ")) })
}
