//! `mesh-agent status`.

use super::human::{age, count};
use super::output::{Printer, Style};
use super::table::{Cell, Paint, Table, clean, paint};
use super::{CliError, Exit};
use crate::admin::{Client, SettingView, Severity, State, Status};

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
    out.push_str(&kinds(status, style));
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

/// The kinds of a cluster: all of them when asked for, else those that fail.
fn kinds(status: &Status, style: Style) -> String {
    let mut out = String::new();
    if style.wide && !status.source.kinds.is_empty() {
        let mut table = Table::new(&["RESOURCE", "VERSION", "STATE", "OBJECTS"]);
        for kind in &status.source.kinds {
            let colour = if kind.problem.is_some() { Some(Paint::Bad) } else { None };
            table.row(vec![
                Cell::new(&kind.resource),
                Cell::new(kind.version.as_deref().unwrap_or("-")),
                colour.map_or_else(|| Cell::new(&kind.state), |colour| Cell::painted(&kind.state, colour)),
                Cell::new(kind.objects.to_string()),
            ]);
        }
        out.push('\n');
        out.push_str(&table.draw(style));
    }
    // One outage fails every kind with the same words.
    let mut told: Vec<&str> = Vec::new();
    for (problem, remedy) in
        status.source.kinds.iter().filter_map(|kind| Some((kind.problem.as_deref()?, &kind.remedy)))
    {
        if told.contains(&problem) {
            continue;
        }
        told.push(problem);
        let word = paint("error", Some(Paint::Bad).filter(|_| style.colour));
        let remedy = clean(remedy.as_deref().unwrap_or_default());
        out.push_str(&format!("\n{word}: {}\n  {remedy}\n", clean(problem)));
    }
    out
}

/// What of the mesh-wide settings is in force; none where nothing is set.
fn settings(status: &Status) -> Option<Cell> {
    let (in_force, not): (Vec<_>, Vec<_>) = status.settings.iter().partition(|setting| setting.in_force);
    let names = |list: &[&SettingView]| {
        list.iter().map(|setting| setting.field.as_str()).collect::<Vec<_>>().join(", ")
    };
    match (in_force.len(), not.len()) {
        (0, 0) => None,
        (_, 0) => Some(Cell::new(names(&in_force))),
        (0, _) => Some(Cell::painted(format!("NOT in force: {}", names(&not)), Paint::Warn)),
        _ => Some(Cell::painted(format!("{}; NOT in force: {}", names(&in_force), names(&not)), Paint::Warn)),
    }
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
    let absent: Vec<&str> = status
        .source
        .kinds
        .iter()
        .filter(|kind| kind.state == "not installed")
        .map(|kind| kind.resource.as_str())
        .collect();
    if !absent.is_empty() {
        fact("Not installed", Cell::new(absent.join(", ")));
    }
    if let Some(settings) = settings(status) {
        fact("Settings", settings);
    }
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
