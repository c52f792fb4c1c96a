//! The CLI against live agents.
use anyhow::{Context, Result, ensure};
use mesh_tests::agent::CliOutput;
use mesh_tests::{Agent, Lab, PodSpec, eventually};
use serde_json::{Value, json};

use crate::shop::{PATIENCE, PORT, Shop, rows};

const VERBS: [&[&str]; 9] = [
    &["status"],
    &["check"],
    &["workloads"],
    &["services"],
    &["policies"],
    &["certs"],
    &["connections"],
    &["explain", "shop/client", "shop/far:8080"],
    &["version"],
];

fn ask(agent: &Agent, verb: &[&str], format: &str) -> Result<CliOutput> {
    let mut arguments = verb.to_vec();
    arguments.extend(["-o", format]);
    agent.cli(&arguments)
}

fn row<'a>(answer: &'a Value, name: &str) -> Result<&'a Value> {
    rows(answer)?.iter().find(|row| row["name"] == name).with_context(|| format!("no {name} in {answer}"))
}

/// Every verb answers a live agent in every format; JSON and YAML say the same things by the same names.
#[test]
fn every_verb_in_every_format() -> Result<()> {
    let shop = Shop::new("verbs")?;
    shop.lab.manifests().mtls("shop", "STRICT")?;
    let agents = shop.lab.agents()?;
    let _live = shop.live()?;
    let _bypassed = shop.bypassed(&agents[0])?;
    for verb in VERBS {
        let mut said = Vec::new();
        for format in ["table", "wide", "json", "yaml"] {
            let output = ask(&agents[0], verb, format)?;
            ensure!(output.code == 0, "{verb:?} -o {format}: {output:?}");
            ensure!(output.stderr.is_empty(), "{verb:?} -o {format} complains: {}", output.stderr);
            ensure!(!output.stdout.contains('\u{1b}'), "{verb:?} -o {format}: colour without a terminal");
            ensure!(output.stdout.ends_with('\n'), "{verb:?} -o {format}: no newline at the end");
            said.push(output.stdout);
        }
        let (narrow, wide) = (longest(&said[0]), longest(&said[1]));
        ensure!(wide >= narrow, "{verb:?}: wide is narrower than the table: {}", said[1]);
        let from_json: Value = serde_json::from_str(&said[2]).with_context(|| format!("{verb:?} as JSON"))?;
        let from_yaml: Value =
            serde_saphyr::from_str(&said[3]).with_context(|| format!("{verb:?} as YAML"))?;
        ensure!(shape(&from_json) == shape(&from_yaml), "{verb:?}: {from_json} is not {from_yaml}");
    }
    Ok(())
}

fn longest(text: &str) -> usize {
    text.lines().map(|line| line.chars().count()).max().unwrap_or(0)
}

/// The names and kinds, not the values: ages and counts move on between two questions.
fn shape(value: &Value) -> Value {
    match value {
        Value::Object(fields) => fields.iter().map(|(name, value)| (name.clone(), shape(value))).collect(),
        Value::Array(all) => all.iter().map(shape).collect(),
        Value::Null => json!("nothing"),
        Value::Bool(_) => json!("yes or no"),
        Value::Number(_) => json!("number"),
        Value::String(_) => json!("text"),
    }
}

