//! `check` against a cluster: whether the mesh can be installed (`--pre`), and whether it is and works.
//! Owns: what is asked and how it is judged. Called by `cli::cluster`.

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::core::v1::{Namespace, Node};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ListParams, PostParams};
use kube::{Api, Client as Kube, ResourceExt};

use super::fleet::Fleet;
use super::{Target, chain, refused};
use crate::admin::{Check, Outcome, Version};
use crate::cli::check::probe::{KERNEL_MIN, version};
use crate::cli::output::Printer;
use crate::cli::{CliError, Exit, check};
use crate::install::{AGENT, CONTROLLER, HOLDER, crds};

const CLUSTER: &str = "cluster";
const RIGHTS: &str = "rights";
const NODES: &str = "nodes";
const MESH: &str = "mesh";
/// The first with every field of the manifests (AppArmor profiles as fields of their own, beyond beta).
const SERVER_MIN: (u32, u32) = (1, 31);
/// DaemonSets of Istio's that steer pods' connections too.
const ISTIO_NODE_AGENTS: [&str; 2] = ["istio-cni-node", "ztunnel"];

/// What `install` makes: group, resource, and whether it lies in the mesh's namespace.
const MADE: [(&str, &str, bool); 11] = [
    ("", "namespaces", false),
    ("rbac.authorization.k8s.io", "clusterroles", false),
    ("rbac.authorization.k8s.io", "clusterrolebindings", false),
    ("rbac.authorization.k8s.io", "roles", true),
    ("", "serviceaccounts", true),
    ("", "configmaps", true),
    ("", "services", true),
    ("apps", "daemonsets", true),
    ("apps", "deployments", true),
    ("policy", "poddisruptionbudgets", true),
    ("networking.k8s.io", "networkpolicies", true),
];

pub(in crate::cli) async fn run(
    kube: &Kube,
    target: &Target,
    printer: Printer,
    before: bool,
) -> Result<Exit, CliError> {
    let mut checks = vec![server(kube).await?];
    if before {
        checks.extend(rights(kube, &target.mesh_namespace).await?);
        checks.extend(nodes(kube).await?);
        checks.extend(neighbours(kube).await?);
        checks.extend(definitions(kube).await?);
    } else {
        checks.extend(installed(kube, &target.mesh_namespace).await?);
        checks.extend(definitions(kube).await?);
        checks.extend(agents(kube, target).await?);
    }
    printer.print(&checks, |checks, style| check::draw(checks, style))?;
    let failed = checks.iter().any(|check| check.outcome == Outcome::Fail);
    Ok(if failed { Exit::No } else { Exit::Good })
}

async fn server(kube: &Kube) -> Result<Check, CliError> {
    let info = kube.apiserver_version().await.map_err(|error| refused("asking for its version", &error))?;
    Ok(judge_server(&info.git_version))
}

fn judge_server(git_version: &str) -> Check {
    let (major, minor) = SERVER_MIN;
    match version(git_version.trim_start_matches('v')) {
        Some(found) if found >= SERVER_MIN => Check::pass(CLUSTER, "API server", git_version),
        Some(_) => Check::fail(
            CLUSTER,
            "API server",
            format!("{git_version} is older than {major}.{minor}"),
            "upgrade the cluster",
        ),
        None => Check::warn(
            CLUSTER,
            "API server",
            format!("`{git_version}` is no version"),
            "make sure that it is Kubernetes 1.31 or newer",
        ),
    }
}

async fn rights(kube: &Kube, namespace: &str) -> Result<Vec<Check>, CliError> {
    let reviews = Api::<SelfSubjectAccessReview>::all(kube.clone());
    let mut checks = Vec::new();
    for (group, resource, inside) in MADE {
        let attributes = ResourceAttributes {
            group: Some(group.to_owned()),
            resource: Some(resource.to_owned()),
            verb: Some("create".to_owned()),
            namespace: inside.then(|| namespace.to_owned()),
            ..ResourceAttributes::default()
        };
        let spec =
            SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() };
        let review = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
        let answer = reviews
            .create(&PostParams::default(), &review)
            .await
            .map_err(|error| refused("asking what you may do", &error))?;
        let name = format!("create {resource}");
        checks.push(if answer.status.is_some_and(|status| status.allowed) {
            Check::pass(RIGHTS, &name, "allowed")
        } else {
            Check::fail(RIGHTS, &name, "not allowed", "install as a cluster administrator")
        });
    }
    Ok(checks)
}

