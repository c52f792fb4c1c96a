//! The traffic kinds (`networking.istio.io`, routes of `gateway.networking.k8s.io`) into rules and policies. What
//! cannot be honoured makes the whole object refused, with the field and the remedy, as Istio's own validation does:
//! a route that is half in force would send traffic where nobody wanted it. Called by `compile::document`.

use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::values::Fault;
use super::{Compiled, Diagnostic, Head, pod, typed};
use crate::api::istio::mesh::MeshConfig;
use crate::api::istio::networking;
use crate::model::PolicyRef;
use crate::model::traffic::Defaults;

mod connection;
pub mod delegate;
mod destination_rule;
pub mod gateway;
mod header_text;
mod http_action;
mod http_match;
mod policy;
mod reader;
mod service_entry;
mod virtual_service;

pub use destination_rule::{DestinationRuleFacts, Resolved, ResolvedPolicy, SubsetFacts, Unsaid, resolve};
pub use gateway::RouteFacts;
pub use policy::PolicyParts;
pub use reader::ExportTo;
pub use service_entry::{EntryAddress, EntryEndpoints, NameUse, ServiceEntryFacts, WorkloadEntryFacts};
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

/// The mesh-wide settings that hold for traffic, and what is wrong with them; fields count from `meshConfig`.
pub(super) fn defaults(head: &Head<'_>, config: &MeshConfig) -> (Defaults, Vec<Fault>) {
    let mut reader = Reader::new(head);
    let built_in = Defaults::default();
    let retry = config.default_http_retry_policy.as_ref().map(|given| networking::HttpRetry {
        attempts: Some(i32::try_from(given.attempts).unwrap_or(i32::MAX)),
        per_try_timeout: given.per_try_timeout.clone(),
        retry_on: given.retry_on.clone(),
        retry_remote_localities: given.retry_remote_localities,
        retry_ignore_previous_hosts: given.retry_ignore_previous_hosts,
        backoff: given.backoff.clone(),
    });
    let retry = http_action::retries(&mut reader, "defaultHttpRetryPolicy", retry.as_ref());
    let locality = config.locality_lb_setting.as_ref().map(|given| {
        let distribute = given
            .distribute
            .iter()
            .map(|one| networking::Distribute { from: Some(one.from.clone()), to: Some(one.to.clone()) });
        let failover = given
            .failover
            .iter()
            .map(|one| networking::Failover { from: Some(one.from.clone()), to: Some(one.to.clone()) });
        let given = networking::LocalityLbSetting {
            distribute: Some(distribute.collect()),
            failover: Some(failover.collect()),
            failover_priority: Some(given.failover_priority.clone()),
            enabled: given.enabled,
        };
        policy::locality(&mut reader, "localityLbSetting", &given)
    });
    let defaults =
        Defaults { retry: retry.unwrap_or(built_in.retry), locality: locality.unwrap_or(built_in.locality) };
    (defaults, reader.into_faults())
}

fn refused(diagnostic: Diagnostic) -> Diagnostic {
    Diagnostic { effect: "the object is not in force".to_owned(), ..diagnostic }
}

fn object_ref(head: &Head<'_>, kind: &'static str) -> PolicyRef {
    PolicyRef { kind, namespace: Arc::clone(&head.namespace), name: Arc::clone(&head.name) }
}

#[cfg(test)]
mod tests;
