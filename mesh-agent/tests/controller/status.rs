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

const ROUTE: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: web, port: 80}]
  rules: [{backendRefs: [{name: web-v2, port: 80}]}]
"#;

fn service(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{ports: [{{name: http, port: 80}}]}}\n"
    )
}

#[test]
fn a_route_s_status_follows_its_parent_and_its_backends() -> Result<()> {
    let stage = Stage::open()?;
    let mut definition =
        serde_json::to_value(<gateway_api::httproutes::HttpRoute as kube::CustomResourceExt>::crd())?;
    // The API server asks whoever defines something under k8s.io where that was agreed.
    definition["metadata"]["annotations"]["api-approved.kubernetes.io"] =
        "https://github.com/kubernetes-sigs/gateway-api/pull/1538".into();
    stage.server.apply(&definition.to_string())?;
    stage.server.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n")?;
    eventually("the route to be taken", SOON, || Ok(stage.server.apply(ROUTE).is_ok()))?;
    let _controller = stage.controller("one", &[])?;
    let is = |accepted: &str, resolved: &str| {
        eventually(&format!("{accepted} and {resolved}"), SOON, || {
            let path = "/apis/gateway.networking.k8s.io/v1/namespaces/shop/httproutes/r";
            let object = stage.server.object(path)?.unwrap_or_default();
            let reason = |index: usize| {
                object
                    .pointer(&format!("/status/parents/0/conditions/{index}/reason"))
                    .cloned()
                    .unwrap_or_default()
            };
            Ok(reason(0) == accepted && reason(1) == resolved)
        })
    };
    is("NoMatchingParent", "BackendNotFound")?;
    stage.server.apply(&service("web"))?;
    is("Accepted", "BackendNotFound")?;
    stage.server.apply(&service("web-v2"))?;
    is("Accepted", "ResolvedRefs")?;
    stage.server.kubectl(&["delete", "service", "web-v2", "-n", "shop"])?;
    is("Accepted", "BackendNotFound")?;
    Ok(())
}