async fn nodes(kube: &Kube) -> Result<Vec<Check>, CliError> {
    let all = Api::<Node>::all(kube.clone())
        .list(&ListParams::default())
        .await
        .map_err(|error| refused("listing the nodes", &error))?;
    Ok(all.items.iter().map(judge_node).collect())
}

fn judge_node(node: &Node) -> Check {
    let name = node.name_any();
    let Some(info) = node.status.as_ref().and_then(|status| status.node_info.as_ref()) else {
        return Check::warn(NODES, &name, "tells nothing about itself yet", "wait until it is ready");
    };
    let kernel = &info.kernel_version;
    let detail = format!("{kernel}, {}", info.container_runtime_version);
    if info.operating_system != "linux" {
        let detail = format!("{}: no agent runs there", info.operating_system);
        return Check::warn(NODES, &name, detail, "its pods stay outside the mesh");
    }
    match version(kernel) {
        Some(found) if found >= KERNEL_MIN => Check::pass(NODES, &name, detail),
        Some(_) => Check::fail(
            NODES,
            &name,
            format!("kernel {kernel} is older than {}.{}", KERNEL_MIN.0, KERNEL_MIN.1),
            "boot a newer kernel, or keep the agent off the node",
        ),
        None => Check::warn(
            NODES,
            &name,
            format!("kernel `{kernel}` is no version"),
            "make sure that it is 5.15 or newer",
        ),
    }
}

/// Another mesh at work on the same pods.
async fn neighbours(kube: &Kube) -> Result<Vec<Check>, CliError> {
    let list = ListParams::default();
    let sets = Api::<DaemonSet>::all(kube.clone())
        .list(&list)
        .await
        .map_err(|error| refused("listing DaemonSets", &error))?;
    let mut checks: Vec<Check> = sets
        .items
        .iter()
        .filter(|set| ISTIO_NODE_AGENTS.contains(&set.name_any().as_str()))
        .map(|set| {
            let detail = format!("DaemonSet {}/{}", set.namespace().unwrap_or_default(), set.name_any());
            let remedy =
                "enrol a namespace in one mesh only; both understand HBONE and can talk to each other";
            Check::warn(CLUSTER, "Istio on the nodes", detail, remedy)
        })
        .collect();
    let namespaces = Api::<Namespace>::all(kube.clone())
        .list(&list)
        .await
        .map_err(|error| refused("listing namespaces", &error))?;
    let taken: Vec<String> = namespaces
        .items
        .iter()
        .filter(|namespace| {
            let label = |name: &str| namespace.labels().get(name).map(String::as_str);
            label("istio-injection") == Some("enabled")
                || label("istio.io/rev").is_some()
                || label("istio.io/dataplane-mode") == Some("ambient")
        })
        .map(ResourceExt::name_any)
        .collect();
    if !taken.is_empty() {
        let detail = format!("of Istio's: {}", taken.join(", "));
        let remedy = "remove Istio's label before nodemesh.io/mesh=enabled is set";
        checks.push(Check::warn(CLUSTER, "namespaces", detail, remedy));
    }
    if checks.is_empty() {
        checks.push(Check::pass(CLUSTER, "other meshes", "none"));
    }
    Ok(checks)
}

async fn definitions(kube: &Kube) -> Result<Vec<Check>, CliError> {
    let api = Api::<CustomResourceDefinition>::all(kube.clone());
    let mut checks = Vec::new();
    for crd in crds() {
        let found =
            api.get_metadata_opt(crd.name()).await.map_err(|error| refused("asking for CRDs", &error))?;
        checks.push(match found {
            Some(_) => Check::pass(CLUSTER, crd.name(), "installed"),
            None => Check::warn(
                CLUSTER,
                crd.name(),
                "not installed: such policies cannot be written",
                "mesh-agent install --crds-only | kubectl apply --server-side -f -",
            ),
        });
    }
    Ok(checks)
}

