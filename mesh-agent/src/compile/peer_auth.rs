//! PeerAuthentication into [`PeerAuth`] (reference section 4.2). Broken = STRICT in its scope.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use super::security_object::{check, report, salvage_selector, selector, with_spec};
use super::values::{Fault, fault, port};
use super::{Compiled, Head, Kind, Object, pod, typed};
use crate::api::istio::security::{MutualTls, MutualTlsMode, PeerAuthentication};
use crate::model::{Labels, MtlsMode, PeerAuth, PolicyRef};

pub(super) fn compile(head: &Head<'_>, value: &Value, out: &mut Compiled) {
    let value = &with_spec(value);
    let mut faults = check::<PeerAuthentication>(head, value);
    let read = typed::read::<PeerAuthentication>(head, value);
    let compiled = match read {
        Ok(object) => Some(understood(head, &object, &mut faults)),
        Err(found) => {
            faults.push(fault(&found.field, found.message, found.remedy));
            None
        }
    };
    let policy = match compiled {
        Some(policy) if faults.is_empty() => {
            warn(head, &policy, out);
            policy
        }
        _ => {
            let cause = report(head, &faults, "STRICT holds in its scope", &mut out.diagnostics);
            broken(head, salvage_selector(value), cause)
        }
    };
    out.objects.push((head.key(Kind::PeerAuthentication), Object::PeerAuthentication(policy)));
}

fn policy_ref(head: &Head<'_>) -> PolicyRef {
    PolicyRef {
        kind: Kind::PeerAuthentication.name(),
        namespace: Arc::clone(&head.namespace),
        name: Arc::clone(&head.name),
    }
}

fn understood(head: &Head<'_>, object: &PeerAuthentication, faults: &mut Vec<Fault>) -> PeerAuth {
    let spec = &object.spec;
    let selector = selector(spec.selector.as_ref(), faults);
    let mut ports = BTreeMap::new();
    for (text, tls) in spec.port_level_mtls.iter().flatten() {
        match port(text) {
            Ok(port) => drop(ports.insert(port, mode(Some(tls)))),
            Err((message, remedy)) => {
                faults.push(fault(&format!("spec.portLevelMtls.{text}"), message, remedy));
            }
        }
    }
    if spec.port_level_mtls.is_some() && selector.is_none() {
        faults.push(fault(
            "spec.portLevelMtls",
            "needs a selector with at least one label",
            "add spec.selector.matchLabels, or remove the ports",
        ));
    }
    PeerAuth {
        policy: policy_ref(head),
        selector,
        mode: mode(spec.mtls.as_ref()),
        ports,
        created: pod::created(&object.metadata),
        invalid: None,
    }
}

fn mode(tls: Option<&MutualTls>) -> Option<MtlsMode> {
    match tls?.mode? {
        MutualTlsMode::Unset => None,
        MutualTlsMode::Disable => Some(MtlsMode::Disable),
        MutualTlsMode::Permissive => Some(MtlsMode::Permissive),
        MutualTlsMode::Strict => Some(MtlsMode::Strict),
    }
}

fn warn(head: &Head<'_>, policy: &PeerAuth, out: &mut Compiled) {
    if policy.selector.is_some() && head.namespace == head.context.mesh.root_namespace {
        out.diagnostics.push(head.warning(
            "spec.selector",
            "a policy of the root namespace with a selector is ignored",
            "remove the selector for the whole mesh, or put the policy in the workload's namespace",
        ));
    }
}

/// STRICT as widely as the object may have meant: its selector if that can be read, else every workload of the
/// namespace (of the mesh, in the root namespace).
pub(super) fn broken(head: &Head<'_>, salvaged: Result<Option<Labels>, ()>, cause: String) -> PeerAuth {
    let root = head.namespace == head.context.mesh.root_namespace;
    let selector = match salvaged {
        Ok(selector) => selector,
        // Counts as narrow as it may have been, over all the namespace's workloads.
        Err(()) if !root => Some(Labels::new()),
        // With a selector it would be ignored there; so it is taken as one without.
        Err(()) => None,
    };
    PeerAuth {
        policy: policy_ref(head),
        selector,
        mode: Some(MtlsMode::Strict),
        ports: BTreeMap::new(),
        created: 0,
        invalid: Some(cause),
    }
}

#[cfg(test)]
mod tests;
