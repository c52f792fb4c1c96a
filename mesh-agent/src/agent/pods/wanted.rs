//! Which pods of the node belong into the mesh, and whether what is attached still is what is wanted. Called by `pods`.

use super::*;

/// What capture must know of a pod; none while it has no namespace or address.
pub(super) fn attachment(
    world: &World,
    workload: &Workload,
    namespaces: &PodNamespaces,
) -> Option<PodAttachment> {
    let (netns, addresses) = match &workload.netns {
        Some(path) => (Namespace::from(path.clone()), workload.addresses.clone()),
        None => namespaces.get(&workload.id, &workload.addresses)?,
    };
    if addresses.is_empty() {
        return None;
    }
    Some(PodAttachment {
        id: workload.id.clone(),
        netns,
        addresses,
        // STRICT promises that no unauthenticated byte arrives, also while no agent runs.
        fail_closed: world.mtls_mode(workload, 0).0 == MtlsMode::Strict,
    })
}

/// The pods of a node that belong into the mesh.
pub(super) fn enrolled<'a>(world: &'a World, node: &str) -> impl Iterator<Item = &'a Arc<Workload>> {
    world.workloads_on(node).filter(|workload| workload.enrolled)
}

/// The pods among these whose namespaces no annotation names. They have UIDs: an API server gave them one.
pub(super) fn to_find<'a>(workloads: &[&'a Arc<Workload>]) -> Vec<Wanted<'a>> {
    let unnamed = workloads.iter().filter(|workload| workload.netns.is_none());
    unnamed
        .filter_map(|workload| {
            Some(Wanted {
                id: &workload.id,
                uid: workload.uid()?,
                containers: &workload.containers,
                addresses: &workload.addresses,
            })
        })
        .collect()
}

/// Whether the pod must be attached anew: another namespace or other addresses.
pub(super) fn moved(wanted: &PodAttachment, attached: &Attached) -> bool {
    let sorted = |attachment: &PodAttachment| {
        // The CNI plugin's order need not be the API server's.
        let mut addresses = attachment.addresses.clone();
        addresses.sort_unstable();
        addresses
    };
    sorted(wanted) != sorted(&attached.attachment) || !names(&wanted.netns, &attached.pod.netns)
}

/// Whether this is how the namespace is named. A file that cannot be looked at says nothing against it, one that is
/// not there does; a namespace that is held open is itself.
pub(super) fn names(namespace: &Namespace, netns: &NetNs) -> bool {
    let path = match namespace {
        Namespace::Open(open) => return open.cookie() == netns.cookie(),
        Namespace::Path(path) => path,
    };
    let known = match nix::sys::stat::fstat(netns.as_fd()) {
        Ok(known) => known,
        Err(_) => return true,
    };
    match std::fs::metadata(path) {
        Ok(found) => (found.dev(), found.ino()) == (known.st_dev, known.st_ino),
        Err(error) => error.kind() != std::io::ErrorKind::NotFound,
    }
}
