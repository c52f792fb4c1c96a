//! `mesh-agent uninstall`: takes the mesh out of a cluster and leaves its pods connected. First the agents go: each
//! asks why, hears that its DaemonSet is being deleted, and takes its node's pods out of the mesh before it ends. Only
//! when the last has gone does the rest follow. Called by `cli`.

use std::time::Duration;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams};
use kube::{Api, Client as Kube, ResourceExt};
use serde_json::Value;

use super::{Target, refused};
use crate::cli::{CliError, Exit, output};
use crate::config::Span;
use crate::install::{AGENT, PART_OF, PART_OF_LABEL, Values, crds, render};

/// A line of what is done. Not `println!`: `uninstall | head` is no failure.
macro_rules! say {
    ($($text:tt)*) => {
        output::write(&(format!($($text)*) + "\n"))?
    };
}

/// How often it is looked whether the agents have gone.
const PAUSE: Duration = Duration::from_millis(500);

#[derive(Clone, Debug, clap::Args)]
pub(in crate::cli) struct UninstallArgs {
    #[command(flatten)]
    pub(in crate::cli) target: Target,
    /// Say what would be removed, and remove nothing
    #[arg(long)]
    dry_run: bool,
    /// Remove the CRDs that `install --crds` made, and with them every policy in the cluster
    #[arg(long)]
    crds: bool,
    /// How long the agents may take to take their pods out of the mesh
    #[arg(long, value_name = "DURATION", default_value = "2m")]
    timeout: Span,
}

/// An object to remove.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Item {
    api_version: String,
    kind: String,
    namespace: Option<String>,
    name: String,
}

impl Item {
    fn label(&self) -> String {
        match &self.namespace {
            Some(namespace) => format!("{} {namespace}/{}", self.kind, self.name),
            None => format!("{} {}", self.kind, self.name),
        }
    }

    fn api(&self, kube: &Kube) -> Api<DynamicObject> {
        let (group, version) = self.api_version.split_once('/').unwrap_or(("", &self.api_version));
        let resource = ApiResource::from_gvk_with_plural(
            &GroupVersionKind::gvk(group, version, &self.kind),
            &plural(&self.kind),
        );
        match &self.namespace {
            Some(namespace) => Api::namespaced_with(kube.clone(), namespace, &resource),
            None => Api::all_with(kube.clone(), &resource),
        }
    }
}

fn plural(kind: &str) -> String {
    let kind = kind.to_lowercase();
    match kind.strip_suffix('y') {
        Some(stem) => format!("{stem}ies"),
        None => kind + "s",
    }
}

/// Everything of an installation, the last that was applied first, and what the controller has made beside it.
fn items(namespace: &str) -> Result<Vec<Item>, CliError> {
    let mut values = Values::default();
    values.set("namespace", namespace)?;
    let documents: Vec<Value> = serde_saphyr::from_multiple(&render(&values))
        .map_err(|error| CliError::Format { format: "YAML", message: error.to_string() })?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut items: Vec<Item> = documents
        .iter()
        .filter(|document| document["kind"].is_string())
        .map(|document| Item {
            api_version: text(&document["apiVersion"]),
            kind: text(&document["kind"]),
            namespace: document["metadata"]["namespace"].as_str().map(str::to_owned),
            name: text(&document["metadata"]["name"]),
        })
        .collect();
    let made = |api_version: &str, kind: &str, name: &str| Item {
        api_version: api_version.to_owned(),
        kind: kind.to_owned(),
        namespace: Some(namespace.to_owned()),
        name: name.to_owned(),
    };
    items.extend([
        made("v1", "Secret", "nodemesh-ca"),
        made("v1", "ConfigMap", "nodemesh-ca-root"),
        made("coordination.k8s.io/v1", "Lease", "nodemesh-controller"),
    ]);
    // The agents while everything they need is there, the namespace when nothing else is.
    items.reverse();
    items.sort_by_key(|item| match item.kind.as_str() {
        "DaemonSet" if item.name == AGENT => 0,
        "Namespace" => 2,
        _ => 1,
    });
    Ok(items)
}

