//! Each verb's answer from many agents. Lists are joined: what a node knows best comes from that node.
//! Called by `cli::cluster`.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::fleet::{Answer, Fleet, Member};
use super::{Target, health};
use crate::admin::{
    CertView, Client, ClientError, ConnView, PolicyView, PortView, ServiceView, State, Status, Version,
    WorkloadView,
};
use crate::cli::output::{Printer, Style};
use crate::cli::table::{Cell, Paint, Table};
use crate::cli::{
    CliError, Exit, Verb, analyze, certs, connections, explain, policies, routes, services, status, version,
    workloads,
};

/// Asks the agents of the cluster.
pub(in crate::cli) async fn answer(verb: Verb, printer: Printer) -> Result<Exit, CliError> {
    let Some(target) = verb.target().cloned() else { return Ok(Exit::Usage) };
    let kube = target.connect().await?;
    if let Verb::Check(asked) = &verb {
        return health::run(&kube, &target, printer, asked.args.before()).await;
    }
    let fleet = Fleet::find(&kube, &target).await?;
    match verb {
        Verb::Status(_) => one_or_all(&fleet, &target, printer).await,
        Verb::Workloads(asked) => {
            let (mut all, exit) = joined(&fleet, "workloads", join_workloads).await?;
            all.retain(|workload| asked.args.takes(&workload.namespace));
            printer.print(&all, |all, style| workloads::draw(all, style))?;
            Ok(exit)
        }
        Verb::Services(asked) => {
            let (mut all, exit) = joined(&fleet, "services", join_services).await?;
            all.retain(|service| asked.args.takes(&service.namespace));
            printer.print(&all, |all, style| services::draw(all, style))?;
            Ok(exit)
        }
        Verb::Policies(asked) => {
            let (mut all, exit) = joined(&fleet, "policies", join_policies).await?;
            all.retain(|policy| asked.args.takes(&policy.namespace));
            printer.print(&all, |all, style| policies::draw(all, style))?;
            Ok(exit)
        }
        Verb::Certs(_) => {
            let (all, exit) = joined::<CertView>(&fleet, "certs", concatenate).await?;
            printer.print(&all, |all, style| certs::draw(all, style))?;
            Ok(exit)
        }
        Verb::Connections(asked) => {
            let (mut all, exit) = joined::<ConnView>(&fleet, "connections", concatenate).await?;
            all.retain(|conn| asked.args.takes(conn));
            printer.print(&all, |all, style| connections::draw(all, style))?;
            Ok(exit)
        }
        Verb::Explain(asked) => {
            let client = agent_of(&fleet, asked.args.source()).await?;
            explain::run(&client, printer, &asked.args).await
        }
        Verb::Routes(asked) => {
            let client = agent_of(&fleet, asked.args.source()).await?;
            routes::run(&client, printer, &asked.args).await
        }
        // Every agent reads the same objects: any of them will do.
        Verb::Analyze(_) => {
            let answers: Vec<Answer<Status>> = fleet.get("status").await;
            let mut failed = None;
            for answer in answers {
                match answer.result {
                    Ok(status) => return analyze::report(&status.source.diagnostics, printer),
                    Err(error) => failed = Some(error),
                }
            }
            failed.map_or(Ok(Exit::Unreachable), |error| Err(error.into()))
        }
        Verb::Version(_) => versions(&fleet, printer).await,
        _ => Ok(Exit::Usage),
    }
}

/// All answers to one view, joined. An agent that does not answer is named and makes the end a bad one.
async fn joined<T: DeserializeOwned>(
    fleet: &Fleet,
    view: &str,
    join: impl FnOnce(Vec<Vec<T>>) -> Vec<T>,
) -> Result<(Vec<T>, Exit), CliError> {
    let answers: Vec<Answer<Vec<T>>> = fleet.get(view).await;
    let mut lists = Vec::new();
    let mut failed: Option<ClientError> = None;
    for answer in answers {
        match answer.result {
            Ok(list) => lists.push(list),
            Err(error) => {
                if let Some(before) = failed.replace(error) {
                    eprintln!("mesh-agent: {before}");
                }
            }
        }
    }
    match failed {
        Some(error) if lists.is_empty() => Err(error.into()),
        Some(error) => {
            eprintln!("mesh-agent: {error}");
            Ok((join(lists), Exit::Unreachable))
        }
        None => Ok((join(lists), Exit::Good)),
    }
}

fn concatenate<T>(lists: Vec<Vec<T>>) -> Vec<T> {
    lists.into_iter().flatten().collect()
}

/// Every agent knows all workloads; how one is enrolled only its own node's does.
fn join_workloads(lists: Vec<Vec<WorkloadView>>) -> Vec<WorkloadView> {
    let mut all: BTreeMap<(String, String), WorkloadView> = BTreeMap::new();
    for workload in concatenate(lists) {
        let key = (workload.namespace.clone(), workload.name.clone());
        if workload.local || !all.contains_key(&key) {
            all.insert(key, workload);
        }
    }
    all.into_values().collect()
}

