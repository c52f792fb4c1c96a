//! `mesh-agent workloads`.

use super::output::{Printer, Style};
use super::table::{Cell, Paint, Table};
use super::{CliError, Exit, NamespaceArgs};
use crate::admin::{Client, Enrolment, WorkloadView};

pub(super) async fn run(client: &Client, printer: Printer, args: &NamespaceArgs) -> Result<Exit, CliError> {
    let mut all: Vec<WorkloadView> = client.get("workloads").await?;
    all.retain(|workload| args.takes(&workload.namespace));
    printer.show(&all, |all, style| draw(all, style))
}

pub(super) fn draw(all: &[WorkloadView], style: Style) -> String {
    let mut headers = vec!["NAMESPACE", "NAME", "ADDRESS", "NODE", "MESH", "MTLS", "IDENTITY"];
    if style.wide {
        headers.extend(["LISTENING", "NETNS"]);
    }
    if all.iter().any(|workload| workload.problem.is_some()) {
        headers.push("PROBLEM");
    }
    let problems = headers.contains(&"PROBLEM");
    let mut table = Table::new(&headers);
    for workload in all {
        let addresses: Vec<String> = workload.addresses.iter().map(ToString::to_string).collect();
        // One address keeps the table narrow; the other family's is in -o wide.
        let shown =
            if style.wide { addresses.join(",") } else { addresses.first().cloned().unwrap_or_default() };
        let mut row = vec![
            Cell::new(&workload.namespace),
            Cell::new(&workload.name),
            Cell::new(shown),
            Cell::new(&workload.node),
            enrolment(workload.enrolment),
            Cell::new(if workload.enrolment == Enrolment::Off { "" } else { &workload.mtls }),
            Cell::new(identity(workload, style.wide)),
        ];
        if style.wide {
            let ports: Vec<String> = workload.listening.iter().map(u16::to_string).collect();
            row.extend([Cell::new(ports.join(",")), Cell::new(workload.netns.clone().unwrap_or_default())]);
        }
        if problems {
            row.push(match &workload.problem {
                Some(problem) => Cell::painted(problem, Paint::Bad),
                None => Cell::new(""),
            });
        }
        table.row(row);
    }
    table.draw_or(style, "No workloads.")
}

fn identity(workload: &WorkloadView, full: bool) -> String {
    if full { workload.identity.to_string() } else { format!("sa/{}", workload.identity.service_account()) }
}

fn enrolment(enrolment: Enrolment) -> Cell {
    match enrolment {
        Enrolment::Captured => Cell::painted("captured", Paint::Good),
        Enrolment::Pending => Cell::painted("pending", Paint::Warn),
        Enrolment::Remote => Cell::new("remote"),
        Enrolment::Off => Cell::painted("off", Paint::Dim),
    }
}
