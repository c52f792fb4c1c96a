//! Pod, Namespace and Node into facts: who is where, under which identity, and whether it may be enrolled.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;

use super::{Compiled, Diagnostic, Head, Kind, NamespaceFacts, NodeFacts, Object, Origin, PodFacts, typed};
use crate::api::names::{
    CANONICAL_NAME_LABELS, CANONICAL_REVISION_LABELS, LOCALITY_LABEL, MESH_DISABLED, MESH_ENABLED,
    MESH_LABEL, NETNS_ANNOTATION, OLD_REGION_LABEL, OLD_ZONE_LABEL, POD_TEMPLATE_HASH_LABEL, REGION_LABEL,
    SUBZONE_LABEL, ZONE_LABEL,
};
use crate::api::{Namespace, Node, Pod};
use crate::model::{Identity, Labels, Workload, WorkloadId};

/// `metadata.creationTimestamp`, seconds since 1970; 0 when unknown.
pub(super) fn created(metadata: &ObjectMeta) -> i64 {
    metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second())
}

/// The object's metadata checks that every kind shares.
pub(super) fn named(head: &Head<'_>, out: &mut Compiled) -> bool {
    if head.name.is_empty() {
        out.diagnostics.push(head.error("metadata.name", "is missing", "name the object"));
    }
    !head.name.is_empty()
}

pub(super) fn namespace(head: &Head<'_>, value: &Value, out: &mut Compiled) {
    typed::warn_unknown::<Namespace>(head, value, &mut out.diagnostics);
    let object: Namespace = match typed::read(head, value) {
        Ok(object) => object,
        Err(diagnostic) => return out.diagnostics.push(*diagnostic),
    };
    if !named(head, out) {
        return;
    }
    let labels = object.metadata.labels.unwrap_or_default();
    let enrolled = match labels.get(MESH_LABEL).map(String::as_str) {
        Some(MESH_ENABLED) => true,
        None | Some(MESH_DISABLED) => false,
        Some(other) => {
            out.diagnostics.push(mesh_label(head, other));
            false
        }
    };
    out.objects.push((head.key(Kind::Namespace), Object::Namespace(NamespaceFacts { enrolled })));
}

fn mesh_label(head: &Head<'_>, value: &str) -> Diagnostic {
    head.warning(
        &format!("metadata.labels.{MESH_LABEL}"),
        &format!("`{value}` is neither {MESH_ENABLED} nor {MESH_DISABLED} and has no effect"),
        "write enabled on a Namespace, disabled on a Pod",
    )
}

pub(super) fn node(head: &Head<'_>, value: &Value, out: &mut Compiled) {
    typed::warn_unknown::<Node>(head, value, &mut out.diagnostics);
    let object: Node = match typed::read(head, value) {
        Ok(object) => object,
        Err(diagnostic) => return out.diagnostics.push(*diagnostic),
    };
    if !named(head, out) {
        return;
    }
    let listed = object.status.and_then(|status| status.addresses).unwrap_or_default();
    let internal = listed.iter().filter(|address| address.type_ == "InternalIP");
    let addresses = internal.filter_map(|address| address.address.parse().ok()).collect();
    let labels = object.metadata.labels.unwrap_or_default();
    let facts = NodeFacts { name: Arc::clone(&head.name), addresses, locality: locality(&labels), labels };
    out.objects.push((head.key(Kind::Node), Object::Node(facts)));
}

fn locality(labels: &Labels) -> Arc<str> {
    let known: Vec<&str> =
        [&[REGION_LABEL, OLD_REGION_LABEL][..], &[ZONE_LABEL, OLD_ZONE_LABEL], &[SUBZONE_LABEL]]
            .into_iter()
            .map_while(|names| names.iter().find_map(|name| labels.get(*name)).map(String::as_str))
            .collect();
    known.join("/").into()
}

/// Of a pod itself; empty = its node's.
fn own_locality(labels: &Labels) -> Arc<str> {
    match labels.get(LOCALITY_LABEL) {
        Some(text) if text.contains('/') => text.as_str().into(),
        Some(text) => text.replace('.', "/").into(),
        None => "".into(),
    }
}

pub(super) fn pod(head: &Head<'_>, value: &Value, out: &mut Compiled) {
    typed::warn_unknown::<Pod>(head, value, &mut out.diagnostics);
    let object: Pod = match typed::read(head, value) {
        Ok(object) => object,
        Err(diagnostic) => return out.diagnostics.push(*diagnostic),
    };
    if !named(head, out) {
        return;
    }
    match workload(head, &object, out) {
        Ok(workload) => {
            let facts = PodFacts { workload, created: created(&object.metadata) };
            out.objects.push((head.key(Kind::Pod), Object::Pod(facts)));
        }
        Err(diagnostic) => out.diagnostics.push(*diagnostic),
    }
}

