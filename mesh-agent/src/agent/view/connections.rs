//! Rules for connections in words, and which of them an `explain` meets: by the same code as a connection does.

use super::routes::shares;
use crate::admin::{ConnectionStory, ExplainQuery, RuleView};
use crate::decide::Snapshot as _;
use crate::decide::outbound::{Routed, TcpPlan, routed, to_backend};
use crate::model::connection::{ConnMatch, ConnRule, ConnRules};
use crate::model::{AppProtocol, Reason, Workload};
use crate::world::World;

pub(super) fn view(rule: &ConnRule) -> RuleView {
    let weighted: Vec<_> = rule.backends.iter().map(|one| (one.weight, &one.backend)).collect();
    RuleView {
        object: rule.origin.object.to_string(),
        rule: rule.origin.rule.to_string(),
        matches: rule.matches.iter().map(matched).collect(),
        action: shares(&weighted, "refused"),
        options: Vec::new(),
    }
}

fn matched(one: &ConnMatch) -> String {
    let listed = |texts: Vec<String>| match texts.as_slice() {
        [only] => format!("= {only}"),
        several => format!("in {}", several.join(", ")),
    };
    let mut parts = Vec::new();
    if !one.sni.is_empty() {
        parts.push(format!("SNI {}", listed(one.sni.iter().map(ToString::to_string).collect())));
    }
    if !one.subnets.is_empty() {
        let subnets = one.subnets.iter().map(ToString::to_string).collect();
        parts.push(format!("destination {}", listed(subnets)));
    }
    parts.extend(one.port.map(|port| format!("port = {port}")));
    parts.extend(one.source_namespace.as_ref().map(|name| format!("source namespace = {name}")));
    parts.extend(one.source_labels.iter().map(|(key, value)| format!("source label {key} = {value}")));
    if parts.is_empty() { "everything".to_owned() } else { parts.join(" and ") }
}

/// How a rule is found among several, and what becomes of the rest.
pub(super) fn order(rules: &ConnRules) -> &'static str {
    match (rules.by_sni, rules.exclusive) {
        (true, true) => "the narrowest name decides; a connection that no rule takes is refused",
        (true, false) => "the narrowest name decides; a connection that no rule takes goes to the Service",
        (false, true) => "connections are relayed as bytes, whatever the port says",
        (false, false) => "a connection that no rule takes goes to the Service",
    }
}

/// Where rules lead a connection.
pub(super) struct Led {
    pub(super) story: ConnectionStory,
    /// None = where it dialled.
    pub(super) to: Option<Result<Vec<TcpPlan>, Reason>>,
    /// Backends that refuse what falls on them.
    pub(super) notes: Vec<String>,
}

/// None where no rules for connections hold for what is asked.
pub(super) fn lead(
    world: &World,
    source: &Workload,
    target: std::net::SocketAddr,
    query: &ExplainQuery,
) -> Option<Led> {
    // Only what is captured meets rules.
    let service = world.service_at(target.ip()).filter(|_| source.enrolled)?;
    let port = service.port(target.port())?;
    let rules = world.conn_rules(source, service, target.port())?;
    // A request is HTTP, which a port that says nothing is read as.
    if query.request.is_some() && !rules.exclusive && port.protocol == AppProtocol::Auto {
        return None;
    }
    let sni = rules.by_sni.then(|| sni(query)).flatten();
    let mut notes = Vec::new();
    let (rule, to) = match routed(world, source, target, sni.as_deref()) {
        Routed::AsDialled => (None, None),
        Routed::Nowhere => (None, Some(Err(Reason::NoRoute))),
        Routed::By(rule) => {
            let (mut plans, mut failed) = (Vec::new(), None);
            for one in &rule.backends {
                match to_backend(world, source, target, &one.backend) {
                    Ok(plan) => plans.push(plan),
                    Err(reason) => {
                        failed = failed.or(Some(reason));
                        let to = shares(&[(1, &one.backend)], "refused").join("");
                        notes.push(format!("{to}: {}", reason.row().hint));
                    }
                }
            }
            let to = if plans.is_empty() { Err(failed.unwrap_or(Reason::BackendInvalid)) } else { Ok(plans) };
            (Some(rule), Some(to))
        }
    };
    let outcome = match (&rule, &to) {
        (Some(rule), _) => view(rule).action.join(", "),
        (None, None) => format!("no rule takes it: it goes to an endpoint of {}", service.hostname),
        (None, Some(_)) => "no rule takes it: it is refused".to_owned(),
    };
    let story = ConnectionStory { sni, rule: rule.map(|rule| view(&rule)), outcome };
    Some(Led { story, to, notes })
}

/// What a client that was given the destination would ask for.
fn sni(query: &ExplainQuery) -> Option<String> {
    let written = query.destination.trim_end_matches('.').to_ascii_lowercase();
    let name = !written.contains(['/', ':']) && written.parse::<std::net::IpAddr>().is_err();
    query.sni.clone().or_else(|| name.then_some(written))
}
