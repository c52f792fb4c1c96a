//! Compiled security policy: what `decide` evaluates. Shapes follow Istio's AuthorizationPolicy and
//! PeerAuthentication (`security.istio.io/v1`); text has been parsed and checked by `compile`.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use ipnet::IpNet;

use super::Labels;

/// Names the object a decision came from: `KIND NAMESPACE/NAME`, and the rule's index where there is one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
pub struct PolicyRef {
    pub kind: &'static str,
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

impl fmt::Display for PolicyRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// PeerAuthentication `mtls.mode` after inheritance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum MtlsMode {
    /// Only mutual TLS.
    Strict,
    /// Mutual TLS or plaintext.
    Permissive,
    /// Plaintext; mutual TLS from mesh peers is not offered by their agents.
    Disable,
}

/// One PeerAuthentication. `mode: None` is UNSET (inherit).
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct PeerAuth {
    pub policy: PolicyRef,
    /// None = whole namespace (or mesh, in the root namespace).
    pub selector: Option<Labels>,
    pub mode: Option<MtlsMode>,
    /// Container port -> mode; `None` is UNSET (the workload's mode).
    pub ports: BTreeMap<u16, Option<MtlsMode>>,
    /// `metadata.creationTimestamp`, seconds since 1970; the oldest of one scope wins. 0 when unknown.
    pub created: i64,
    /// The object could not be understood: STRICT in its scope, ahead of any other of that scope.
    pub invalid: Option<String>,
}

/// AuthorizationPolicy `action`. AUDIT never changes a verdict and CUSTOM denies until a provider exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum AuthzAction {
    Allow,
    Deny,
    Audit,
    Custom,
}

/// Which workloads a policy speaks of.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct AuthzScope {
    /// None = all namespaces (root namespace's policies).
    pub namespace: Option<Arc<str>>,
    /// None = every workload of the scope.
    pub selector: Option<Labels>,
    /// Service names (of `namespace`) from `targetRefs`; the policy holds for their endpoints. Empty = no targetRefs.
    pub services: Vec<Arc<str>>,
}

/// One compiled AuthorizationPolicy.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct AuthzPolicy {
    pub policy: PolicyRef,
    pub action: AuthzAction,
    pub scope: AuthzScope,
    pub rules: Vec<AuthzRule>,
    /// The object could not be understood: it denies every connection in its scope until mended.
    pub invalid: Option<String>,
    /// `istio.io/dry-run: "true"`: judged and reported, never enforced.
    pub dry_run: bool,
}

/// A rule matches if any `from`, any `to` and all `when` match; an empty list matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct AuthzRule {
    pub from: Vec<Source>,
    pub to: Vec<Operation>,
    pub when: Vec<Condition>,
}

/// A field's values and its `not` twin; both empty = unset.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Values<T> {
    pub any: Vec<T>,
    pub none: Vec<T>,
}

impl<T> Default for Values<T> {
    fn default() -> Self {
        Self { any: Vec::new(), none: Vec::new() }
    }
}

impl<T> Values<T> {
    pub fn is_empty(&self) -> bool {
        self.any.is_empty() && self.none.is_empty()
    }
}

/// AuthorizationPolicy string match: exact, `pre*`, `*suf`, or `*` (present and non-empty).
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize)]
pub enum StringMatch {
    Exact(Arc<str>),
    Prefix(Arc<str>),
    Suffix(Arc<str>),
    Present,
}

/// One entry of `paths`: a text like any other, or a template.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize)]
pub enum PathPattern {
    Text(StringMatch),
    Template(PathTemplate),
}

/// `{*}` and `{**}` (Envoy's URI templates, as far as Istio lets them through).
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize)]
pub struct PathTemplate {
    /// Segment by segment; none is `{*}`: any one segment that is not empty.
    pub segments: Vec<Option<Arc<str>>>,
    /// Where `{**}` follows them (any text, slashes and nothing at all included): the text after it.
    pub rest: Option<Arc<str>>,
}

/// `from[].source`.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Source {
    pub principals: Values<StringMatch>,
    /// (namespace, service account), no wildcards.
    pub service_accounts: Values<(Arc<str>, Arc<str>)>,
    pub namespaces: Values<StringMatch>,
    pub ip_blocks: Values<IpNet>,
    pub trust_domains: Values<StringMatch>,
    /// HTTP only: the client as `X-Forwarded-For` tells.
    pub remote_ip_blocks: Values<IpNet>,
    /// Names of fields that a verified token has to prove (`requestPrincipals`, `notRequestPrincipals`).
    pub token: Vec<&'static str>,
}

/// `to[].operation`.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Operation {
    /// Workload (container) ports.
    pub ports: Values<u16>,
    /// HTTP only, in lower case.
    pub hosts: Values<StringMatch>,
    /// HTTP only.
    pub methods: Values<StringMatch>,
    /// HTTP only, without the query.
    pub paths: Values<PathPattern>,
}

/// `when[]`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub enum Condition {
    SourceIp(Values<IpNet>),
    SourceNamespace(Values<StringMatch>),
    SourcePrincipal(Values<StringMatch>),
    SourceServiceAccount(Values<(Arc<str>, Arc<str>)>),
    SourceTrustDomain(Values<StringMatch>),
    DestinationIp(Values<IpNet>),
    DestinationPort(Values<u16>),
    /// `remote.ip`, HTTP only.
    RemoteIp(Values<IpNet>),
    /// `request.headers[name]`, HTTP only; the name in lower case.
    Header(Arc<str>, Values<StringMatch>),
    /// `connection.sni`: known to be absent on HTTP, unknown on a TCP connection, whose bytes the mesh does not read.
    Sni(Values<StringMatch>),
    /// A key that a verified token has to prove, or that nothing here provides.
    Token(Arc<str>),
}
