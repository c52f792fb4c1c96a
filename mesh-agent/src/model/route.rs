//! Compiled HTTP routes: what `decide::route` picks from and `proxy::http` carries out. Shapes follow Istio's
//! VirtualService (`networking.istio.io/v1`) and the Gateway API's HTTPRoute and GRPCRoute
//! (`gateway.networking.k8s.io/v1`); text has been parsed and checked by `compile`.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use super::pattern::{PathMatch, Pattern};
use super::{Labels, PolicyRef};

/// Parts of a million: exact for every percentage with up to four decimals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
pub struct Millionths(pub u32);

impl Millionths {
    pub const NEVER: Self = Self(0);
    pub const ALWAYS: Self = Self(1_000_000);

    /// Whether a random number falls into the share.
    pub fn hit(self, random: u64) -> bool {
        random % 1_000_000 < u64::from(self.0)
    }
}

/// Which rule of which object: `VirtualService shop/reviews http[0]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize)]
pub struct RuleRef {
    pub object: PolicyRef,
    /// The rule's `name`, or its place: `http[0]`, `rules[2]`.
    pub rule: Arc<str>,
}

impl std::fmt::Display for RuleRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.object, self.rule)
    }
}

/// One rule: matched in order, the first that matches decides.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct HttpRule {
    pub origin: RuleRef,
    /// Any of them; an empty list matches every request.
    pub matches: Vec<HttpMatch>,
    pub action: RuleAction,
    pub request_headers: HeaderOps,
    pub response_headers: HeaderOps,
    pub rewrite: Rewrite,
    /// For the whole request with its retries; none = no limit.
    pub timeout: Option<Duration>,
    /// None = the mesh's default policy.
    pub retry: Option<RetryPolicy>,
    pub fault: Fault,
    pub mirrors: Vec<Mirror>,
    pub cors: Option<CorsPolicy>,
}

/// Everything in one match must hold. `port`, `source_labels` and `source_namespace` are known with the connection.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct HttpMatch {
    pub path: Option<PathMatch>,
    pub scheme: Option<Pattern>,
    pub method: Option<Pattern>,
    pub authority: Option<Pattern>,
    /// Lower-case name; a header that is sent several times is matched as its values joined by a comma.
    pub headers: Vec<(Arc<str>, Pattern)>,
    /// None of these may match. A missing header counts as an empty value, except for [`Pattern::Present`].
    pub without_headers: Vec<(Arc<str>, Pattern)>,
    pub query: Vec<(Arc<str>, Pattern)>,
    /// The Service's port.
    pub port: Option<u16>,
    pub source_labels: Labels,
    pub source_namespace: Option<Arc<str>>,
}

/// What becomes of a request that matched.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub enum RuleAction {
    /// Never empty; shares are weight / sum of weights, and zero weights are not listed.
    Forward(Vec<WeightedBackend>),
    Redirect(Redirect),
    Respond(DirectResponse),
}

#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct WeightedBackend {
    pub weight: u32,
    pub backend: Backend,
    pub request_headers: HeaderOps,
    pub response_headers: HeaderOps,
}

/// Where a request goes. Resolved in the world at the time of the request.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize)]
pub enum Backend {
    Host {
        /// The fully qualified name of a Service or ServiceEntry.
        host: Arc<str>,
        /// None = the port that was asked for, or the only one the Service has.
        port: Option<u16>,
        /// A subset of the DestinationRule in force.
        subset: Option<Arc<str>>,
        /// One try's time (Gateway API `timeouts.backendRequest`).
        timeout: Option<Duration>,
    },
    /// The reference is wrong (missing, not permitted, of an unknown kind): status 500, as the Gateway API says.
    Invalid(Arc<str>),
}

/// Applied in the order remove, set, add.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct HeaderOps {
    pub set: Vec<(Arc<str>, HeaderText)>,
    pub add: Vec<(Arc<str>, HeaderText)>,
    pub remove: Vec<Arc<str>>,
}

/// The value that an operation gives a field.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(untagged)]
pub enum HeaderText {
    Plain(Arc<str>),
    /// With variables that each request fills in.
    Filled {
        written: Arc<str>,
        parts: Arc<[TextPart]>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub enum TextPart {
    Text(Arc<str>),
    Variable(Variable),
}

/// What may stand in a header's value (Envoy's command operators).
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub enum Variable {
    /// The client's address, without its port, the port alone.
    Remote,
    RemoteIp,
    RemotePort,
    /// The same of what the client dialled.
    Local,
    LocalIp,
    LocalPort,
    /// `HTTP/1.1`, ...
    Protocol,
    /// The name of the rule.
    Route,
    Request(Field),
    Response(Field),
    Status,
    /// The endpoint that answered.
    Upstream,
    UpstreamIp,
}

/// A header field, in lower case, or a part of a request that is none (`:path`).
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Field {
    pub name: Arc<str>,
    /// Where the first is missing.
    pub otherwise: Option<Arc<str>>,
    /// At most so many bytes of it.
    pub length: Option<usize>,
}

impl HeaderText {
    /// The value with its variables filled in; none where nothing is left to say.
    pub fn fill(&self, value: impl Fn(&Variable) -> Option<String>) -> Option<Cow<'_, str>> {
        let parts = match self {
            Self::Plain(text) => return Some(Cow::Borrowed(text)),
            Self::Filled { parts, .. } => parts,
        };
        let mut whole = String::new();
        for part in parts.iter() {
            match part {
                TextPart::Text(text) => whole.push_str(text),
                TextPart::Variable(variable) => whole.push_str(&value(variable).unwrap_or_default()),
            }
        }
        (!whole.is_empty()).then_some(Cow::Owned(whole))
    }
}

impl From<&str> for HeaderText {
    fn from(text: &str) -> Self {
        Self::Plain(text.into())
    }
}

impl std::fmt::Display for HeaderText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Plain(text) | Self::Filled { written: text, .. } => f.write_str(text),
        }
    }
}

