//! What an author sees of a policy.
use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_tests::{eventually, hold};
use serde_json::Value;

use crate::stage::{SOON, Stage};

const POLICIES: &str = r"
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: good, namespace: shop}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: broken, namespace: shop}
spec: {action: DENY, rules: [{from: [{source: {ipBlocks: [not-an-address]}}]}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: idle, namespace: shop}
spec: {action: DENY}
";

/// Conditions say whether a policy holds and why not, Events tell each finding once, a mended object is accepted under
/// its new generation, and nothing is written again and again.
#[test]
fn conditions_and_events_tell_the_author_what_is_wrong() -> Result<()> {
    let stage = Stage::open()?;
    stage.server.apply(POLICIES)?;
    let controller = stage.controller("one", &[])?;
    let condition = |kind: &str, name: &str| -> Result<(String, String, Value)> {
        let path = format!("/apis/security.istio.io/v1/namespaces/shop/{kind}/{name}");
        let object = stage.server.object(&path)?.unwrap_or_default();
        let ours = object.pointer("/status/conditions/0").cloned().unwrap_or_default();
        let text = |key: &str| ours[key].as_str().unwrap_or_default().to_owned();
        Ok((text("status"), text("reason"), object))
    };
    let is = |kind: &str, name: &str, status: &str, reason: &str| {
        eventually(&format!("{name} to be {status}, {reason}"), SOON, || {
            let (is_status, is_reason, _) = condition(kind, name)?;
            Ok(is_status == status && is_reason == reason)
        })
    };
    is("peerauthentications", "good", "True", "Accepted")?;
    is("authorizationpolicies", "broken", "False", "Invalid")?;
    is("authorizationpolicies", "idle", "True", "AcceptedWithWarnings")?;
    eventually("kubectl describe to show condition and Event", SOON, || {
        let shown = stage.server.kubectl(&["describe", "authorizationpolicy", "broken", "-n", "shop"])?;
        Ok(["Accepted", "Invalid", "not-an-address", "Warning", "nodemesh.io/controller"]
            .iter()
            .all(|words| shown.contains(words)))
    })?;
    let versions = || -> Result<Vec<String>> {
        let all = ["good", "broken", "idle"].map(|name| {
            let kind = if name == "good" { "peerauthentications" } else { "authorizationpolicies" };
            condition(kind, name).map(|(_, _, object)| object["metadata"]["resourceVersion"].to_string())
        });
        all.into_iter().collect()
    };
    let before = versions()?;
    hold("the objects to be left alone", Duration::from_secs(3), || Ok(versions()? == before))?;

    stage.server.kubectl(&[
        "patch",
        "authorizationpolicy",
        "broken",
        "-n",
        "shop",
        "--type=merge",
        "-p",
        r#"{"spec":{"rules":[{"from":[{"source":{"ipBlocks":["10.0.0.0/8"]}}]}]}}"#,
    ])?;
    is("authorizationpolicies", "broken", "True", "Accepted")?;
    let (_, _, mended) = condition("authorizationpolicies", "broken")?;
    ensure!(mended["metadata"]["generation"] == 2, "a status counts as a generation");
    ensure!(mended.pointer("/status/conditions/0/observedGeneration") == Some(&Value::from(2)));

    // A new leader finds everything said.
    let events = || stage.server.kubectl(&["get", "events.events.k8s.io", "-n", "shop", "-o", "name"]);
    let told = events()?;
    controller.terminate()?;
    let second = stage.controller("two", &[])?;
    eventually("the second to lead", SOON, || second.leads())?;
    hold("no Event to be repeated", Duration::from_secs(3), || Ok(events()? == told))?;
    Ok(())
}
