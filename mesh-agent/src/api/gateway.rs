//! Routes of the Gateway API as `compile` reads them. The crate's types are the schema and say what is unknown or does
//! not fit; they define the same filter four times over, so what has passed them is read into these, which have it
//! once. All kinds of route fit: what one of them lacks is absent.

use serde::Deserialize;

// A superset of the standard channel's.
pub use gateway_api::experimental::tcproutes::TcpRoute;
pub use gateway_api::experimental::tlsroutes::TlsRoute;
pub use gateway_api::grpcroutes::GrpcRoute;
pub use gateway_api::httproutes::HttpRoute;

pub const GROUP: &str = "gateway.networking.k8s.io";
/// Served versions, newest first.
pub const HTTP_VERSIONS: [&str; 2] = ["v1", "v1beta1"];
pub const GRPC_VERSIONS: [&str; 1] = ["v1"];
pub const TCP_VERSIONS: [&str; 2] = ["v1", "v1alpha2"];
pub const TLS_VERSIONS: [&str; 3] = ["v1", "v1alpha3", "v1alpha2"];

/// An HTTPRoute, GRPCRoute, TCPRoute or TLSRoute.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Route {
    pub spec: RouteSpec,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RouteSpec {
    pub parent_refs: Vec<ParentRef>,
    /// Of a TLSRoute: names in the ClientHello.
    pub hostnames: Vec<String>,
    pub rules: Vec<Rule>,
}

/// `parentRefs[]`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ParentRef {
    pub group: Option<String>,
    pub kind: Option<String>,
    pub namespace: Option<String>,
    pub name: String,
    pub section_name: Option<String>,
    pub port: Option<u32>,
}

impl ParentRef {
    /// A route of a mesh, not of a gateway (GEP-1294).
    pub fn is_service(&self) -> bool {
        self.kind.as_deref() == Some("Service") && matches!(self.group.as_deref(), None | Some("" | "core"))
    }
}

/// `rules[]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Rule {
    pub name: Option<String>,
    pub matches: Vec<Match>,
    pub filters: Vec<Filter>,
    pub backend_refs: Vec<BackendRef>,
    pub timeouts: Option<Timeouts>,
}

/// `matches[]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Match {
    pub path: Option<Path>,
    pub headers: Vec<Named>,
    pub query_params: Vec<Named>,
    pub method: Option<Method>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Path {
    pub r#type: Option<String>,
    pub value: Option<String>,
}

/// A header or a query parameter.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Named {
    pub r#type: Option<String>,
    pub name: String,
    pub value: String,
}

/// HTTP's is a word, gRPC's a service and its method.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Method {
    Http(String),
    Grpc { r#type: Option<String>, service: Option<String>, method: Option<String> },
}

/// `filters[]`: one of the fields, as `type` says.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Filter {
    pub r#type: String,
    pub request_header_modifier: Option<HeaderModifier>,
    pub response_header_modifier: Option<HeaderModifier>,
    pub request_mirror: Option<RequestMirror>,
    pub request_redirect: Option<RequestRedirect>,
    pub url_rewrite: Option<UrlRewrite>,
    pub cors: Option<Cors>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct HeaderModifier {
    pub set: Vec<Named>,
    pub add: Vec<Named>,
    pub remove: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RequestMirror {
    pub backend_ref: BackendRef,
    pub percent: Option<u32>,
    pub fraction: Option<Fraction>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Fraction {
    pub numerator: u32,
    pub denominator: Option<u32>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RequestRedirect {
    pub scheme: Option<String>,
    pub hostname: Option<String>,
    pub path: Option<PathModifier>,
    pub port: Option<u32>,
    pub status_code: Option<u16>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PathModifier {
    pub r#type: String,
    pub replace_full_path: Option<String>,
    pub replace_prefix_match: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct UrlRewrite {
    pub hostname: Option<String>,
    pub path: Option<PathModifier>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Cors {
    pub allow_origins: Vec<String>,
    pub allow_methods: Vec<String>,
    pub allow_headers: Vec<String>,
    pub expose_headers: Vec<String>,
    pub max_age: Option<u32>,
    pub allow_credentials: Option<bool>,
}

/// `backendRefs[]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct BackendRef {
    pub group: Option<String>,
    pub kind: Option<String>,
    pub namespace: Option<String>,
    pub name: String,
    pub port: Option<u32>,
    pub weight: Option<u32>,
    pub filters: Vec<Filter>,
}

/// `timeouts`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Timeouts {
    pub request: Option<String>,
    pub backend_request: Option<String>,
}
