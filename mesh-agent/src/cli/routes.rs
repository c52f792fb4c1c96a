//! `mesh-agent routes SRC HOST[:PORT]`: what a workload's connections and requests to a host meet, in the order in which
//! it is tried.

use super::output::{Printer, Style};
use super::table::{Cell, Paint, Table, clean};
use super::{CliError, Exit};
use crate::admin::{Client, ExplainQuery, RoutesView, RuleView};

#[derive(Clone, Debug, clap::Args)]
pub(super) struct RoutesArgs {
    /// Whose requests: NAMESPACE/NAME, NAME.NAMESPACE or a pod's address
    #[arg(value_name = "SRC")]
    source: String,
    /// To which Service: by name, host name or VIP
    #[arg(value_name = "HOST[:PORT]")]
    host: String,
}

impl RoutesArgs {
    pub(super) fn source(&self) -> &str {
        &self.source
    }
}

pub(super) async fn run(client: &Client, printer: Printer, args: &RoutesArgs) -> Result<Exit, CliError> {
    let query = ExplainQuery::parse(&args.source, &args.host)?;
    let routes: RoutesView = client.get(&format!("routes?{}", query.to_url())).await?;
    printer.show(&routes, draw)
}

pub(super) fn draw(routes: &RoutesView, style: Style) -> String {
    let mut facts = Table::plain(0);
    let mut fact = |name: &str, value: Cell| facts.row(vec![Cell::painted(name, Paint::Dim), value]);
    fact("Source", Cell::new(&routes.source));
    fact("Service", Cell::new(format!("{}:{}", routes.service, routes.port)));
    let by = routes.policy.object.as_deref().unwrap_or("nobody's DestinationRule");
    fact("Balance", Cell::new(format!("{} ({by})", routes.policy.balance)));
    for setting in &routes.policy.settings {
        fact("Bounds", Cell::new(setting));
    }
    let mut out = facts.draw(style);
    if !routes.connections.is_empty() {
        out.push_str("\nRules for connections\n");
        list(&mut out, &routes.connections);
    }
    if routes.connections.is_empty() || !routes.rules.is_empty() {
        out.push_str("\nRules, in the order they are tried\n");
        if routes.rules.is_empty() {
            out.push_str("  none: every request goes to an endpoint of the Service\n");
        }
        list(&mut out, &routes.rules);
    }
    for note in &routes.notes {
        out.push_str(&format!("note: {}\n", clean(note)));
    }
    out
}

fn list(out: &mut String, rules: &[RuleView]) {
    for (index, rule) in rules.iter().enumerate() {
        out.push_str(&format!("{:>3}  {}\n", index + 1, title(rule)));
        for line in lines(rule) {
            out.push_str(&format!("       {line}\n"));
        }
    }
}

pub(super) fn title(rule: &RuleView) -> String {
    format!("{} {}", clean(&rule.object), clean(&rule.rule))
}

/// Its matches, what it does, and with what.
pub(super) fn lines(rule: &RuleView) -> Vec<String> {
    let mut lines = Vec::new();
    if rule.matches.is_empty() {
        lines.push("everything".to_owned());
    }
    for (index, one) in rule.matches.iter().enumerate() {
        lines.push(format!("{}{}", if index == 0 { "if " } else { "or " }, clean(one)));
    }
    lines.extend(rule.action.iter().map(|one| format!("=> {}", clean(one))));
    lines.extend(rule.options.iter().map(|one| format!("with {}", clean(one))));
    lines
}