async fn installed(kube: &Kube, namespace: &str) -> Result<Vec<Check>, CliError> {
    let sets = Api::<DaemonSet>::namespaced(kube.clone(), namespace);
    let mut checks = Vec::new();
    for name in [AGENT, HOLDER] {
        let found = sets.get_opt(name).await.map_err(|error| refused("asking for DaemonSets", &error))?;
        checks.push(judge_daemonset(name, namespace, found.as_ref()));
    }
    let found = Api::<Deployment>::namespaced(kube.clone(), namespace)
        .get_opt(CONTROLLER)
        .await
        .map_err(|error| refused("asking for Deployments", &error))?;
    checks.push(judge_controller(namespace, found.as_ref()));
    Ok(checks)
}

const NOT_INSTALLED: &str =
    "`mesh-agent install | kubectl apply -f -`, or name the namespace with --mesh-namespace";

fn judge_daemonset(name: &str, namespace: &str, found: Option<&DaemonSet>) -> Check {
    let Some(set) = found else {
        return Check::fail(MESH, name, format!("not in namespace {namespace}"), NOT_INSTALLED);
    };
    let status = set.status.clone().unwrap_or_default();
    let (wanted, ready) = (status.desired_number_scheduled, status.number_ready);
    let updated = status.updated_number_scheduled.unwrap_or_default();
    if status.observed_generation != set.metadata.generation {
        let remedy = "wait for the DaemonSet controller; is kube-controller-manager running?";
        return Check::warn(MESH, name, "its last change has not been seen yet", remedy);
    }
    if ready < wanted {
        let remedy = format!("kubectl -n {namespace} get pods -l app={name} -o wide");
        return Check::fail(MESH, name, format!("ready on {ready} of {wanted} nodes"), &remedy);
    }
    if updated < wanted {
        let detail = format!("{updated} of {wanted} nodes have the last version");
        let remedy = format!("kubectl -n {namespace} rollout status daemonset/{name}");
        return Check::warn(MESH, name, detail, &remedy);
    }
    if wanted == 0 {
        return Check::warn(MESH, name, "no node to run on", "are there nodes with kubernetes.io/os=linux?");
    }
    Check::pass(MESH, name, format!("ready on all {wanted} nodes"))
}

fn judge_controller(namespace: &str, found: Option<&Deployment>) -> Check {
    let Some(deployment) = found else {
        return Check::fail(MESH, CONTROLLER, format!("not in namespace {namespace}"), NOT_INSTALLED);
    };
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let ready = deployment.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or_default();
    let detail = format!("{ready} of {wanted} ready");
    let remedy = format!("kubectl -n {namespace} describe pods -l app={CONTROLLER}");
    match ready {
        0 => Check::fail(MESH, CONTROLLER, format!("{detail}: no certificate is issued or renewed"), &remedy),
        _ if ready < wanted => Check::warn(MESH, CONTROLLER, detail, &remedy),
        _ => Check::pass(MESH, CONTROLLER, detail),
    }
}

/// What each agent says of itself.
async fn agents(kube: &Kube, target: &Target) -> Result<Vec<Check>, CliError> {
    let fleet = match Fleet::find(kube, target).await {
        Ok(fleet) => fleet,
        Err(error) => {
            let remedy = "see above; then look at the agents' logs";
            return Ok(vec![Check::fail(MESH, "agents", chain(&error), remedy)]);
        }
    };
    let own = Version::own().version;
    let mut checks = Vec::new();
    for answer in fleet.get::<Version>("version").await {
        if let Ok(theirs) = answer.result
            && theirs.version != own
        {
            let detail = format!("agent {}, this command {own}", theirs.version);
            let remedy = "finish the rollout, or use the command of the agents' version";
            checks.push(Check::warn(&format!("node {}", answer.node), "version", detail, remedy));
        }
    }
    for answer in fleet.get::<Vec<Check>>("check").await {
        let node = format!("node {}", answer.node);
        match answer.result {
            Ok(theirs) => checks.extend(theirs.into_iter().map(|check| {
                let name = format!("{}: {}", check.group, check.name);
                Check { group: node.clone(), name, ..check }
            })),
            Err(error) => {
                let remedy = "look at the pod's log; may you create pods/exec in the mesh's namespace?";
                checks.push(Check::fail(&node, "answers", error.to_string(), remedy));
            }
        }
    }
    Ok(checks)
}

#[cfg(test)]
mod tests;