fn join_services(lists: Vec<Vec<ServiceView>>) -> Vec<ServiceView> {
    let mut all: BTreeMap<(String, String), ServiceView> = BTreeMap::new();
    for service in concatenate(lists) {
        match all.entry((service.namespace.clone(), service.name.clone())) {
            Entry::Vacant(place) => drop(place.insert(service)),
            Entry::Occupied(mut known) => known.get_mut().ports.iter_mut().for_each(|port| {
                join_endpoints(port, &service);
            }),
        }
    }
    all.into_values().collect()
}

/// Each agent tells how endpoints stand with the pods of its own node.
fn join_endpoints(port: &mut PortView, other: &ServiceView) {
    let others = other.ports.iter().filter(|other| other.port == port.port);
    for other in others.flat_map(|other| &other.endpoints) {
        if let Some(known) = port.endpoints.iter_mut().find(|known| known.address == other.address) {
            let sum = known.active.unwrap_or(0).saturating_add(other.active.unwrap_or(0));
            known.active = known.active.or(other.active).map(|_| sum);
            let ejected = other.ejected.iter().flatten().cloned();
            known.ejected.get_or_insert_default().extend(ejected);
        }
    }
}

/// Each agent names the workloads of its own node.
fn join_policies(lists: Vec<Vec<PolicyView>>) -> Vec<PolicyView> {
    let mut all: BTreeMap<(String, String, String), PolicyView> = BTreeMap::new();
    for policy in concatenate(lists) {
        let key = (policy.kind.clone(), policy.namespace.clone(), policy.name.clone());
        if let Some(known) = all.get_mut(&key) {
            known.workloads.extend(policy.workloads);
            known.workloads.sort();
            known.workloads.dedup();
        } else {
            all.insert(key, policy);
        }
    }
    all.into_values().collect()
}

/// The agent that decides for what `source` opens: the one of its node.
async fn agent_of(fleet: &Fleet, source: &str) -> Result<Client, CliError> {
    if let [only] = fleet.members.as_slice() {
        return Ok(only.client.clone());
    }
    let mut failed = None;
    for member in &fleet.members {
        match member.client.get::<Vec<WorkloadView>>("workloads").await {
            Ok(all) => return Ok(choose(fleet, member, &all, source).client.clone()),
            Err(error) => failed = Some(error),
        }
    }
    match failed {
        Some(error) => Err(error.into()),
        None => Err(CliError::Cluster { cause: "no agent".to_owned(), remedy: "is the mesh installed?" }),
    }
}

/// Whoever it is, somebody must answer: one that does not know the source says so best.
fn choose<'a>(fleet: &'a Fleet, asked: &'a Member, all: &[WorkloadView], source: &str) -> &'a Member {
    let node = all.iter().find(|workload| names(workload, source)).map(|workload| workload.node.as_str());
    node.and_then(|node| fleet.member(node)).unwrap_or(asked)
}

/// Whether the text is one of the ways in which `explain` takes a workload.
fn names(workload: &WorkloadView, text: &str) -> bool {
    let (namespace, name) = (&workload.namespace, &workload.name);
    text == format!("{namespace}/{name}")
        || text == format!("{name}.{namespace}")
        || text.parse().is_ok_and(|address| workload.addresses.contains(&address))
}

/// One row of `status` over many nodes.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct NodeStatus {
    pub(super) node: String,
    /// None where it did not answer.
    pub(super) status: Option<Status>,
    pub(super) problem: Option<String>,
}

async fn one_or_all(fleet: &Fleet, target: &Target, printer: Printer) -> Result<Exit, CliError> {
    if target.node.is_some()
        && let [only] = fleet.members.as_slice()
    {
        return status::run(&only.client, printer).await;
    }
    let rows: Vec<NodeStatus> = fleet
        .get::<Status>("status")
        .await
        .into_iter()
        .map(|answer| match answer.result {
            Ok(status) => NodeStatus { node: answer.node, status: Some(status), problem: None },
            Err(error) => NodeStatus { node: answer.node, status: None, problem: Some(error.to_string()) },
        })
        .collect();
    printer.print(&rows, |rows, style| draw(rows, style))?;
    let ready = |row: &NodeStatus| row.status.as_ref().is_some_and(|status| status.state == State::Ready);
    Ok(match (rows.iter().any(|row| row.status.is_some()), rows.iter().all(ready)) {
        (false, _) => Exit::Unreachable,
        (true, true) => Exit::Good,
        (true, false) => Exit::No,
    })
}

