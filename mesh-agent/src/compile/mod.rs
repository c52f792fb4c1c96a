//! API objects into model values. Pure: the same document gives the same result, with a diagnostic for whatever
//! was not understood: object, file, field, message, remedy.
//! A security object that cannot be understood becomes one that refuses in its scope (fails closed); any other
//! is refused. Never: I/O, clocks, or knowledge of other objects (that is `world`). Called by `source`.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use serde_json::Value;

use crate::api::gateway;
use crate::api::istio::mesh::MeshConfig;
use crate::api::istio::{install, security};
use crate::api::names::{MESH_CONFIG_MAP, SYSTEM_NAMESPACE};
use crate::model::traffic::Defaults;
use crate::model::{
    AppProtocol, AuthzAction, AuthzPolicy, Balance, Identity, Labels, MtlsMode, PeerAuth, Workload,
};

pub mod authz;
pub mod denied;
pub mod diagnostic;
pub mod mesh_config;
pub mod peer_auth;
pub mod pod;
mod security_object;
pub mod service;
pub mod traffic;
mod typed;
mod values;

pub use diagnostic::{Diagnostic, Severity};
pub use traffic::{
    DestinationRuleFacts, RouteFacts, ServiceEntryFacts, VirtualServiceFacts, WorkloadEntryFacts,
};

/// What every object is compiled against.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct MeshSettings {
    pub trust_domain: Arc<str>,
    pub cluster_domain: Arc<str>,
    /// The namespace whose policies are mesh-wide.
    pub root_namespace: Arc<str>,
    /// Identities that may not talk to anybody (see [`denied`]).
    pub denied: Arc<BTreeSet<Identity>>,
}

impl Default for MeshSettings {
    fn default() -> Self {
        Self {
            trust_domain: "cluster.local".into(),
            cluster_domain: "cluster.local".into(),
            root_namespace: "istio-system".into(),
            denied: Arc::default(),
        }
    }
}

/// The kinds that the world holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
pub enum Kind {
    Namespace,
    Node,
    Pod,
    Service,
    EndpointSlice,
    PeerAuthentication,
    AuthorizationPolicy,
    VirtualService,
    DestinationRule,
    HttpRoute,
    GrpcRoute,
    TcpRoute,
    TlsRoute,
    ServiceEntry,
    WorkloadEntry,
    /// The mesh-wide settings: ConfigMap `nodemesh`, or an IstioOperator's `meshConfig`.
    MeshConfig,
}

impl Kind {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::Pod => "Pod",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::PeerAuthentication => "PeerAuthentication",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::VirtualService => "VirtualService",
            Self::DestinationRule => "DestinationRule",
            Self::HttpRoute => "HTTPRoute",
            Self::GrpcRoute => "GRPCRoute",
            Self::TcpRoute => "TCPRoute",
            Self::TlsRoute => "TLSRoute",
            Self::ServiceEntry => "ServiceEntry",
            Self::WorkloadEntry => "WorkloadEntry",
            Self::MeshConfig => "MeshConfig",
        }
    }

    /// Says where connections and requests go.
    pub const fn is_traffic(self) -> bool {
        matches!(
            self,
            Self::VirtualService
                | Self::DestinationRule
                | Self::HttpRoute
                | Self::GrpcRoute
                | Self::TcpRoute
                | Self::TlsRoute
                | Self::ServiceEntry
        )
    }

    pub const fn is_security(self) -> bool {
        matches!(self, Self::PeerAuthentication | Self::AuthorizationPolicy)
    }
}

/// Names one object. `namespace` is empty for Namespace and Node.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
pub struct ObjectKey {
    pub kind: Kind,
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&object_text(self.kind.name(), &self.namespace, &self.name))
    }
}

/// `Kind ns/name`, or `Kind name` where there is no namespace.
pub fn object_text(kind: &str, namespace: &str, name: &str) -> String {
    let name = if name.is_empty() { "(unnamed)" } else { name };
    if namespace.is_empty() { format!("{kind} {name}") } else { format!("{kind} {namespace}/{name}") }
}

/// A compiled object: what the world stores or derives from.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub enum Object {
    Namespace(NamespaceFacts),
    Node(NodeFacts),
    Pod(PodFacts),
    Service(ServiceFacts),
    EndpointSlice(SliceFacts),
    PeerAuthentication(PeerAuth),
    AuthorizationPolicy(AuthzPolicy),
    VirtualService(Box<VirtualServiceFacts>),
    DestinationRule(Box<DestinationRuleFacts>),
    Route(Box<RouteFacts>),
    ServiceEntry(Box<ServiceEntryFacts>),
    WorkloadEntry(Box<WorkloadEntryFacts>),
    MeshConfig(Box<MeshFacts>),
}

#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct NamespaceFacts {
    pub enrolled: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct NodeFacts {
    pub name: Arc<str>,
    /// `status.addresses` of type InternalIP.
    pub addresses: Vec<IpAddr>,
    /// `region/zone/subzone` from its labels, as far as they go; empty without a region.
    pub locality: Arc<str>,
    pub labels: Labels,
}