/// The answers are true: what is enrolled, served, in force, certified and connected.
#[test]
fn the_answers_are_true() -> Result<()> {
    let shop = Shop::new("true answers")?;
    shop.lab.manifests().mtls("shop", "STRICT")?;
    let _outside = shop.lab.pod(PodSpec::new("other", "outside", "node-a"))?;
    let agents = shop.lab.agents()?;
    let agent = &agents[0];
    let live = shop.live()?;
    let bypassed = shop.bypassed(agent)?;

    let status = agent.ask(&["status"])?;
    ensure!(status["node"] == "node-a" && status["state"] == "ready", "{status}");
    ensure!(status["workloads"] == json!({"known": 4, "local": 3, "enrolled": 2}), "{status}");
    ensure!(status["pid"] == agent.pid() && status["trust_domain"] == "cluster.local", "{status}");
    for path in ["hbone", "local", "bypass"] {
        ensure!(status["connections"][path].as_u64() >= Some(1), "no {path} in {status}");
    }
    let workloads = agent.ask(&["workloads"])?;
    let enrolment = |name: &str| Ok::<_, anyhow::Error>(row(&workloads, name)?["enrolment"].clone());
    ensure!(enrolment("client")? == "captured" && enrolment("far")? == "remote", "{workloads}");
    ensure!(enrolment("outside")? == "off", "{workloads}");
    let near = row(&workloads, "near")?;
    ensure!(near["identity"] == shop.near.spiffe("cluster.local"), "{near}");
    ensure!(near["mtls"] == "STRICT" && near["listening"] == json!([PORT]), "{near}");
    ensure!(near["addresses"] == json!(shop.near.ips()), "{near}");
    let only = agent.ask(&["workloads", "-n", "other"])?;
    ensure!(rows(&only)?.len() == 1, "{only}");

    let services = agent.ask(&["services"])?;
    let service = row(&services, "near")?;
    ensure!(service["hostname"] == "near.shop.svc.cluster.local", "{service}");
    let endpoint = &service["ports"][0]["endpoints"][0];
    ensure!(endpoint["workload"] == "shop/near" && endpoint["path"] == "local", "{service}");
    let policies = agent.ask(&["policies"])?;
    ensure!(row(&policies, "default")?["action"] == "STRICT", "{policies}");
    let certs = agent.ask(&["certs"])?;
    let ids: Vec<&Value> = rows(&certs)?.iter().map(|cert| &cert["identity"]).collect();
    for pod in [&shop.client, &shop.near] {
        ensure!(ids.contains(&&json!(pod.spiffe("cluster.local"))), "{certs}");
    }
    ensure!(rows(&certs)?.iter().all(|cert| cert["state"] == "valid"), "{certs}");

    connections(&shop, agent)?;
    let arriving = agents[1].ask(&["connections"])?;
    let arrived =
        rows(&arriving)?.iter().find(|row| row["direction"] == "inbound").context("none arrived")?;
    ensure!(arrived["source"]["identity"] == shop.client.spiffe("cluster.local"), "{arrived}");
    drop((live, bypassed));
    eventually("the connections to go", PATIENCE, || Ok(rows(&agent.ask(&["connections"])?)?.is_empty()))?;
    Ok(())
}

fn connections(shop: &Shop, agent: &Agent) -> Result<()> {
    let all = agent.ask(&["connections", "-w", "shop/client"])?;
    let by_path = |path: &str| {
        rows(&all)?.iter().find(|row| row["path"] == path).with_context(|| format!("no {path} in {all}"))
    };
    let hbone = by_path("hbone")?;
    ensure!(hbone["destination"]["workload"] == "shop/far" && hbone["direction"] == "outbound", "{hbone}");
    ensure!(
        hbone["hbone_address"] == shop.far.v4(15008).to_string() && hbone["established"] == true,
        "{hbone}"
    );
    ensure!(hbone["bytes_sent"] == 5 && hbone["bytes_received"] == 5, "{hbone}");
    let local = by_path("local")?;
    ensure!(local["service"] == "near.shop.svc.cluster.local", "{local}");
    ensure!(local["destination"]["address"] == shop.near.v4(PORT).to_string(), "{local}");
    ensure!(local["bytes_sent"] == 5 && local["bytes_received"] == 5, "{local}");
    let bypass = by_path("bypass")?;
    ensure!(bypass["source"]["workload"] == "shop/client", "{bypass}");
    ensure!(bypass["destination"]["workload"] == "shop/near", "{bypass}");
    Ok(())
}

/// `explain` ends with 0 or 1 as the connection would, and names the rule that decides.
#[test]
fn explain_says_what_happens() -> Result<()> {
    let shop = Shop::new("explain")?;
    let agents = shop.lab.agents()?;
    let agent = &agents[0];
    let deny = json!({
        "selector": {"matchLabels": {"app": "far"}}, "action": "DENY",
        "rules": [
            {"from": [{"source": {"namespaces": ["elsewhere"]}}]},
            {"from": [{"source": {"principals": ["cluster.local/ns/shop/sa/client"]}}], "to": [{"operation": {"ports": ["9090"]}}]},
        ],
    });
    shop.lab.manifests().authorization("shop", "no-admin", &deny)?;
    eventually("the policy to be known", PATIENCE, || Ok(rows(&agent.ask(&["policies"])?)?.len() == 1))?;
    let allowed = agent.cli(&["explain", "shop/client", "far.shop:8080", "-o", "json"])?;
    ensure!(allowed.code == 0 && allowed.json()?["allowed"] == true, "{allowed:?}");
    ensure!(allowed.json()?["route"]["path"] == "hbone", "{allowed:?}");
    drop(shop.echoing(shop.far.v4(PORT))?);
    for format in ["table", "wide", "json", "yaml"] {
        let denied = agent.cli(&["explain", "shop/client", "shop/far:9090", "-o", format])?;
        ensure!(denied.code == 1, "{denied:?}");
        ensure!(denied.stdout.contains("shop/no-admin, rule 1"), "the rule is not named: {}", denied.stdout);
    }
    let denied = agent.cli(&["explain", "shop/client", "shop/far:9090", "-o", "json"])?.json()?;
    ensure!(denied["allowed"] == false && denied["reason"] == "policy_denied", "{denied}");
    ensure!(denied["hint"].as_str().is_some_and(|hint| !hint.is_empty()), "{denied}");
    // The answer is the same wherever it is asked.
    let elsewhere = agents[1].cli(&["explain", "shop/client", "shop/far:9090", "-o", "json"])?;
    ensure!(elsewhere.code == 1 && elsewhere.json()?["rule"] == denied["rule"], "{elsewhere:?}");
    let service = agent.ask(&["explain", "shop/client", "near.shop.svc.cluster.local"])?;
    ensure!(service["route"]["path"] == "local" && service["route"]["port"] == 80, "{service}");
    let direct = agent.ask(&["explain", "shop/client", &shop.near.v4(PORT).to_string()])?;
    ensure!(direct["route"]["path"] == "bypass", "{direct}");
    for unknown in [["shop/nobody", "shop/far:80"], ["shop/client", "nothing.nowhere:80"]] {
        let output = agent.cli(&["explain", unknown[0], unknown[1]])?;
        ensure!(output.code == 1 && output.stderr.starts_with("mesh-agent: "), "{output:?}");
    }
    Ok(())
}

