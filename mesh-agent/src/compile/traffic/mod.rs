//! The traffic kinds (`networking.istio.io`, routes of `gateway.networking.k8s.io`) into rules and policies. What
//! cannot be honoured makes the whole object refused, with the field and the remedy, as Istio's own validation does:
//! a route that is half in force would send traffic where nobody wanted it. Called by `compile::document`.

use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Compiled, Diagnostic, Head, pod, typed};
use crate::api::istio::networking;
use crate::model::PolicyRef;

mod connection;
pub mod delegate;
mod destination_rule;
pub mod gateway;
mod http_action;
mod http_match;
mod policy;
mod reader;
mod service_entry;
mod virtual_service;

pub use destination_rule::{DestinationRuleFacts, Resolved, ResolvedPolicy, SubsetFacts, resolve};
pub use gateway::RouteFacts;
pub use policy::PolicyParts;
pub use reader::ExportTo;
pub use service_entry::{EntryEndpoints, ServiceEntryFacts, WorkloadEntryFacts};
pub use virtual_service::{HttpEntry, VirtualServiceFacts};

pub(super) use destination_rule::compile as destination_rule;
pub(super) use service_entry::{compile as service_entry, workload as workload_entry};
pub(super) use virtual_service::compile as virtual_service;

use reader::Reader;

/// Reads one of Istio's objects, compiles it with `one`, and keeps the result if nothing was wrong with it.
fn istio<T: DeserializeOwned, O>(
    head: &Head<'_>,
    value: &Value,
    out: &mut Compiled,
    one: impl FnOnce(&mut Reader<'_>, &T) -> O,
) -> Option<O> {
    if head.group != networking::GROUP || !networking::VERSIONS.contains(&head.version.as_str()) {
        out.diagnostics.push(refused(head.error(
            "apiVersion",
            &format!("`{}` is not known for this kind", head.api_version),
            &format!("use {}/{}", networking::GROUP, networking::VERSIONS.join(", ")),
        )));
        return None;
    }
    object(head, value, out, one)
}

fn object<T: DeserializeOwned, O>(
    head: &Head<'_>,
    value: &Value,
    out: &mut Compiled,
    one: impl FnOnce(&mut Reader<'_>, &T) -> O,
) -> Option<O> {
    // A status, whoever wrote it, must not change what the object means.
    let mut value = value.clone();
    if let Some(fields) = value.as_object_mut() {
        fields.remove("status");
    }
    let value = &value;
    let mut reader = Reader::new(head);
    for path in typed::unknown::<T>(value).iter().filter(|path| !path.starts_with("metadata.")) {
        reader.fault(path, "is not a field of this kind", "check its spelling and indentation, or remove it");
    }
    let compiled = match typed::read::<T>(head, value) {
        Ok(object) if pod::named(head, out) => Some(one(&mut reader, &object)),
        Ok(_) => None,
        Err(found) => {
            reader.fault(&found.field, &found.message, &found.remedy);
            None
        }
    };
    let sound = reader.report(out);
    compiled.filter(|_| sound)
}

fn refused(diagnostic: Diagnostic) -> Diagnostic {
    Diagnostic { effect: "the object is not in force".to_owned(), ..diagnostic }
}

fn object_ref(head: &Head<'_>, kind: &'static str) -> PolicyRef {
    PolicyRef { kind, namespace: Arc::clone(&head.namespace), name: Arc::clone(&head.name) }
}

#[cfg(test)]
mod tests;
