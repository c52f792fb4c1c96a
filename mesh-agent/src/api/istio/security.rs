//! `security.istio.io`: PeerAuthentication and AuthorizationPolicy. Both exist as v1beta1 and v1 with one schema;
//! v1alpha1 of this group never had them.
//! Lists are `Option<Vec<_>>`: a list that is present but empty must never read as absent (CVE-2025-64715).

use std::collections::BTreeMap;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::status::IstioStatus;

pub const GROUP: &str = "security.istio.io";
/// Served versions, newest first.
pub const VERSIONS: [&str; 2] = ["v1", "v1beta1"];

/// `selector`: workloads that carry all of these labels.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadSelector {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub match_labels: Option<BTreeMap<String, String>>,
}

/// How clients must connect to workloads.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "security.istio.io",
    version = "v1",
    kind = "PeerAuthentication",
    plural = "peerauthentications",
    shortname = "pa",
    status = "IstioStatus",
    namespaced
)]
#[serde(rename_all = "camelCase")]
pub struct PeerAuthenticationSpec {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<WorkloadSelector>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtls: Option<MutualTls>,
    /// Container port to mode; only with a selector.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port_level_mtls: Option<BTreeMap<String, MutualTls>>,
}

/// `mtls`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MutualTls {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<MutualTlsMode>,
}

/// `mtls.mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum MutualTlsMode {
    Unset,
    Disable,
    Permissive,
    Strict,
}

/// Who may do what to workloads.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "security.istio.io",
    version = "v1",
    kind = "AuthorizationPolicy",
    plural = "authorizationpolicies",
    shortname = "ap",
    status = "IstioStatus",
    namespaced
)]
#[serde(rename_all = "camelCase")]
pub struct AuthorizationPolicySpec {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<WorkloadSelector>,
    /// Older form of a single entry of `targetRefs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_refs: Option<Vec<TargetRef>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<Action>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<Provider>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rules: Option<Vec<Rule>>,
}

/// An object the policy is attached to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TargetRef {
    #[serde(default)]
    pub group: String,
    pub kind: String,
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

/// `action`; absent = ALLOW.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Action {
    Allow,
    Deny,
    Audit,
    Custom,
}

/// `provider` of a CUSTOM policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Provider {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// One rule: any `from`, any `to`, all of `when`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Rule {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Vec<From>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Vec<To>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when: Option<Vec<Condition>>,
}

/// `from[]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct From {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
}

/// `to[]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct To {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<Operation>,
}

/// A list of texts that was present, even if empty.
pub type List = Option<Vec<String>>;

/// `from[].source`: fields are ANDed, the values of one are ORed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Source {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principals: List,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_principals: List,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_principals: List,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_request_principals: List,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespaces: List,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_namespaces: List,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_accounts: List,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_service_accounts: List,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust_domains: List,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_trust_domains: List,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip_blocks: List,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_ip_blocks: List,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote_ip_blocks: List,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_remote_ip_blocks: List,
}

/// `to[].operation`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Operation {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hosts: List,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_hosts: List,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: List,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_ports: List,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub methods: List,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_methods: List,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paths: List,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_paths: List,
}

/// `when[]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    pub key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub values: List,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_values: List,
}

#[cfg(test)]
mod tests;
