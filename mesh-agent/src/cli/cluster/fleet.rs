//! The agents of a cluster, and asking all of them. Called by `cli::cluster`.

use std::cmp::Reverse;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::ListParams;
use kube::{Api, Client as Kube};
use serde::de::DeserializeOwned;

use super::exec::PodDial;
use super::{Target, refused};
use crate::admin::{Client, ClientError};
use crate::cli::CliError;
use crate::install::AGENT;

/// Agents asked at a time: each is a connection through the API server.
const ASKED_AT_ONCE: usize = 16;

/// One node's agent.
#[derive(Clone)]
pub(in crate::cli) struct Member {
    pub(in crate::cli) node: String,
    pub(in crate::cli) client: Client,
}

/// What one agent answered.
pub(in crate::cli) struct Answer<T> {
    pub(in crate::cli) node: String,
    pub(in crate::cli) result: Result<T, ClientError>,
}

/// The agents that serve, by node.
#[derive(Clone)]
pub(in crate::cli) struct Fleet {
    pub(in crate::cli) members: Vec<Member>,
}

impl Fleet {
    /// Every node's agent, or the one of `--node`.
    pub(in crate::cli) async fn find(kube: &Kube, target: &Target) -> Result<Self, CliError> {
        let pods = Api::<Pod>::namespaced(kube.clone(), &target.mesh_namespace);
        let of = ListParams::default().labels(&format!("app={AGENT}"));
        let found = pods.list(&of).await.map_err(|error| refused("listing the agents' pods", &error))?;
        let mut serving: Vec<(String, &Pod)> = found
            .items
            .iter()
            .filter(|pod| running(pod))
            .filter_map(|pod| Some((node_of(pod)?.to_owned(), pod)))
            .filter(|(node, _)| target.node.as_ref().is_none_or(|wanted| wanted == node))
            .collect();
        // During a rollout two are on a node: the ready one serves, and of equals the younger.
        serving.sort_by_key(|(node, pod)| {
            let made = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
            (node.clone(), !ready(pod), Reverse(made))
        });
        serving.dedup_by(|one, before| one.0 == before.0);
        if serving.is_empty() {
            return Err(nobody(kube, target).await);
        }
        let members = serving
            .into_iter()
            .map(|(node, pod)| {
                let pod = pod.metadata.name.clone().unwrap_or_default();
                let dial = PodDial { pods: pods.clone(), pod, node: node.clone() };
                Member { node, client: Client::through(Arc::new(dial)) }
            })
            .collect();
        Ok(Self { members })
    }

    /// Asks all for one view, in the order of the nodes.
    pub(in crate::cli) async fn get<T: DeserializeOwned>(&self, view: &str) -> Vec<Answer<T>> {
        stream::iter(self.members.iter().cloned())
            .map(|member| async move { Answer { node: member.node, result: member.client.get(view).await } })
            .buffered(ASKED_AT_ONCE)
            .collect()
            .await
    }

    pub(in crate::cli) fn member(&self, node: &str) -> Option<&Member> {
        self.members.iter().find(|member| member.node == node)
    }
}

/// Nobody to ask: says whether it is the node's name, or the installation.
async fn nobody(kube: &Kube, target: &Target) -> CliError {
    let Some(node) = &target.node else {
        return CliError::Cluster {
            cause: format!("no running pod of DaemonSet {AGENT} in namespace {}", target.mesh_namespace),
            remedy: "is the mesh installed? `mesh-agent install | kubectl apply -f -`, or name its --mesh-namespace",
        };
    };
    match Api::<Node>::all(kube.clone()).get_opt(node).await {
        Ok(None) => CliError::Cluster {
            cause: format!("--node {node}: there is no such node"),
            remedy: "`kubectl get nodes` lists them",
        },
        _ => CliError::Cluster {
            cause: format!("--node {node}: no agent runs on it"),
            remedy: "`kubectl describe daemonset nodemesh-agent` in the mesh's namespace tells why",
        },
    }
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}

fn running(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none()
        && pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running")
}

pub(super) fn ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|one| one.type_ == "Ready" && one.status == "True"))
}
