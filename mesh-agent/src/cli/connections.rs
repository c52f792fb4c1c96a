//! `mesh-agent connections`.

use std::time::Duration;

use super::human::{age, bytes, micros};
use super::output::{Printer, Style};
use super::table::{Cell, Paint, Table};
use super::{CliError, Exit};
use crate::admin::{Client, ConnView, PartyView};
use crate::observe::Path;

#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct ConnectionsArgs {
    /// Only connections from or to this workload (NAMESPACE/NAME) or address
    #[arg(short, long, value_name = "NAME")]
    workload: Option<String>,
}

pub(super) async fn run(client: &Client, printer: Printer, args: &ConnectionsArgs) -> Result<Exit, CliError> {
    let mut all: Vec<ConnView> = client.get("connections").await?;
    all.retain(|conn| args.takes(conn));
    printer.show(&all, |all, style| draw(all, style))
}

impl ConnectionsArgs {
    pub(super) fn takes(&self, conn: &ConnView) -> bool {
        let Some(wanted) = self.workload.as_deref() else { return true };
        [&conn.source, &conn.destination].into_iter().any(|party| {
            party.workload.as_deref() == Some(wanted)
                || party.address.is_some_and(|address| address.ip().to_string() == wanted)
        })
    }
}

pub(super) fn draw(all: &[ConnView], style: Style) -> String {
    let mut headers = vec!["SOURCE", "DESTINATION", "PATH", "SENT", "RECEIVED", "AGE"];
    if style.wide {
        headers.extend(["DIRECTION", "STATE", "IDENTITY", "SERVICE", "HBONE", "RTT", "RETRANS", "DECISION"]);
    }
    let mut table = Table::new(&headers);
    for conn in all {
        let path = match conn.path {
            Path::Hbone => Cell::painted("hbone", Paint::Good),
            Path::Local | Path::Bypass => Cell::new(conn.path.label()),
            Path::Plain | Path::Passthrough => Cell::painted(conn.path.label(), Paint::Warn),
        };
        let time = Duration::try_from_secs_f64(conn.age_seconds).unwrap_or_default();
        let mut row = vec![
            Cell::new(conn.source.label()),
            Cell::new(destination(&conn.destination)),
            path,
            Cell::new(moved(conn, conn.bytes_sent)),
            Cell::new(moved(conn, conn.bytes_received)),
            Cell::new(age(time)),
        ];
        if style.wide {
            let text = |text: Option<String>| Cell::new(text.unwrap_or_default());
            row.extend([
                Cell::new(conn.direction.label()),
                Cell::new(if conn.established { "open" } else { "connecting" }),
                text(conn.source.identity.as_ref().map(ToString::to_string)),
                text(conn.service.clone()),
                text(conn.hbone_address.map(|address| address.to_string())),
                text(conn.rtt_us.map(micros)),
                text(conn.retransmits.map(|count| count.to_string())),
                text(conn.decision_id.clone()),
            ]);
        }
        table.row(row);
    }
    table.draw_or(style, "No connections.")
}

/// The workload with the port that was asked for.
fn destination(party: &PartyView) -> String {
    match (&party.workload, party.address) {
        (Some(workload), Some(address)) => format!("{workload}:{}", address.port()),
        _ => party.label(),
    }
}

/// A bypassed flow's bytes are the kernel's own affair until its end.
fn moved(conn: &ConnView, count: u64) -> String {
    if conn.path == Path::Bypass { "-".to_owned() } else { bytes(count) }
}
