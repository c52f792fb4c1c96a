//! PeerAuthentication after inheritance: workload over namespace over mesh, the oldest of one scope, UNSET from
//! the parent, `portLevelMtls` by container port (Istio `policy_applier.go`, reference section 4.2).
//! Called by `inbound`, `outbound::transport` and the world's views.

use std::cmp::Reverse;

use super::Snapshot;
use crate::model::{Labels, MtlsMode, PeerAuth, PolicyRef, Workload};

/// The scopes, broadest first.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Mesh,
    Namespace,
    Workload,
}

/// The mode of one container port, and the object it comes from (none = the mesh's default, PERMISSIVE).
pub fn mode<S: Snapshot + ?Sized>(world: &S, dst: &Workload, port: u16) -> (MtlsMode, Option<PolicyRef>) {
    let mut mode = MtlsMode::Permissive;
    let mut from = None;
    for level in [Level::Mesh, Level::Namespace, Level::Workload] {
        let Some(policy) = strongest(world, dst, level) else { continue };
        if policy.invalid.is_some() {
            mode = MtlsMode::Strict;
            from = Some(policy);
            continue;
        }
        if let Some(set) = policy.mode {
            mode = set;
            from = Some(policy);
        }
        // A port that is UNSET keeps the workload's mode, which by now is inherited.
        if level == Level::Workload
            && let Some(Some(set)) = policy.ports.get(&port)
        {
            mode = *set;
            from = Some(policy);
        }
    }
    (mode, from.map(|policy| policy.policy.clone()))
}

/// The one policy of a scope that counts: what could not be understood first, else the oldest, else by name.
fn strongest<'a, S: Snapshot + ?Sized>(
    world: &'a S,
    dst: &'a Workload,
    level: Level,
) -> Option<&'a PeerAuth> {
    let namespace = if level == Level::Mesh { world.root_namespace() } else { &dst.namespace };
    world
        .peer_auths(namespace)
        .map(AsRef::as_ref)
        .filter(|policy| in_scope(policy, world.root_namespace(), dst, level))
        .min_by_key(|policy| (Reverse(policy.invalid.is_some()), policy.created, &policy.policy.name))
}

fn in_scope(policy: &PeerAuth, root: &str, dst: &Workload, level: Level) -> bool {
    let of_root = &*policy.policy.namespace == root;
    match (&policy.selector, level) {
        (None, Level::Mesh) => of_root,
        (None, Level::Namespace) => !of_root,
        // Istio ignores a selector in the root namespace, also for that namespace's own workloads.
        (Some(selector), Level::Workload) => !of_root && selects(selector, &dst.labels),
        (None, Level::Workload) | (Some(_), Level::Mesh | Level::Namespace) => false,
    }
}

/// Whether every label of the selector is on the workload.
pub fn selects(selector: &Labels, labels: &Labels) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}