pub(super) fn draw(rows: &[NodeStatus], style: Style) -> String {
    let mut table = Table::new(&[
        "NODE",
        "STATE",
        "VERSION",
        "ENROLLED",
        "CERTIFICATES",
        "CONNECTIONS",
        "WORLD",
        "PROBLEM",
    ]);
    for row in rows {
        let Some(status) = &row.status else {
            let blank = || Cell::new("");
            let problem = Cell::painted(row.problem.as_deref().unwrap_or_default(), Paint::Bad);
            let gone = Cell::painted("unreachable", Paint::Bad);
            table.row(vec![Cell::new(&row.node), gone, blank(), blank(), blank(), blank(), blank(), problem]);
            continue;
        };
        let state = match status.state {
            State::Ready => Cell::painted("ready", Paint::Good),
            State::Starting => Cell::painted("starting", Paint::Warn),
            State::Draining => Cell::painted("draining", Paint::Warn),
        };
        let certs = status.certificates;
        let text = format!("{} of {}", certs.valid, certs.total);
        table.row(vec![
            Cell::new(&row.node),
            state,
            Cell::new(&status.version),
            Cell::new(format!("{} of {}", status.workloads.enrolled, status.workloads.local)),
            if certs.valid == certs.total { Cell::new(text) } else { Cell::painted(text, Paint::Warn) },
            Cell::new(status.connections.values().sum::<u64>().to_string()),
            Cell::new(status.source.world_version.to_string()),
            Cell::painted(problems(status), Paint::Warn),
        ]);
    }
    table.draw_or(style, "No agents.")
}

/// What of a node's status wants a look; `status --node` shows it in full.
fn problems(status: &Status) -> String {
    let mut words: Vec<String> = Vec::new();
    words.extend(status.capture.problem.clone());
    words.extend(status.source.stale_since.map(|_| "its source is stale".to_owned()));
    words.extend(status.missing.iter().cloned());
    match status.source.diagnostics.len() {
        0 => {}
        count => words.push(crate::cli::human::count(count, "diagnostic", "diagnostics")),
    }
    words.join("; ")
}

/// `version` over many nodes.
#[derive(Debug, Serialize)]
struct NodeVersions {
    client: Version,
    agents: BTreeMap<String, Version>,
}

async fn versions(fleet: &Fleet, printer: Printer) -> Result<Exit, CliError> {
    let mut exit = Exit::Good;
    let mut agents = BTreeMap::new();
    for answer in fleet.get::<Version>("version").await {
        match answer.result {
            Ok(version) => {
                agents.insert(answer.node, version);
            }
            Err(error) => {
                eprintln!("mesh-agent: {error}");
                exit = Exit::Unreachable;
            }
        }
    }
    printer.print(&NodeVersions { client: Version::own(), agents }, |all, style| {
        let mut table = Table::plain(0);
        table.row(vec![Cell::new("Client:"), Cell::new(&all.client.version)]);
        for (node, found) in &all.agents {
            table.row(vec![Cell::new(format!("{node}:")), Cell::new(version::text(found))]);
        }
        table.draw(style)
    })?;
    Ok(exit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::Enrolment;
    use crate::admin::fixtures::views;

    /// A pod is "remote" to every agent but its own, whoever answers first.
    #[test]
    fn a_workload_is_shown_as_its_own_node_sees_it() {
        let mut here = views().workloads[0].clone();
        here.local = true;
        here.enrolment = Enrolment::Captured;
        let mut there = here.clone();
        there.local = false;
        there.enrolment = Enrolment::Remote;
        for lists in [[vec![here.clone()], vec![there.clone()]], [vec![there], vec![here.clone()]]] {
            assert_eq!(join_workloads(lists.into()), [here.clone()]);
        }
    }

    #[test]
    fn a_policy_names_the_workloads_of_all_nodes() {
        let mut one = views().policies[0].clone();
        one.workloads = vec!["shop/b".into()];
        let mut other = one.clone();
        other.workloads = vec!["shop/a".into(), "shop/b".into()];
        let all = join_policies(vec![vec![one], vec![other]]);
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].workloads, ["shop/a", "shop/b"]);
    }

    #[test]
    fn a_source_is_found_by_each_of_its_names() {
        let workload = views().workloads[0].clone();
        let (namespace, name) = (&workload.namespace, &workload.name);
        let address = workload.addresses[0].to_string();
        for text in [format!("{namespace}/{name}"), format!("{name}.{namespace}"), address] {
            assert!(names(&workload, &text), "{text}");
        }
        assert!(!names(&workload, name));
    }

    #[test]
    fn a_node_that_does_not_answer_is_a_row_of_the_status() {
        let rows = [
            NodeStatus { node: "node-a".into(), status: Some(views().status), problem: None },
            NodeStatus { node: "node-b".into(), status: None, problem: Some("no route".into()) },
        ];
        let now = crate::admin::Timestamp(1_767_237_120);
        let text = draw(&rows, Style { colour: false, wide: false, now });
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].starts_with("node-a") && lines[1].contains("ready"), "{text}");
        assert!(lines[2].starts_with("node-b   unreachable") && lines[2].ends_with("no route"), "{text}");
    }
}
