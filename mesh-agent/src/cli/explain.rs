//! `mesh-agent explain SRC DST[:PORT] [METHOD PATH]`: the story of a connection, or a request, that has not happened yet.

use super::human::count;
use super::output::{Printer, Style};
use super::table::{Cell, Paint, Table, clean, paint};
use super::{CliError, Exit};
use crate::admin::{
    Client, ConnectionStory, ExplainQuery, Explanation, Match, PartyView, RequestStory, RouteView, RuleView,
};

#[derive(Clone, Debug, clap::Args)]
pub(super) struct ExplainArgs {
    /// Who connects: NAMESPACE/NAME, NAME.NAMESPACE or a pod's address
    #[arg(value_name = "SRC")]
    source: String,
    /// Where to: a workload, a Service (by name, host name or VIP) or any address
    #[arg(value_name = "DST[:PORT]")]
    destination: String,
    /// Of a request; without it a TCP connection is meant
    #[arg(value_name = "METHOD", requires = "path")]
    method: Option<String>,
    /// With its query
    #[arg(value_name = "PATH")]
    path: Option<String>,
    /// A header of the request, `NAME: VALUE`; may be given several times
    #[arg(short = 'H', long = "header", value_name = "HEADER", requires = "method")]
    headers: Vec<String>,
    /// The server's name in the ClientHello of a TLS connection; without it the destination's, as it is written
    #[arg(long, value_name = "NAME", conflicts_with = "method")]
    sni: Option<String>,
}

impl ExplainArgs {
    pub(super) fn source(&self) -> &str {
        &self.source
    }
}

pub(super) async fn run(client: &Client, printer: Printer, args: &ExplainArgs) -> Result<Exit, CliError> {
    let mut query = ExplainQuery::parse(&args.source, &args.destination)?;
    if let Some(name) = &args.sni {
        query = query.with_sni(name)?;
    }
    if let (Some(method), Some(path)) = (&args.method, &args.path) {
        query = query.with_request(method, path, &args.headers)?;
    }
    let explanation = client.explain(&query).await?;
    printer.print(&explanation, draw)?;
    Ok(if explanation.allowed { Exit::Good } else { Exit::No })
}

pub(super) fn draw(story: &Explanation, style: Style) -> String {
    let mut facts = Table::plain(0);
    let mut fact = |name: &str, value: Cell| facts.row(vec![Cell::painted(name, Paint::Dim), value]);
    party(&mut fact, "Source", &story.source);
    party(&mut fact, "Destination", &story.destination);
    route(&mut fact, &story.route);
    let mut out = facts.draw(style);
    if !story.route.endpoints.is_empty() && style.wide {
        out.push_str("\nEndpoints\n");
        out.push_str(&endpoints(&story.route).draw(style));
    }
    if let Some(connection) = &story.connection {
        out.push_str(&connection_lines(connection));
    }
    if let Some(request) = &story.http {
        out.push_str(&request_lines(request));
    }
    out.push_str("\nPolicies, in the order they are judged\n");
    out.push_str(&steps(story).draw_or(style, "  none: connections are allowed"));
    out.push('\n');
    out.push_str(&verdict(story, style));
    for note in &story.notes {
        out.push_str(&format!("note: {}\n", clean(note)));
    }
    out
}

fn connection_lines(connection: &ConnectionStory) -> String {
    let title = match &connection.sni {
        Some(name) => format!("TLS connection to {}", clean(name)),
        None => "Connection".to_owned(),
    };
    ruled(&title, connection.rule.as_ref(), &connection.outcome)
}

fn request_lines(request: &RequestStory) -> String {
    let title = format!("Request {} {}", clean(&request.method), clean(&request.path));
    ruled(&title, request.rule.as_ref(), &request.outcome)
}

/// Under a title, the rule that decides, or what happens without one.
fn ruled(title: &str, rule: Option<&RuleView>, outcome: &str) -> String {
    let mut out = format!("\n{title}\n");
    match rule {
        Some(rule) => {
            out.push_str(&format!("  {}\n", super::routes::title(rule)));
            for line in super::routes::lines(rule) {
                out.push_str(&format!("    {line}\n"));
            }
        }
        None => out.push_str(&format!("  {}\n", clean(outcome))),
    }
    out
}

fn party(fact: &mut impl FnMut(&str, Cell), name: &str, party: &PartyView) {
    let mut words = vec![party.label()];
    if party.workload.is_some() {
        words.extend(party.address_label());
    }
    words.extend(party.node.as_ref().map(|node| format!("on {node}")));
    fact(name, Cell::painted(words.join("  "), Paint::Strong));
    let identity =
        party.identity.as_ref().map_or_else(|| "none: outside the mesh".to_owned(), ToString::to_string);
    fact("  identity", Cell::new(identity));
}

fn route(fact: &mut impl FnMut(&str, Cell), route: &RouteView) {
    if let Some(service) = &route.service {
        let ready = route.endpoints.iter().filter(|endpoint| endpoint.ready).count();
        let endpoints = count(route.endpoints.len(), "endpoint", "endpoints");
        fact("Service", Cell::new(format!("{service}:{}  {endpoints}, {ready} ready", route.port)));
    }
    let path = route.path.map_or("refused", |path| path.label());
    fact("Path", Cell::new(format!("{path}: {}", route.why)));
}

fn endpoints(route: &RouteView) -> Table {
    let mut table = Table::plain(2);
    for endpoint in &route.endpoints {
        table.row(vec![
            Cell::new(endpoint.address.to_string()),
            Cell::new(endpoint.workload.clone().unwrap_or_default()),
            Cell::new(&endpoint.node),
            if endpoint.ready {
                Cell::painted("ready", Paint::Good)
            } else {
                Cell::painted("not ready", Paint::Warn)
            },
            Cell::new(endpoint.path.map_or("", |path| path.label())),
        ]);
    }
    table
}

fn steps(story: &Explanation) -> Table {
    let mut table = Table::plain(0);
    for step in &story.steps {
        let colour = if story.allowed { Paint::Good } else { Paint::Bad };
        let matched = match (step.matched, step.rule) {
            (Match::Matched, Some(rule)) => format!("match (rule {rule})"),
            (Match::Matched, None) => "match".to_owned(),
            (Match::NotMatched, _) => "no match".to_owned(),
            (Match::Ignored, _) => "ignored".to_owned(),
        };
        let cell = |text: &str| if step.decided { Cell::painted(text, colour) } else { Cell::new(text) };
        table.row(vec![
            // Two wide, so that the mark stands left of the list.
            cell(if step.decided { "=>" } else { "  " }),
            cell(&step.policy),
            cell(&step.action),
            cell(&matched),
            Cell::new(&step.detail),
        ]);
    }
    table
}

fn verdict(story: &Explanation, style: Style) -> String {
    let by = story.rule.as_ref().map_or_else(String::new, |rule| format!(" by {}", clean(rule)));
    let (word, colour) = if story.allowed { ("ALLOWED", Paint::Good) } else { ("DENIED", Paint::Bad) };
    let mut out = format!(
        "{}{by} (world version {})\n",
        paint(word, Some(colour).filter(|_| style.colour)),
        story.world_version
    );
    if let Some(reason) = &story.reason {
        let hint = story.hint.as_ref().map_or_else(String::new, |hint| format!(": {}", clean(hint)));
        out.push_str(&format!("  {}{hint}\n", clean(reason)));
    }
    out
}