fn workload(head: &Head<'_>, pod: &Pod, out: &mut Compiled) -> Result<Workload, Box<Diagnostic>> {
    let spec = pod.spec.as_ref();
    let labels = pod.metadata.labels.clone().unwrap_or_default();
    let account = spec.and_then(|spec| spec.service_account_name.as_deref()).filter(|name| !name.is_empty());
    let identity =
        Identity::new(&head.context.mesh.trust_domain, &head.namespace, account.unwrap_or("default"))
            .map_err(|error| {
                head.error(
                    "spec.serviceAccountName",
                    &error.to_string(),
                    "use a name that Kubernetes would accept",
                )
            })?;
    let host_network = spec.and_then(|spec| spec.host_network).unwrap_or(false);
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    let ended = matches!(phase, Some("Succeeded" | "Failed"));
    let label = labels.get(MESH_LABEL).map(String::as_str);
    if let Some(other) = label.filter(|value| !matches!(*value, MESH_ENABLED | MESH_DISABLED)) {
        out.diagnostics.push(mesh_label(head, other));
    }
    let workload_name = workload_name(pod, &labels).unwrap_or_else(|| head.name.to_string());
    let canonical = |keys: &[&str]| keys.iter().find_map(|key| labels.get(*key)).map(String::as_str);
    Ok(Workload {
        id: workload_id(head, pod.metadata.uid.as_deref()),
        name: Arc::clone(&head.name),
        namespace: Arc::clone(&head.namespace),
        identity,
        addresses: addresses(head, pod, out)?,
        node: spec.and_then(|spec| spec.node_name.as_deref()).unwrap_or_default().into(),
        locality: own_locality(&labels),
        enrolled: !host_network && !ended && label != Some(MESH_DISABLED),
        netns: netns(head, pod, out)?,
        containers: containers(pod),
        canonical_service: canonical(&CANONICAL_NAME_LABELS).unwrap_or(&workload_name).into(),
        canonical_revision: canonical(&CANONICAL_REVISION_LABELS).unwrap_or("latest").into(),
        workload_name: workload_name.as_str().into(),
        labels: Arc::new(labels),
        ended,
        host_network,
    })
}

fn workload_id(head: &Head<'_>, uid: Option<&str>) -> WorkloadId {
    let name = format!("{}/{}", head.namespace, head.name);
    WorkloadId(
        uid.filter(|uid| !uid.is_empty()).map_or_else(|| name.clone(), |uid| format!("{name}/{uid}")).into(),
    )
}

fn addresses(head: &Head<'_>, pod: &Pod, out: &mut Compiled) -> Result<Vec<IpAddr>, Box<Diagnostic>> {
    let Some(status) = &pod.status else { return Ok(Vec::new()) };
    let several = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
    let texts: Vec<&str> = match &status.pod_ip {
        Some(single) if status.pod_ips.is_none() => vec![single],
        _ => several.collect(),
    };
    let mut found: Vec<IpAddr> = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        let field = format!("status.podIPs[{index}].ip");
        let address = text.parse::<IpAddr>().ok().filter(|address| !address.is_unspecified());
        let address = address.map(|address| address.to_canonical()).ok_or_else(|| {
            head.error(&field, &format!("`{text}` is not a pod's address"), "write one IPv4 or IPv6 address")
        })?;
        if found.iter().any(|other| other.is_ipv4() == address.is_ipv4()) {
            let message = format!("`{text}` is a second address of its family and is not used");
            out.diagnostics.push(head.warning(&field, &message, "give a pod at most one address per family"));
            continue;
        }
        found.push(address);
    }
    Ok(found)
}

/// The ids of the pod's containers, without the runtime's name: `containerd://ID`.
fn containers(pod: &Pod) -> Box<[Arc<str>]> {
    let Some(status) = &pod.status else { return Box::default() };
    let all =
        [&status.init_container_statuses, &status.container_statuses, &status.ephemeral_container_statuses];
    let ids = all.into_iter().flatten().flatten().filter_map(|one| one.container_id.as_deref());
    ids.filter_map(|id| Some(Arc::from(id.split_once("://")?.1))).collect()
}

fn netns(head: &Head<'_>, pod: &Pod, out: &mut Compiled) -> Result<Option<PathBuf>, Box<Diagnostic>> {
    let annotations = pod.metadata.annotations.as_ref();
    let Some(text) = annotations.and_then(|all| all.get(NETNS_ANNOTATION)) else { return Ok(None) };
    if head.context.origin == Origin::Cluster {
        // Whoever may make a pod would else take another pod's namespace, and with it its identity.
        out.diagnostics.push(head.warning(
            &format!("metadata.annotations.{NETNS_ANNOTATION}"),
            "is for manifest files only and has no effect in a cluster",
            "remove it; the agent finds the pod's namespace by itself",
        ));
        return Ok(None);
    }
    if text.starts_with('/') && !text.contains('\0') {
        return Ok(Some(PathBuf::from(text)));
    }
    Err(Box::new(head.error(
        &format!("metadata.annotations.{NETNS_ANNOTATION}"),
        &format!("`{text}` is not an absolute path"),
        "write the path of the network namespace, such as /run/netns/NAME",
    )))
}

/// The owner as metrics name it: the Deployment behind a ReplicaSet, else the owner, else what the name was made
/// from.
fn workload_name(pod: &Pod, labels: &Labels) -> Option<String> {
    let owners = pod.metadata.owner_references.as_deref().unwrap_or_default();
    if let Some(owner) = owners.iter().find(|owner| owner.controller == Some(true)) {
        let hash = labels.get(POD_TEMPLATE_HASH_LABEL).map(String::as_str).unwrap_or_default();
        let deployment = owner.name.strip_suffix(hash).and_then(|name| name.strip_suffix('-'));
        let name = if owner.kind == "ReplicaSet" && !hash.is_empty() { deployment } else { None };
        return Some(name.unwrap_or(&owner.name).to_owned());
    }
    let generated = pod.metadata.generate_name.as_deref()?.trim_end_matches('-');
    (!generated.is_empty()).then(|| generated.to_owned())
}

#[cfg(test)]
mod tests;
