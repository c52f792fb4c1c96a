//! That the mesh needs each right it is given: every RBAC rule of agent and controller and every capability of the
//! agent is taken away in turn, and something breaks.
pub(crate) mod capabilities;
pub(crate) mod controller;
pub(crate) mod rules;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::mesh::Mesh;

/// As the API server says it, and with it whoever was refused.
const REFUSED: &str = "cannot ";

/// The one object of a kind and name among what `mesh-agent install` prints.
fn shipped(mesh: &Mesh, kind: &str, name: &str) -> Result<Value> {
    let text = mesh.agent(&["install"])?;
    let all: Vec<Value> = serde_saphyr::from_multiple(&text).context("the manifests are no YAML")?;
    let found = all.into_iter().find(|one| one["kind"] == kind && one["metadata"]["name"] == name);
    found.with_context(|| format!("no {kind} {name} among the manifests"))
}

/// Installs the mesh with its agent on node-a only: node-b is for agents of these tests.
pub(crate) fn install_on_node_a(mesh: &Mesh) -> Result<()> {
    let mut text = mesh.agent(&["install", "--crds"])?;
    let daemonset =
        text.find("kind: DaemonSet\nmetadata:\n  name: nodemesh-agent").context("no DaemonSet")?;
    const SELECTOR: &str = "      nodeSelector:\n";
    let at = daemonset + text[daemonset..].find(SELECTOR).context("no nodeSelector")? + SELECTOR.len();
    text.insert_str(at, "        kubernetes.io/hostname: node-a\n");
    mesh.load_image()?;
    mesh.cluster.apply(&text)?;
    mesh.cluster.wait_ready(crate::mesh::SYSTEM, "app=nodemesh-controller", 2)?;
    mesh.cluster.wait_ready(crate::mesh::SYSTEM, "app=nodemesh-agent", 1)
}

/// Gateway API's kinds as far as rights go: their names, and a status of its own for each. What is in them is not checked.
pub(crate) fn routes(mesh: &Mesh) -> Result<()> {
    let kinds = [
        ("GRPCRoute", "grpcroutes", "v1"),
        ("HTTPRoute", "httproutes", "v1"),
        ("TCPRoute", "tcproutes", "v1alpha2"),
        ("TLSRoute", "tlsroutes", "v1alpha2"),
    ];
    let mut text = String::new();
    for (kind, plural, version) in kinds {
        let group = "gateway.networking.k8s.io";
        // The API server wants to hear it of a group of this name.
        let approved = json!({"api-approved.kubernetes.io": "unapproved, of a test"});
        let open = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        let definition = json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": format!("{plural}.{group}"), "annotations": approved},
            "spec": {
                "group": group, "scope": "Namespaced",
                "names": {"kind": kind, "plural": plural, "singular": kind.to_lowercase()},
                "versions": [{
                    "name": version, "served": true, "storage": true, "subresources": {"status": {}},
                    "schema": {"openAPIV3Schema": {
                        "type": "object", "properties": {"spec": open, "status": open},
                    }},
                }],
            },
        });
        text.push_str(&format!("---\n{definition}\n"));
    }
    mesh.cluster.apply(&text)?;
    mesh.kubectl("wait --for=condition=Established --timeout=30s crd --all").map(drop)
}

/// One verb of one resource, in the ClusterRole or in the Role.
#[derive(Clone, Debug)]
struct Right {
    cluster: bool,
    group: String,
    resource: String,
    names: Value,
    verb: String,
}

impl Right {
    /// In the API server's words.
    fn is_refused_in(&self, refused: &[String]) -> bool {
        let Self { group, resource, verb, .. } = self;
        let denied = format!("{REFUSED}{verb} resource \"{resource}\" in API group \"{group}\"");
        // What may be done to one object only names it.
        let name = self.names[0].as_str().map_or(String::new(), |name| format!("\"{name}\" is forbidden"));
        refused.iter().any(|line| line.contains(&denied) && line.contains(&name))
    }
}

/// The lines of a log that tell of a refusal, their quotes as the API server wrote them.
fn refusals(log: &str) -> Vec<String> {
    log.lines().filter(|line| line.contains(REFUSED)).map(|line| line.replace("\\\"", "\"")).collect()
}

/// Every right that an account has by its ClusterRole and its Role as shipped.
fn all_rights(mesh: &Mesh, account: &str) -> Result<Vec<Right>> {
    let mut all = rights(&shipped(mesh, "ClusterRole", account)?, true);
    all.extend(rights(&shipped(mesh, "Role", account)?, false));
    ensure!(all.len() > 10, "only {} rights: {all:?}", all.len());
    Ok(all)
}

fn rights(role: &Value, cluster: bool) -> Vec<Right> {
    let texts = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let mut all = Vec::new();
    for rule in role["rules"].as_array().into_iter().flatten() {
        for group in texts(&rule["apiGroups"]) {
            for resource in texts(&rule["resources"]) {
                for verb in texts(&rule["verbs"]) {
                    let names = rule["resourceNames"].clone();
                    let (group, resource) = (group.clone(), resource.clone());
                    all.push(Right { cluster, group, resource, names, verb });
                }
            }
        }
    }
    all
}

/// A user with all these rights but one, bound as the account is; the Role stands in `namespace`.
fn user(name: &str, namespace: &str, rights: &[Right], without: Option<usize>) -> String {
    let rules = |cluster: bool| -> Vec<Value> {
        let kept =
            rights.iter().enumerate().filter(|(at, right)| Some(*at) != without && right.cluster == cluster);
        kept.map(|(_, right)| {
            let mut rule =
                json!({"apiGroups": [right.group], "resources": [right.resource], "verbs": [right.verb]});
            if !right.names.is_null() {
                rule["resourceNames"] = right.names.clone();
            }
            rule
        })
        .collect()
    };
    let mut text = String::new();
    for (kind, cluster) in [("ClusterRole", true), ("Role", false)] {
        let mut metadata = json!({"name": name});
        if !cluster {
            metadata["namespace"] = json!(namespace);
        }
        let api = "rbac.authorization.k8s.io";
        let role = json!({"apiVersion": format!("{api}/v1"), "kind": kind, "metadata": metadata, "rules": rules(cluster)});
        let binding = json!({
            "apiVersion": format!("{api}/v1"), "kind": format!("{kind}Binding"), "metadata": metadata,
            "roleRef": {"apiGroup": api, "kind": kind, "name": name},
            "subjects": [{"apiGroup": api, "kind": "User", "name": name}],
        });
        text.push_str(&format!("---\n{role}\n---\n{binding}\n"));
    }
    text
}
