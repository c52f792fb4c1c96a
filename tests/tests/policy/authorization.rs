//! AuthorizationPolicy at L4: every field, both actions, all scopes, tried over every path.
use anyhow::Result;
use serde_json::{Value, json};

use crate::steps::{CLIENT, PLAYER, STRANGER, Steps, all_but, authz, policy};

fn allow(source: Value) -> Value {
    authz(json!({"action": "ALLOW", "rules": [{"from": [{"source": source}]}]}))
}

fn deny(source: Value) -> Value {
    authz(json!({"action": "DENY", "rules": [{"from": [{"source": source}]}]}))
}

fn members() -> Vec<&'static str> {
    CLIENT.into_iter().chain(PLAYER).collect()
}

/// Sources by what mutual TLS proves: principals with every kind of pattern, namespaces, service accounts, and their
/// negations, which plaintext matches.
#[test]
fn sources_by_identity() -> Result<()> {
    let steps = Steps::new("sources by identity")?;
    let client = "cluster.local/ns/shop/sa/client";
    steps.step("no policy", &[], &all_but(&[]))?;
    steps.step("ALLOW a principal", &[allow(json!({"principals": [client]}))], &CLIENT)?;
    steps.step("ALLOW a suffix", &[allow(json!({"principals": ["*/sa/player"]}))], &PLAYER)?;
    steps.step("ALLOW a prefix", &[allow(json!({"principals": ["cluster.local/ns/shop/*"]}))], &CLIENT)?;
    steps.step("ALLOW any principal", &[allow(json!({"principals": ["*"]}))], &members())?;
    steps.step(
        "ALLOW a literal star inside",
        &[allow(json!({"principals": ["cluster.local/ns/*/sa/client"]}))],
        &[],
    )?;
    steps.step("ALLOW not a principal", &[allow(json!({"notPrincipals": [client]}))], &all_but(&CLIENT))?;
    steps.step("DENY plaintext", &[deny(json!({"notPrincipals": ["*"]}))], &members())?;
    steps.step("DENY a namespace", &[deny(json!({"namespaces": ["games"]}))], &all_but(&PLAYER))?;
    steps.step("DENY not a namespace", &[deny(json!({"notNamespaces": ["shop"]}))], &CLIENT)?;
    steps.step(
        "ALLOW an account of the policy's namespace",
        &[allow(json!({"serviceAccounts": ["client"]}))],
        &CLIENT,
    )?;
    steps.step(
        "DENY an account",
        &[deny(json!({"serviceAccounts": ["games/player"]}))],
        &all_but(&PLAYER),
    )?;
    steps.step("DENY not an account", &[deny(json!({"notServiceAccounts": ["shop/client"]}))], &CLIENT)
}

/// Sources by address, operations by port, and conditions, in both families.
#[test]
fn addresses_ports_and_conditions() -> Result<()> {
    let steps = Steps::new("addresses, ports, conditions")?;
    let blocks = |pod: &mesh_tests::Pod| json!(pod.ips().map(|ip| ip.to_string()));
    let (client, stranger) = (blocks(&steps.mesh.client), blocks(&steps.mesh.stranger));
    let to = |action: &str, operation: Value| {
        authz(json!({"action": action, "rules": [{"to": [{"operation": operation}]}]}))
    };
    let when =
        |action: &str, condition: Value| authz(json!({"action": action, "rules": [{"when": [condition]}]}));
    let other_port = ["client>far:8081"];
    steps.step("ALLOW addresses", &[allow(json!({"ipBlocks": client}))], &CLIENT)?;
    steps.step("DENY addresses", &[deny(json!({"ipBlocks": stranger}))], &all_but(&STRANGER))?;
    steps.step("DENY not addresses", &[deny(json!({"notIpBlocks": client}))], &CLIENT)?;
    steps.step(
        "ALLOW a range",
        &[allow(json!({"ipBlocks": ["10.42.0.0/16"]}))],
        &["client>near", "client>far:8081", "player>far", "stranger>near"],
    )?;
    steps.step("DENY a port", &[to("DENY", json!({"ports": ["8081"]}))], &all_but(&other_port))?;
    steps.step("ALLOW a port", &[to("ALLOW", json!({"ports": ["8081"]}))], &other_port)?;
    steps.step("ALLOW not a port", &[to("ALLOW", json!({"notPorts": ["8081"]}))], &all_but(&other_port))?;
    let principal = json!({"key": "source.principal", "values": ["cluster.local/ns/games/sa/player"]});
    steps.step("when a principal", &[when("ALLOW", principal)], &PLAYER)?;
    let namespace = json!({"key": "source.namespace", "notValues": ["games"]});
    steps.step("when not a namespace", &[when("ALLOW", namespace)], &all_but(&PLAYER))?;
    let port = json!({"key": "destination.port", "values": ["8081"]});
    steps.step("when a port", &[when("DENY", port)], &all_but(&other_port))?;
    let address = json!({"key": "source.ip", "values": stranger});
    steps.step("when an address", &[when("DENY", address)], &all_but(&STRANGER))
}