/// A Pod; `workload.enrolled` says only that it may be: the world adds its namespace's word.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct PodFacts {
    pub workload: Workload,
    /// Seconds since 1970, 0 when unknown.
    pub created: i64,
}

#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ServiceFacts {
    pub vips: Vec<IpAddr>,
    pub ports: Vec<PortFacts>,
    /// Empty = selects no pod.
    pub selector: Labels,
    pub balance: Balance,
}

#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct PortFacts {
    pub name: Arc<str>,
    pub port: u16,
    pub protocol: AppProtocol,
}

#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct SliceFacts {
    /// The Service of the same namespace.
    pub service: Arc<str>,
    pub endpoints: Vec<EndpointFacts>,
    /// Port name and number.
    pub ports: Vec<(Arc<str>, u16)>,
}

#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct EndpointFacts {
    pub address: IpAddr,
    pub ready: bool,
    /// Going away, but still answering: used when nothing is ready.
    pub serving_terminating: bool,
    pub node: Arc<str>,
    /// Pod name from `targetRef`, in the slice's namespace.
    pub pod: Option<Arc<str>>,
}

/// The mesh-wide settings as one document gives them.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct MeshFacts {
    /// None where the text was refused: what was in force before stays.
    pub config: Option<MeshConfig>,
    /// What of it holds for traffic.
    pub defaults: Arc<Defaults>,
    /// The deny list; it holds whatever the settings beside it look like.
    pub denied: Arc<BTreeSet<Identity>>,
}

/// What became of one document.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Compiled {
    pub objects: Vec<(ObjectKey, Object)>,
    pub diagnostics: Vec<Diagnostic>,
}

/// What one document is compiled with.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    pub mesh: &'a MeshSettings,
    /// `FILE:DOCUMENT`, as diagnostics name it.
    pub source: &'a str,
    pub origin: Origin,
}

/// Who answers for a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A file on this machine: a slip of the pen in any field is worth a word, and its author may name namespaces
    /// of this machine.
    File,
    /// The API server. It has checked the fields of Kubernetes' own kinds, of which it may know more than this
    /// version; whoever may write a pod must not choose a namespace of the node.
    Cluster,
}

/// One YAML document as it is written; the error with its line, counted from 1.
pub fn yaml(text: &str) -> Result<Value, (Option<usize>, String)> {
    let options = serde_saphyr::options! {
        // Two equal keys must not silently become one: the author meant both.
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::Error,
        // A name such as `n` or `on` is a text; only true and false are booleans (YAML 1.2).
        strict_booleans: true,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let line = error.location().and_then(|location| usize::try_from(location.line()).ok());
        let message = error.without_snippet().to_string();
        (line, message.lines().next().unwrap_or_default().to_owned())
    })
}

/// Compiles one document; a `List` gives several objects, a kind the mesh does not read gives none.
pub fn document(context: &Context<'_>, value: &Value) -> Compiled {
    let mut out = Compiled::default();
    one(context, value, &mut out);
    out
}

fn one(context: &Context<'_>, value: &Value, out: &mut Compiled) {
    let head = Head::of(context, value);
    if head.kind == "List" && head.group.is_empty() {
        match value.get("items").and_then(Value::as_array) {
            Some(items) => items.iter().for_each(|item| one(context, item, out)),
            None => out.diagnostics.push(head.error("items", "is not a list", "give the List its items")),
        }
        return;
    }
    match (head.group.as_str(), head.kind.as_str()) {
        (_, "AuthorizationPolicy") => authz::compile(&head, value, out),
        (_, "PeerAuthentication") => peer_auth::compile(&head, value, out),
        ("", "Namespace") => pod::namespace(&head, value, out),
        ("", "Node") => pod::node(&head, value, out),
        ("", "Pod") => pod::pod(&head, value, out),
        ("", "Service") => service::service(&head, value, out),
        ("", "ConfigMap") if *head.name == *MESH_CONFIG_MAP && *head.namespace == *SYSTEM_NAMESPACE => {
            mesh_config::config_map(&head, value, out);
        }
        (install::GROUP, "IstioOperator") => mesh_config::operator(&head, value, out),
        ("discovery.k8s.io", "EndpointSlice") => service::slice(&head, value, out),
        (_, "VirtualService") => traffic::virtual_service(&head, value, out),
        (_, "DestinationRule") => traffic::destination_rule(&head, value, out),
        (_, "ServiceEntry") => traffic::service_entry(&head, value, out),
        (_, "WorkloadEntry") => traffic::workload_entry(&head, value, out),
        (gateway::GROUP, "HTTPRoute") => traffic::gateway::http(&head, value, out),
        (gateway::GROUP, "GRPCRoute") => traffic::gateway::grpc(&head, value, out),
        (gateway::GROUP, "TCPRoute") => traffic::gateway::tcp(&head, value, out),
        (gateway::GROUP, "TLSRoute") => traffic::gateway::tls(&head, value, out),
        (security::GROUP, kind) if kind != "RequestAuthentication" => authz::unknown_kind(&head, value, out),
        _ => out.diagnostics.push(unread(&head, value)),
    }
}

