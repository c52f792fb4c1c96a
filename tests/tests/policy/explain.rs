//! `explain` names the rule that decides, and its exit code is the answer.
use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::mesh::{Fate, probe};
use crate::steps::{Steps, policy};

/// For a table of pairs under several policies at once, what `explain` says, down to the rule, is what happens.
#[test]
fn explain_names_the_deciding_rule() -> Result<()> {
    let steps = Steps::new("explain")?;
    let from = |namespace: &str| json!([{"source": {"namespaces": [namespace]}}]);
    let to = |port: &str| json!([{"operation": {"ports": [port]}}]);
    let far = json!({"matchLabels": {"app": "far"}});
    let authz = |name: &str, spec| policy("AuthorizationPolicy", "shop", name, spec);
    steps.apply(&[
        authz(
            "allow",
            json!({"rules": [{"from": from("nobody")}, {"from": from("shop")}, {"from": from("games")}]}),
        ),
        authz(
            "deny",
            json!({"action": "DENY", "selector": far.clone(), "rules": [
                {"from": from("nobody")}, {"from": from("shop"), "to": to("8081")},
            ]}),
        ),
        policy("PeerAuthentication", "shop", "far", json!({"selector": far, "mtls": {"mode": "STRICT"}})),
    ])?;
    let table = [
        ("client>near", Some("AuthorizationPolicy shop/allow, rule 1"), None),
        ("client>vip", Some("AuthorizationPolicy shop/allow, rule 1"), None),
        ("client>far", Some("AuthorizationPolicy shop/allow, rule 1"), None),
        ("client>far:8081", Some("AuthorizationPolicy shop/deny, rule 1"), Some("policy_denied")),
        ("player>near", Some("AuthorizationPolicy shop/allow, rule 2"), None),
        ("player>far", Some("AuthorizationPolicy shop/allow, rule 2"), None),
        ("stranger>near", None, Some("policy_not_allowed")),
        ("stranger>far", Some("PeerAuthentication shop/far"), Some("plaintext_refused")),
    ];
    for (way, (name, rule, reason)) in steps.ways().into_iter().zip(table) {
        assert_eq!(way.name, name);
        let wanted = if reason.is_none() { Fate::Echoed } else { way.denied };
        steps.mesh.wait_fate(way.from, way.to, wanted).with_context(|| name.to_owned())?;
        // By name and by address, asked on either node.
        for agent in &steps.mesh.agents {
            for source in [way.from.id(), way.from.ips()[0].to_string()] {
                let told = agent.cli(&["explain", &source, &way.to.to_string(), "-o", "json"])?;
                let story = told.json()?;
                ensure!(told.code == i32::from(reason.is_some()), "{name}: {}: {story:#}", told.code);
                ensure!(story["rule"] == json!(rule), "{name}: {story:#}");
                ensure!(story["reason"] == json!(reason), "{name}: {story:#}");
                let deciding = story["steps"].as_array().context("no steps")?;
                let deciding = deciding.iter().filter(|step| step["decided"] == true).count();
                ensure!(deciding == 1, "{name}: {deciding} steps decide: {story:#}");
            }
        }
        assert_eq!(probe(way.from, way.to)?, wanted, "{name}");
        let Some(reason) = reason.filter(|_| way.denied == Fate::Cut) else { continue };
        let server = if name.contains("far") { "node-b" } else { "node-a" };
        steps.mesh.wait_logged(server, &[&format!("reason=\"{reason}\"")])?;
    }
    // People read it too: the table says the same in words.
    let told = steps.mesh.agents[0].cli(&["explain", "shop/client", &steps.ways()[3].to.to_string()])?;
    ensure!(told.stdout.contains("DENIED by AuthorizationPolicy shop/deny, rule 1"), "{}", told.stdout);
    Ok(())
}
