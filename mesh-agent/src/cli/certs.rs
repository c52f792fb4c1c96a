//! `mesh-agent certs`.

use super::human::age;
use super::output::{Printer, Style};
use super::table::{Cell, Paint, Table};
use super::{CliError, Exit};
use crate::admin::{CertState, CertView, Client, Timestamp};

pub(super) async fn run(client: &Client, printer: Printer) -> Result<Exit, CliError> {
    let all: Vec<CertView> = client.get("certs").await?;
    printer.show(&all, |all, style| draw(all, style))
}

pub(super) fn draw(all: &[CertView], style: Style) -> String {
    let mut headers = vec!["IDENTITY", "STATE", "AGE", "ENDS IN", "RENEWS IN"];
    if style.wide {
        headers.extend(["SERIAL", "NOT BEFORE", "NOT AFTER"]);
    }
    if all.iter().any(|cert| cert.problem.is_some()) {
        headers.push("PROBLEM");
    }
    let problems = headers.contains(&"PROBLEM");
    let mut table = Table::new(&headers);
    for cert in all {
        let (word, paint) = match cert.state {
            CertState::Valid => ("valid", Paint::Good),
            CertState::Failing => ("failing", Paint::Warn),
            CertState::Pending => ("pending", Paint::Warn),
            CertState::Expired => ("expired", Paint::Bad),
        };
        let ahead = |time: Option<Timestamp>| {
            time.map_or_else(String::new, |time| match style.now.until(time) {
                left if left.is_zero() => "now".to_owned(),
                left => age(left),
            })
        };
        let since = cert.not_before.map_or_else(String::new, |time| age(time.until(style.now)));
        let mut row = vec![
            Cell::new(cert.identity.to_string()),
            Cell::painted(word, paint),
            Cell::new(since),
            Cell::new(ahead(cert.not_after)),
            Cell::new(ahead(cert.renews)),
        ];
        if style.wide {
            let time =
                |time: Option<Timestamp>| Cell::new(time.map(|time| time.to_string()).unwrap_or_default());
            let serial = Cell::new(cert.serial.clone().unwrap_or_default());
            row.extend([serial, time(cert.not_before), time(cert.not_after)]);
        }
        if problems {
            row.push(match &cert.problem {
                Some(problem) => Cell::painted(problem, Paint::Bad),
                None => Cell::new(""),
            });
        }
        table.row(row);
    }
    table.draw_or(style, "No certificates: no pod of this node is enrolled.")
}
