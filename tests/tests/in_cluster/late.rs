//! What comes after the mesh: the CRDs of its policies, and what an author is told of them.
use anyhow::{Context, Result, ensure};

use crate::mesh::{APP, Mesh, PodOf, SOON, namespace};

const NS: &str = "late";

/// The mesh runs where Istio's kinds are not installed: pods join and talk, and there is no policy.
pub(crate) fn without_crds(mesh: &Mesh) -> Result<()> {
    let kinds = mesh.cluster.object("/apis/security.istio.io/v1")?;
    ensure!(kinds.is_none(), "the API server has Istio's kinds before they were installed");
    let pod = PodOf { namespace: NS, ..PodOf::default() };
    mesh.cluster.apply(
        &[
            namespace(NS, true, &["app"]),
            namespace("strangers", false, &["app"]),
            PodOf { name: "web", node: "node-b", args: "[serve]", ..pod }.yaml(),
            PodOf { name: "client", node: "node-a", args: "[sleep]", ..pod }.yaml(),
            PodOf { namespace: "strangers", name: "stranger", node: "node-a", args: "[sleep]", ..pod }.yaml(),
        ]
        .concat(),
    )?;
    mesh.cluster.wait_ready(NS, "", 2)?;
    mesh.cluster.wait_ready("strangers", "", 1)?;
    mesh.wait_captured(NS, &["client", "web"])?;
    mesh.by_tunnel(&mesh.ip(NS, "web")?, 8080, || get(mesh, NS, "client").map(drop))?;
    get(mesh, "strangers", "stranger").map(drop)
}

fn get(mesh: &Mesh, namespace: &str, pod: &str) -> Result<String> {
    let url = format!("http://{}:8080/", mesh.ip(NS, "web")?);
    mesh.cluster.kubectl(&["exec", "-n", namespace, pod, "--", APP, "get", &url])
}

/// The CRDs come while agents and controllers run: nobody is restarted, and the first policy is in force.
pub(crate) fn crds(mesh: &Mesh) -> Result<()> {
    let uids = || mesh.kubectl("get pods -n nodemesh-system -o jsonpath={.items[*].metadata.uid}");
    let before = uids()?;
    mesh.cluster.apply(&mesh.agent(&["install", "--crds"])?)?;
    mesh.cluster.wait("a policy to be taken", SOON, || {
        mesh.cluster.apply(&format!(
            "{{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {{name: default, namespace: \
             {NS}}}, spec: {{mtls: {{mode: STRICT}}}}}}"
        ))?;
        Ok(true)
    })?;
    mesh.cluster
        .wait("the agents to find the kind", SOON, || Ok(get(mesh, "strangers", "stranger").is_err()))?;
    get(mesh, NS, "client")?;
    ensure!(uids()? == before, "a pod of the mesh is another one");
    Ok(())
}

/// `kubectl describe` shows that a good policy holds; what is wrong with a bad one, as condition and as Event; and what
/// the mended one is.
pub(crate) fn describe(mesh: &Mesh) -> Result<()> {
    let shows = |object: &str, wanted: &[&str]| {
        mesh.cluster.wait(&format!("kubectl describe {object} to show {wanted:?}"), SOON, || {
            let said = mesh.kubectl(&format!("describe -n {NS} {object}"))?;
            let missing: Vec<&&str> = wanted.iter().filter(|word| !said.contains(**word)).collect();
            ensure!(missing.is_empty(), "{missing:?} are missing in {said}");
            Ok(true)
        })
    };
    shows("peerauthentication default", &["Conditions:", "Accepted", "True"])?;
    mesh.cluster.apply(&format!(
        "{{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {{name: broken, namespace: {NS}}}, \
         spec: {{selector: {{matchLabels: {{app: nobody}}}}, action: DENY, rules: [{{from: [{{source: {{ipBlocks: \
         [not-an-address]}}}}]}}]}}}}"
    ))?;
    let wrong = ["Accepted", "Invalid", "not-an-address", "Events:", "Warning", "nodemesh.io/controller"];
    shows("authorizationpolicy broken", &wrong)?;
    let path = format!("/apis/security.istio.io/v1/namespaces/{NS}/authorizationpolicies/broken");
    let rules = serde_json::json!([{"from": [{"source": {"ipBlocks": ["10.0.0.0/8"]}}]}]);
    mesh.cluster.patch(&path, &serde_json::json!({"spec": {"rules": rules}}))?;
    mesh.cluster.wait("the mended policy to be accepted", SOON, || {
        let object = mesh.cluster.object(&path)?.context("no such policy")?;
        Ok(object.pointer("/status/conditions/0/status").is_some_and(|status| status == "True"))
    })?;
    Ok(())
}