/// What an object becomes of which there are two definitions and nobody knows which one holds: a security object
/// fails closed, as widely as either may have meant; any other is kept as it is.
pub fn ambiguous(object: &Object, cause: &str) -> Object {
    match object {
        Object::AuthorizationPolicy(policy) => {
            let mut policy = policy.clone();
            policy.action = AuthzAction::Deny;
            policy.scope.selector = None;
            policy.scope.services.clear();
            policy.rules.clear();
            policy.dry_run = false;
            policy.invalid = Some(cause.to_owned());
            Object::AuthorizationPolicy(policy)
        }
        Object::PeerAuthentication(policy) => {
            let mut policy = policy.clone();
            policy.selector = policy.selector.map(|_| Labels::new());
            policy.mode = Some(MtlsMode::Strict);
            policy.ports.clear();
            policy.invalid = Some(cause.to_owned());
            Object::PeerAuthentication(policy)
        }
        other => other.clone(),
    }
}

/// What a document that is not YAML is taken for when it must fail closed: if it names a security kind, a policy that
/// refuses in the namespace it names, or everywhere if it names none.
pub fn unreadable(context: &Context<'_>, text: &str) -> Compiled {
    let after = |key: &str| {
        let found = text.lines().find_map(|line| line.trim().strip_prefix(key));
        found.map(|value| value.trim().trim_matches(['"', '\'']).to_owned())
    };
    let mut out = Compiled::default();
    let kind = [Kind::AuthorizationPolicy, Kind::PeerAuthentication]
        .into_iter()
        .find(|kind| text.contains(kind.name()));
    let Some(kind) = kind else { return out };
    let good =
        |name: &String| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let namespace = after("namespace:").filter(good);
    let root = context.mesh.root_namespace.to_string();
    let mut value = serde_json::json!({"kind": kind.name(), "metadata": {
        "name": format!("unreadable {}", context.source),
        "namespace": namespace.unwrap_or(root),
    }});
    // Not `spec: {}`: what it says is unknown.
    value["spec"] = Value::Null;
    one(context, &value, &mut out);
    out
}

/// Groups whose kinds the mesh will read one day.
const MESH_GROUPS: [&str; 6] = [
    "security.istio.io",
    "networking.istio.io",
    "telemetry.istio.io",
    "extensions.istio.io",
    "gateway.networking.k8s.io",
    "nodemesh.io",
];

fn unread(head: &Head<'_>, value: &Value) -> Diagnostic {
    if !value.is_object() {
        return head.error("", "is not an object", "start a manifest with apiVersion, kind and metadata");
    }
    if head.kind.is_empty() || head.api_version.is_empty() {
        let field = if head.kind.is_empty() { "kind" } else { "apiVersion" };
        return head.error(field, "is missing", "every manifest names its apiVersion and kind");
    }
    if MESH_GROUPS.contains(&head.group.as_str()) {
        return head.warning(
            "kind",
            &format!("{} is not supported by this version and has no effect", head.kind),
            "remove the object, or do not rely on it until a version that supports it",
        );
    }
    Diagnostic {
        severity: Severity::Info,
        ..head.warning("kind", "is not read by the mesh", "nothing to do; it may stay where it is")
    }
}

/// What every object has, read leniently so that even a broken one can be named.
#[derive(Clone, Debug)]
pub struct Head<'a> {
    pub context: &'a Context<'a>,
    pub api_version: String,
    pub group: String,
    pub version: String,
    pub kind: String,
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

/// Where a manifest names no namespace, as kubectl does.
pub const DEFAULT_NAMESPACE: &str = "default";

impl<'a> Head<'a> {
    fn of(context: &'a Context<'a>, value: &Value) -> Self {
        let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let api_version = text("/apiVersion").to_owned();
        let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
        let kind = text("/kind").to_owned();
        let cluster_scoped = matches!(kind.as_str(), "Namespace" | "Node" | "List");
        let namespace = match text("/metadata/namespace") {
            _ if cluster_scoped => "",
            "" => DEFAULT_NAMESPACE,
            given => given,
        };
        Self {
            context,
            group: group.to_owned(),
            version: version.to_owned(),
            kind,
            namespace: namespace.into(),
            name: text("/metadata/name").into(),
            api_version,
        }
    }

    pub fn key(&self, kind: Kind) -> ObjectKey {
        ObjectKey { kind, namespace: Arc::clone(&self.namespace), name: Arc::clone(&self.name) }
    }

    pub fn error(&self, field: &str, message: &str, remedy: &str) -> Diagnostic {
        let kind = if self.kind.is_empty() { "object" } else { &self.kind };
        Diagnostic {
            object: object_text(kind, &self.namespace, &self.name),
            source: self.context.source.to_owned(),
            field: field.to_owned(),
            message: message.to_owned(),
            effect: String::new(),
            remedy: remedy.to_owned(),
            severity: Severity::Error,
        }
    }

    pub fn warning(&self, field: &str, message: &str, remedy: &str) -> Diagnostic {
        Diagnostic { severity: Severity::Warning, ..self.error(field, message, remedy) }
    }
}

#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod tests;
