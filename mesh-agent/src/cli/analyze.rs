//! `mesh-agent analyze [DIR]`: everything that compilation has to say, of manifests in a folder that no agent has
//! seen yet, or of what the agent reads now.

use std::path::PathBuf;

use super::output::{Printer, Style};
use super::table::{Cell, Paint, Table};
use super::{CliError, Exit};
use crate::admin::{Client, DiagnosticView, Severity, Status};
use crate::compile::{self, MeshSettings};
use crate::source::dir;

#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct AnalyzeArgs {
    /// A folder of manifests; without one, what the agent reads
    #[arg(value_name = "DIR")]
    directory: Option<PathBuf>,
    /// The namespace whose policies are mesh-wide
    #[arg(long, default_value = "istio-system", value_name = "NAME")]
    root_namespace: String,
}

impl AnalyzeArgs {
    pub(super) fn asks_nobody(&self) -> bool {
        self.directory.is_some()
    }
}

/// Ends with 1 where something is an error.
pub(super) async fn run(client: &Client, printer: Printer, args: &AnalyzeArgs) -> Result<Exit, CliError> {
    let found = match &args.directory {
        Some(directory) => {
            let root_namespace = args.root_namespace.as_str().into();
            let mesh = MeshSettings { root_namespace, ..MeshSettings::default() };
            dir::analyze(directory, mesh)?.iter().filter_map(view).collect()
        }
        None => client.get::<Status>("status").await?.source.diagnostics,
    };
    report(&found, printer)
}

pub(super) fn report(found: &[DiagnosticView], printer: Printer) -> Result<Exit, CliError> {
    printer.print(&found, |found, style| draw(found, style))?;
    let bad = found.iter().any(|one| one.severity == Severity::Error);
    Ok(if bad { Exit::No } else { Exit::Good })
}

fn view(found: &compile::Diagnostic) -> Option<DiagnosticView> {
    let severity = match found.severity {
        compile::Severity::Error => Severity::Error,
        compile::Severity::Warning => Severity::Warning,
        compile::Severity::Info => return None,
    };
    let effect = if found.effect.is_empty() { String::new() } else { format!("; {}", found.effect) };
    Some(DiagnosticView {
        severity,
        object: format!("{} ({})", found.object, found.source),
        field: found.field.clone(),
        message: format!("{}{effect}", found.message),
        remedy: found.remedy.clone(),
    })
}

pub(super) fn draw(found: &[DiagnosticView], style: Style) -> String {
    let mut table = Table::new(&["SEVERITY", "OBJECT", "FIELD", "FINDING", "REMEDY"]);
    for one in found {
        let severity = match one.severity {
            Severity::Error => Cell::painted("error", Paint::Bad),
            Severity::Warning => Cell::painted("warning", Paint::Warn),
        };
        table.row(vec![
            severity,
            Cell::new(&one.object),
            Cell::new(&one.field),
            Cell::new(&one.message),
            Cell::new(&one.remedy),
        ]);
    }
    table.draw_or(style, "No findings: everything is in force as it is written.")
}
