//! `mesh-agent policies`.

use super::output::{Printer, Style};
use super::table::{Cell, Paint, Table};
use super::{CliError, Exit, NamespaceArgs};
use crate::admin::{Client, PolicyView};

pub(super) async fn run(client: &Client, printer: Printer, args: &NamespaceArgs) -> Result<Exit, CliError> {
    let mut all: Vec<PolicyView> = client.get("policies").await?;
    all.retain(|policy| args.takes(&policy.namespace));
    printer.show(&all, |all, style| draw(all, style))
}

pub(super) fn draw(all: &[PolicyView], style: Style) -> String {
    let mut headers = vec!["NAMESPACE", "KIND", "NAME", "ACTION", "SCOPE", "RULES", "LOCAL", "STATE"];
    if style.wide {
        headers.push("WORKLOADS");
    }
    let mut table = Table::new(&headers);
    for policy in all {
        let state = match (&policy.invalid, policy.dry_run) {
            (Some(why), _) => Cell::painted(format!("invalid, denies: {why}"), Paint::Bad),
            (None, true) => Cell::painted("dry run", Paint::Warn),
            (None, false) => Cell::painted("in force", Paint::Good),
        };
        let mut row = vec![
            Cell::new(&policy.namespace),
            Cell::new(&policy.kind),
            Cell::new(&policy.name),
            Cell::new(&policy.action),
            Cell::new(&policy.scope),
            Cell::new(policy.rules.to_string()),
            Cell::new(policy.workloads.len().to_string()),
            state,
        ];
        if style.wide {
            row.push(Cell::new(policy.workloads.join(" ")));
        }
        table.row(row);
    }
    table.draw_or(style, "No policies: every connection is allowed, mutual TLS and plaintext.")
}