impl HeaderOps {
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.add.is_empty() && self.remove.is_empty()
    }

    /// The variables of its values.
    pub fn variables(&self) -> impl Iterator<Item = &Variable> {
        let texts = self.set.iter().chain(&self.add).map(|(_, text)| text);
        let parts = texts.flat_map(|text| match text {
            HeaderText::Plain(_) => [].iter(),
            HeaderText::Filled { parts, .. } => parts.iter(),
        });
        parts.filter_map(|part| match part {
            TextPart::Text(_) => None,
            TextPart::Variable(variable) => Some(variable),
        })
    }
}

#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Rewrite {
    pub path: Option<PathRewrite>,
    pub authority: Option<Arc<str>>,
}

#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub enum PathRewrite {
    /// The whole path; the query stays.
    Full(Arc<str>),
    /// The prefix that matched gives way to this one.
    Prefix(Arc<str>),
    /// Every match of the pattern, with `\1` for its groups (RE2's form, `uriRegexRewrite`).
    Regex { pattern: super::pattern::Regex, rewrite: Arc<str> },
}

#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Redirect {
    pub status: u16,
    pub scheme: Option<Arc<str>>,
    pub authority: Option<Arc<str>>,
    pub port: Option<RedirectPort>,
    pub path: Option<PathRewrite>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub enum RedirectPort {
    Number(u16),
    /// 80 for http, 443 for https (Istio `FROM_PROTOCOL_DEFAULT`).
    OfScheme,
    /// The port of the request (Istio `FROM_REQUEST_PORT`).
    OfRequest,
}

#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct DirectResponse {
    pub status: u16,
    pub body: Arc<[u8]>,
}

/// At most 1 + `attempts` requests are sent.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct RetryPolicy {
    pub attempts: u32,
    /// None = only the route's own timeout.
    pub per_try_timeout: Option<Duration>,
    pub on: RetryOn,
    /// The first wait; doubled for each further one up to ten times, and drawn at random below that (Envoy).
    pub backoff: Duration,
    /// Whether hosts that were tried are avoided.
    pub exclude_previous_hosts: bool,
}

/// `retryOn`, one field for each of Envoy's conditions that has a meaning here.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[allow(clippy::struct_excessive_bools, reason = "a set of named conditions, each given or not")]
pub struct RetryOn {
    /// `5xx`: any 5xx answer, and no answer at all.
    pub server_error: bool,
    /// `gateway-error`: 502, 503, 504.
    pub gateway_error: bool,
    /// `reset`: no answer at all.
    pub reset: bool,
    /// `reset-before-request`: the connection went before anything was sent.
    pub reset_before_request: bool,
    pub connect_failure: bool,
    /// `retriable-4xx`: 409.
    pub retriable_4xx: bool,
    /// HTTP/2 REFUSED_STREAM: the server has not looked at the request.
    pub refused_stream: bool,
    /// Codes of `retriable-status-codes`.
    pub statuses: Vec<u16>,
    /// gRPC codes of an answer that has only trailers: `cancelled` 1, `deadline-exceeded` 4, `resource-exhausted` 8,
    /// `internal` 13, `unavailable` 14.
    pub grpc: Vec<u8>,
}

/// The two are drawn independently of each other.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Fault {
    pub delay: Option<(Millionths, Duration)>,
    pub abort: Option<(Millionths, Abort)>,
}

impl Fault {
    pub fn is_empty(&self) -> bool {
        self.delay.is_none() && self.abort.is_none()
    }

    /// Whether any request can meet one.
    pub fn may_happen(&self) -> bool {
        let ever = |share: Option<Millionths>| share.is_some_and(|share| share != Millionths::NEVER);
        ever(self.delay.map(|(share, _)| share)) || ever(self.abort.map(|(share, _)| share))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub enum Abort {
    Http(u16),
    Grpc(u8),
}

#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Mirror {
    pub share: Millionths,
    pub backend: Backend,
}

#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct CorsPolicy {
    pub allow_origins: Vec<Pattern>,
    pub allow_methods: Vec<Arc<str>>,
    pub allow_headers: Vec<Arc<str>>,
    pub expose_headers: Vec<Arc<str>>,
    pub max_age: Option<Duration>,
    pub allow_credentials: bool,
    /// `unmatchedPreflights: IGNORE`: a preflight from elsewhere is answered here and not forwarded.
    pub ignore_unmatched_preflights: bool,
}