/// Removes the mesh.
pub(in crate::cli) async fn run(args: &UninstallArgs) -> Result<Exit, CliError> {
    let namespace = &args.target.mesh_namespace;
    let kube = args.target.connect().await?;
    let items = items(namespace)?;
    if args.dry_run {
        for item in &items {
            say!("would remove {}", item.label());
        }
        if args.crds {
            for crd in crds() {
                say!("would remove CustomResourceDefinition {}", crd.name());
            }
        }
        return Ok(Exit::Good);
    }
    let gone = agents(&kube, namespace, args.timeout.0).await?;
    let rest = items.iter().filter(|item| !(item.kind == "DaemonSet" && item.name == AGENT));
    for item in rest {
        if item.kind == "Namespace" && !own_namespace(&kube, namespace).await? {
            say!("left    {}: it was not made by `mesh-agent install`", item.label());
            continue;
        }
        if remove(&item.api(&kube), &item.name, &item.label()).await? {
            say!("removed {}", item.label());
        }
    }
    if args.crds {
        definitions(&kube).await?;
    }
    Ok(if gone { Exit::Good } else { Exit::No })
}

/// Deletes the DaemonSet and waits for its pods. Returns whether all have gone.
async fn agents(kube: &Kube, namespace: &str, patience: Duration) -> Result<bool, CliError> {
    let sets = Api::<DaemonSet>::namespaced(kube.clone(), namespace);
    // In the foreground: the object stays, marked, until its pods have gone, and so the agents can ask.
    match sets.delete(AGENT, &DeleteParams::foreground()).await {
        Ok(_) => say!("waiting for the agents to take their pods out of the mesh"),
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        Err(error) => return Err(refused("deleting the agents", &error)),
    }
    let pods = Api::<Pod>::namespaced(kube.clone(), namespace);
    let of = ListParams::default().labels(&format!("app={AGENT}"));
    let end = tokio::time::Instant::now() + patience;
    loop {
        let left = pods.list(&of).await.map_err(|error| refused("listing the agents' pods", &error))?;
        if left.items.is_empty() {
            say!("removed DaemonSet {namespace}/{AGENT}");
            return Ok(true);
        }
        if tokio::time::Instant::now() >= end {
            let nodes: Vec<String> =
                left.items.iter().filter_map(|pod| pod.spec.as_ref()?.node_name.clone()).collect();
            eprintln!(
                "mesh-agent: the agents of these nodes have not gone: {}; what they left is gone when the node boots, \
                 or by `mesh-agent uninstall` once they are reachable",
                nodes.join(", ")
            );
            return Ok(false);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Whether the namespace is the mesh's, and not one that somebody else has made for it.
async fn own_namespace(kube: &Kube, name: &str) -> Result<bool, CliError> {
    let found = Api::<Namespace>::all(kube.clone()).get_opt(name).await;
    let found = found.map_err(|error| refused("asking for the namespace", &error))?;
    Ok(found.is_none_or(|namespace| namespace.labels().get(PART_OF_LABEL).is_some_and(|of| of == PART_OF)))
}

/// Returns whether there was something to remove.
async fn remove(api: &Api<DynamicObject>, name: &str, label: &str) -> Result<bool, CliError> {
    match api.delete(name, &DeleteParams::background()).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
        Err(error) => Err(refused(&format!("removing {label}"), &error)),
    }
}

/// Only those that `install --crds` has made: Istio's are Istio's.
async fn definitions(kube: &Kube) -> Result<(), CliError> {
    for crd in crds() {
        let item = Item {
            api_version: "apiextensions.k8s.io/v1".to_owned(),
            kind: "CustomResourceDefinition".to_owned(),
            namespace: None,
            name: crd.name().to_owned(),
        };
        let api = item.api(kube);
        let found =
            api.get_metadata_opt(&item.name).await.map_err(|error| refused("asking for CRDs", &error))?;
        let Some(found) = found else { continue };
        if found.labels().get(PART_OF_LABEL).is_none_or(|of| of != PART_OF) {
            say!("left    {}: it is not Nodemesh's", item.label());
        } else if remove(&api, &item.name, &item.label()).await? {
            say!("removed {}", item.label());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The agents need the API, their account and their rights to leave in order.
    #[test]
    fn the_agents_go_first_and_the_namespace_last() {
        let items = items("mesh").unwrap();
        assert_eq!(items[0].label(), "DaemonSet mesh/nodemesh-agent");
        assert_eq!(items.last().unwrap().label(), "Namespace mesh");
        let at = |label: &str| items.iter().position(|item| item.label() == label).expect(label);
        assert!(at("Deployment mesh/nodemesh-controller") < at("ClusterRole nodemesh-controller"));
        assert!(at("Secret mesh/nodemesh-ca") < items.len() - 1);
    }

    #[test]
    fn plurals_are_the_api_servers() {
        for (kind, wanted) in
            [("NetworkPolicy", "networkpolicies"), ("DaemonSet", "daemonsets"), ("Namespace", "namespaces")]
        {
            assert_eq!(plural(kind), wanted);
        }
    }
}