/// Without an agent every verb that asks one ends with 3 and one sentence that names the socket; what cannot be
/// understood ends with 2.
#[test]
fn without_an_agent_it_is_three() -> Result<()> {
    let lab = Lab::new("no agent", &["node-a"])?;
    let socket = lab.dir().join("nobody.sock");
    let run = |verb: &[&str], variable: bool| -> Result<std::process::Output> {
        let mut command = std::process::Command::new(mesh_tests::agent::binary()?);
        command.args(verb).env("NODEMESH_LAB", lab.name());
        if variable {
            command.env("NODEMESH_ADMIN_SOCKET", &socket);
        } else {
            command.arg("--admin-socket").arg(&socket);
        }
        lab.node("node-a")?.run(|| command.output().context("cannot start the CLI"))
    };
    for verb in VERBS.into_iter().filter(|verb| verb[0] != "check") {
        for variable in [false, true] {
            let output = run(verb, variable)?;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(output.status.code() == Some(3), "{verb:?}: {} {said}", output.status);
            ensure!(said.lines().count() == 1 && said.contains("nobody.sock"), "{verb:?}: {said}");
        }
    }
    let check = run(&["check"], false)?;
    ensure!(check.status.code() == Some(3), "check without an agent: {}", check.status);
    let own = run(&["version", "--client"], false)?;
    ensure!(own.status.code() == Some(0), "the own version needs no agent");
    let wrong: [&[&str]; 5] = [
        &["no-such-verb"],
        &["status", "-o", "xml"],
        &["explain", "shop/client"],
        &["explain", "shop/client", "shop/far:many"],
        &["run", "--workers", "many"],
    ];
    for verb in wrong {
        let output = run(verb, false)?;
        ensure!(output.status.code() == Some(2), "{verb:?}: {}", output.status);
    }
    Ok(())
}

/// `check` ends with 1 and names the pod when one cannot be captured, and with 0 when all is well again.
#[test]
fn check_finds_what_is_wrong() -> Result<()> {
    let shop = Shop::new("check")?;
    let agent = shop.lab.agent("node-a")?;
    let good = agent.cli(&["check"])?;
    ensure!(good.code == 0, "{good:?}");
    let lost = shop.lab.pod_unlisted(PodSpec::new("shop", "lost", "node-a"))?;
    shop.lab.destroy_pod(&lost)?;
    shop.lab.manifests().pod(&lost)?;
    eventually("the check to fail", PATIENCE, || {
        let output = agent.cli(&["check"])?;
        Ok(output.code == 1 && output.stdout.contains("shop/lost"))
    })?;
    let pending = agent.ask(&["workloads"])?;
    let found = row(&pending, "lost")?;
    ensure!(found["enrolment"] == "pending" && found["problem"].is_string(), "{found}");
    shop.lab.manifests().remove("pod-shop-lost")?;
    eventually("the check to pass", PATIENCE, || Ok(agent.cli(&["check"])?.code == 0))?;
    shop.lab.manifests().put_text("broken", "kind: [")?;
    eventually("the broken file to be found", PATIENCE, || {
        let output = agent.cli(&["check"])?;
        Ok(output.code == 1 && output.stdout.contains("broken"))
    })?;
    Ok(())
}
