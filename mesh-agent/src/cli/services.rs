//! `mesh-agent services`.

use super::output::{Printer, Style};
use super::table::{Cell, Paint, Table};
use super::{CliError, Exit, NamespaceArgs};
use crate::admin::{Client, EndpointView, ServiceView};

pub(super) async fn run(client: &Client, printer: Printer, args: &NamespaceArgs) -> Result<Exit, CliError> {
    let mut all: Vec<ServiceView> = client.get("services").await?;
    all.retain(|service| args.takes(&service.namespace));
    printer.show(&all, |all, style| draw(all, style))
}

pub(super) fn draw(all: &[ServiceView], style: Style) -> String {
    let mut headers = vec!["NAMESPACE", "NAME", "VIP", "PORT", "PROTOCOL", "READY"];
    if style.wide {
        headers.extend(["BALANCE", "HOSTNAME", "ENDPOINTS"]);
    }
    let mut table = Table::new(&headers);
    for service in all {
        let vips: Vec<String> = service.vips.iter().map(ToString::to_string).collect();
        let vip = match (vips.first(), style.wide) {
            (None, _) => "headless".to_owned(),
            (Some(first), false) => first.clone(),
            (Some(_), true) => vips.join(","),
        };
        for port in &service.ports {
            let ready = port.endpoints.iter().filter(|endpoint| endpoint.ready).count();
            let ejected = port
                .endpoints
                .iter()
                .any(|endpoint| endpoint.ejected.as_ref().is_some_and(|by| !by.is_empty()));
            let text = format!("{ready}/{}", port.endpoints.len());
            let mut row = vec![
                Cell::new(&service.namespace),
                Cell::new(&service.name),
                Cell::new(&vip),
                Cell::new(if port.name.is_empty() {
                    port.port.to_string()
                } else {
                    format!("{} ({})", port.port, port.name)
                }),
                Cell::new(&port.protocol),
                Cell::painted(
                    text,
                    match ready {
                        0 => Paint::Bad,
                        some if some < port.endpoints.len() || ejected => Paint::Warn,
                        _ => Paint::Good,
                    },
                ),
            ];
            if style.wide {
                let endpoints: Vec<String> = port.endpoints.iter().map(endpoint).collect();
                row.extend([
                    Cell::new(&service.balance),
                    Cell::new(&service.hostname),
                    Cell::new(endpoints.join(" ")),
                ]);
            }
            table.row(row);
        }
    }
    table.draw_or(style, "No services.")
}

fn endpoint(endpoint: &EndpointView) -> String {
    let mut known: Vec<String> = endpoint.path.iter().map(ToString::to_string).collect();
    known.extend(endpoint.active.filter(|active| *active > 0).map(|active| format!("{active} active")));
    known.extend(endpoint.ejected.iter().flatten().map(|ejection| {
        let subset =
            ejection.subset.as_ref().map_or_else(String::new, |subset| format!(" in subset {subset}"));
        format!("ejected by {}{subset} until {}", ejection.by, ejection.until)
    }));
    let ready = if endpoint.ready { "" } else { "!" };
    match known.is_empty() {
        true => format!("{ready}{}", endpoint.address),
        false => format!("{ready}{}({})", endpoint.address, known.join(", ")),
    }
}