/// Which workloads a policy speaks of: a selector, the namespace, the root namespace with and without selector, and
/// nobody of another namespace.
#[test]
fn scopes() -> Result<()> {
    let steps = Steps::new("scopes")?;
    let deny_all = json!({"action": "DENY", "rules": [{}]});
    let selected = json!({"action": "DENY", "rules": [{}], "selector": {"matchLabels": {"app": "far"}}});
    let to_far = ["client>far", "client>far:8081", "player>far", "stranger>far"];
    let at = |namespace: &str, spec: &Value| policy("AuthorizationPolicy", namespace, "scope", spec.clone());
    steps.step("the namespace", &[at("shop", &deny_all)], &[])?;
    steps.step("a selector", &[at("shop", &selected)], &all_but(&to_far))?;
    steps.step("the root namespace", &[at("istio-system", &deny_all)], &[])?;
    steps.step("the root namespace with a selector", &[at("istio-system", &selected)], &all_but(&to_far))?;
    steps.step("another namespace", &[at("games", &deny_all)], &all_but(&[]))
}

/// How policies come together: nothing allowed, everything allowed, DENY over ALLOW, and fields of HTTP, which make
/// an ALLOW narrower and a DENY wider on a TCP connection.
#[test]
fn actions_together() -> Result<()> {
    let steps = Steps::new("actions together")?;
    let named = |name: &str, spec: Value| policy("AuthorizationPolicy", "shop", name, spec);
    steps.step("an empty spec", &[authz(json!({}))], &[])?;
    steps.step("ALLOW with an empty rule", &[authz(json!({"rules": [{}]}))], &all_but(&[]))?;
    steps.step("DENY with an empty rule", &[authz(json!({"action": "DENY", "rules": [{}]}))], &[])?;
    steps.step("DENY without rules", &[authz(json!({"action": "DENY"}))], &all_but(&[]))?;
    let from_games = json!([{"source": {"namespaces": ["games"]}}]);
    let delete = json!([{"operation": {"methods": ["DELETE"]}}]);
    let deny_http = authz(json!({"action": "DENY", "rules": [{"from": from_games, "to": delete}]}));
    steps.step_of_requests("DENY with a method", &[deny_http], &all_but(&PLAYER))?;
    let deny_path =
        authz(json!({"action": "DENY", "rules": [{"to": [{"operation": {"paths": ["/admin*"]}}]}]}));
    steps.step_of_requests("DENY with a path alone", &[deny_path], &[])?;
    let allow_http =
        authz(json!({"action": "ALLOW", "rules": [{"to": [{"operation": {"methods": ["GET"]}}]}]}));
    steps.step_of_requests("ALLOW with a method", &[allow_http], &[])?;
    let wide = named("wide", json!({"rules": [{}]}));
    let narrow = named("narrow", json!({"action": "DENY", "rules": [{"from": from_games}]}));
    steps.step("DENY over ALLOW", &[wide, narrow], &all_but(&PLAYER))?;
    let one = named("one", json!({"rules": [{"from": from_games}]}));
    let two = named("two", json!({"rules": [{"from": [{"source": {"namespaces": ["shop"]}}]}]}));
    steps.step("two ALLOW policies", &[one, two], &members())
}
