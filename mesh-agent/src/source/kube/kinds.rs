//! What is watched, and where the API server has it. Owns: the list of kinds and the choice of a served version.
//! Never: I/O. Called by `feed` and by the status.

use std::fmt;

use crate::api::gateway;
use crate::api::istio::{networking, security};
use crate::api::names::{MESH_CONFIG_MAP, SYSTEM_NAMESPACE};
use crate::compile::Kind;

/// One kind of object.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) kind: Kind,
    /// As the API names it, where that is not the kind's own name.
    pub(super) api_kind: &'static str,
    /// Empty for Kubernetes' core group.
    pub(super) group: &'static str,
    /// In order of preference.
    pub(super) versions: &'static [&'static str],
    pub(super) plural: &'static str,
    /// Comes with a CustomResourceDefinition that may be missing.
    pub(super) custom: bool,
    /// The one object of a namespace that is of interest.
    pub(super) only: Option<(&'static str, &'static str)>,
}

const fn core(kind: Kind, plural: &'static str) -> Watched {
    let api_kind = kind.name();
    Watched { kind, api_kind, group: "", versions: &["v1"], plural, custom: false, only: None }
}

const fn custom(
    kind: Kind,
    group: &'static str,
    versions: &'static [&'static str],
    plural: &'static str,
) -> Watched {
    Watched { kind, api_kind: kind.name(), group, versions, plural, custom: true, only: None }
}

const fn security(kind: Kind, plural: &'static str) -> Watched {
    custom(kind, security::GROUP, &security::VERSIONS, plural)
}

const fn networking(kind: Kind, plural: &'static str) -> Watched {
    custom(kind, networking::GROUP, &networking::VERSIONS, plural)
}

/// The mesh-wide settings come first: they say what everything else is compiled against.
pub(super) const MESH_CONFIG: Watched = Watched {
    kind: Kind::MeshConfig,
    api_kind: "ConfigMap",
    only: Some((SYSTEM_NAMESPACE, MESH_CONFIG_MAP)),
    ..core(Kind::MeshConfig, "configmaps")
};

pub(super) static WATCHED: [Watched; 16] = [
    MESH_CONFIG,
    core(Kind::Namespace, "namespaces"),
    core(Kind::Node, "nodes"),
    core(Kind::Pod, "pods"),
    core(Kind::Service, "services"),
    Watched { group: "discovery.k8s.io", ..core(Kind::EndpointSlice, "endpointslices") },
    security(Kind::PeerAuthentication, "peerauthentications"),
    security(Kind::AuthorizationPolicy, "authorizationpolicies"),
    networking(Kind::VirtualService, "virtualservices"),
    networking(Kind::DestinationRule, "destinationrules"),
    networking(Kind::ServiceEntry, "serviceentries"),
    networking(Kind::WorkloadEntry, "workloadentries"),
    custom(Kind::HttpRoute, gateway::GROUP, &gateway::HTTP_VERSIONS, "httproutes"),
    custom(Kind::GrpcRoute, gateway::GROUP, &gateway::GRPC_VERSIONS, "grpcroutes"),
    custom(Kind::TcpRoute, gateway::GROUP, &gateway::TCP_VERSIONS, "tcproutes"),
    custom(Kind::TlsRoute, gateway::GROUP, &gateway::TLS_VERSIONS, "tlsroutes"),
];

impl Watched {
    /// `apiVersion` of its objects.
    pub(super) fn api_version(&self, version: &str) -> String {
        if self.group.is_empty() { version.to_owned() } else { format!("{}/{version}", self.group) }
    }

    /// Path of its collection.
    pub(super) fn path(&self, version: &str) -> String {
        let root = if self.group.is_empty() { "/api".to_owned() } else { format!("/apis/{}", self.group) };
        match self.only {
            Some((namespace, _)) => format!("{root}/{version}/namespaces/{namespace}/{}", self.plural),
            None => format!("{root}/{version}/{}", self.plural),
        }
    }

    pub(super) fn field_selector(&self) -> Option<String> {
        self.only.map(|(_, name)| format!("metadata.name={name}"))
    }

    /// What must give the right, as the manifests of `deploy/` name it.
    pub(super) fn role(&self) -> String {
        match self.only {
            Some((namespace, _)) => format!("Role nodemesh-agent in namespace {namespace}"),
            None => "ClusterRole nodemesh-agent".to_owned(),
        }
    }

    /// Who must be allowed what, as an administrator would write it.
    pub(super) fn rule(&self, verb: &str) -> String {
        let scope = match self.only {
            Some((namespace, name)) => format!(" named {name} in namespace {namespace}"),
            None => String::new(),
        };
        format!("{verb} on {self}{scope}")
    }
}

/// `pods` or `peerauthentications.security.istio.io`.
impl fmt::Display for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.plural)?;
        if self.group.is_empty() { Ok(()) } else { write!(f, ".{}", self.group) }
    }
}
