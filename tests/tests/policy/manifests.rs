//! Changes of the manifests: how soon they hold, and what a broken file does.
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::eventually;
use serde_json::json;

use crate::mesh::{Fate, PORT, SOON};
use crate::steps::{PLAYER, Steps, all_but, authz};

/// A change of the folder holds soon after it is written, both ways and on both nodes. The times are printed; the
/// goal is a second on an idle machine.
#[test]
fn a_change_holds_soon() -> Result<()> {
    let steps = Steps::new("reload")?;
    let mesh = &steps.mesh;
    let manifests = mesh.lab.manifests();
    let deny = json!({"action": "DENY", "rules": [{"from": [{"source": {"namespaces": ["shop"]}}]}]});
    let mut worst = Duration::ZERO;
    for to in [mesh.near.v4(PORT), mesh.far.v6(PORT)] {
        mesh.wait_fate(&mesh.client, to, Fate::Echoed)?;
        let denied = if mesh.near.ips().contains(&to.ip()) { Fate::Refused } else { Fate::Cut };
        for _ in 0..3 {
            manifests.authorization("shop", "reload", &deny)?;
            let on = mesh.wait_fate(&mesh.client, to, denied)?;
            manifests.remove_security("AuthorizationPolicy", "shop", "reload")?;
            let off = mesh.wait_fate(&mesh.client, to, Fate::Echoed)?;
            println!("{to}: denied after {on:?}, allowed again after {off:?}");
            worst = worst.max(on).max(off);
        }
    }
    println!("the slowest change took {worst:?}");
    Ok(())
}

/// A file that cannot be read as YAML leaves what it said before in force; `status` and `check` name the file and
/// the remedy, and a mended file holds again.
#[test]
fn a_broken_file_leaves_the_last_good_state() -> Result<()> {
    let steps = Steps::new("broken file")?;
    let only_player = authz(json!({"rules": [{"from": [{"source": {"namespaces": ["games"]}}]}]}));
    steps.step("the good state", &[only_player], &PLAYER)?;
    steps.mesh.lab.manifests().put_text("policies", "kind: [AuthorizationPolicy\n  spec: }{\n")?;
    for agent in &steps.mesh.agents {
        eventually("the broken file to be noticed", SOON, || {
            let found = agent.ask(&["status"])?["source"]["diagnostics"].clone();
            let found = found.as_array().context("no diagnostics")?.clone();
            let said = found.iter().find(|one| one.to_string().contains("policies.yaml"));
            let said = said.with_context(|| format!("it is not named: {found:?}"))?;
            ensure!(said["severity"] == "error", "{said}");
            ensure!(said["remedy"].as_str().is_some_and(|remedy| !remedy.is_empty()), "{said}");
            Ok(true)
        })?;
        let check = agent.cli(&["check"])?;
        ensure!(check.code == 1, "check ends with {}: {}", check.code, check.stdout);
        ensure!(check.stdout.contains("policies.yaml"), "{}", check.stdout);
    }
    steps.expect("the last good state", &PLAYER)?;
    steps.step("mended", &[], &all_but(&[]))?;
    for agent in &steps.mesh.agents {
        let check = agent.cli(&["check"])?;
        ensure!(!check.stdout.contains("policies.yaml"), "{}", check.stdout);
    }
    Ok(())
}

/// A policy with a misspelt field or a senseless value denies in its scope until it is mended, and `status`, `check`
/// and `policies` say which object, which field and what to do.
#[test]
fn a_broken_policy_denies_and_says_so() -> Result<()> {
    let steps = Steps::new("broken policy")?;
    let broken = authz(json!({"action": "ALLOW", "rules": [{"from": [{"source": {"principles": ["*"]}}]}]}));
    steps.step("a misspelt field", &[broken], &[])?;
    let field = "spec.rules[0].from[0].source.principles";
    for agent in &steps.mesh.agents {
        let status = agent.ask(&["status"])?;
        let found = status["source"]["diagnostics"].as_array().context("no diagnostics")?;
        let said = found.iter().find(|one| one["field"] == field);
        let said = said.with_context(|| format!("it is not named: {found:?}"))?;
        let object = said["object"].as_str().unwrap_or_default();
        ensure!(object.starts_with("AuthorizationPolicy shop/tested"), "{said}");
        ensure!(said["remedy"].as_str().is_some_and(|remedy| remedy.contains("spelling")), "{said}");
        let check = agent.cli(&["check"])?;
        ensure!(check.code == 1, "check ends with {}: {}", check.code, check.stdout);
        for part in ["AuthorizationPolicy shop/tested", field, "spelling"] {
            ensure!(check.stdout.contains(part), "check does not say {part}: {}", check.stdout);
        }
        let rows = agent.ask(&["policies"])?;
        let row = rows.as_array().context("no policies")?.iter().find(|row| row["name"] == "tested");
        ensure!(row.is_some_and(|row| row["invalid"].is_string()), "{rows}");
    }
    steps.step("mended", &[], &all_but(&[]))
}
