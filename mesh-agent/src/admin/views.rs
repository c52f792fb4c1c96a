//! What the admin API answers. The CLI reads the same types back, so both sides change together.
//! Owns: field names that scripts rely on (camel case is not used; names read as in the tables).
//! Called by `admin::routes`, `agent` (fills them) and `cli` (prints them).

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::views_http::{ConnectionStory, RequestStory};
use crate::model::{Identity, Reason};
use crate::observe::{Direction, Path};

/// A point in time, whole seconds; RFC 3339 in JSON and YAML.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// Seconds from this point to `later`; 0 if it is not later.
    pub const fn until(self, later: Self) -> Duration {
        Duration::from_secs(later.0.saturating_sub(self.0))
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        Self(time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = i64::try_from(self.0)
            .ok()
            .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
            .and_then(|time| time.format(&Rfc3339).ok());
        match text {
            Some(text) => f.write_str(&text),
            None => write!(f, "@{}", self.0),
        }
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let time = OffsetDateTime::parse(&text, &Rfc3339).map_err(serde::de::Error::custom)?;
        u64::try_from(time.unix_timestamp()).map(Self).map_err(serde::de::Error::custom)
    }
}

/// Where the agent is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Starting,
    Ready,
    Draining,
}

/// `mesh-agent status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub node: String,
    /// Which agent of the node it is, where it was told: two share it during a rollout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    pub version: String,
    pub state: State,
    /// What is missing before it is ready.
    pub missing: Vec<String>,
    pub pid: u32,
    pub started: Timestamp,
    pub trust_domain: String,
    pub workers: usize,
    pub capture: CaptureView,
    pub source: SourceView,
    pub workloads: WorkloadCounts,
    pub services: usize,
    pub policies: usize,
    pub certificates: CertCounts,
    /// Live connections by path.
    pub connections: BTreeMap<Path, u64>,
    pub limits: Vec<LimitView>,
    /// The mesh-wide settings, as they are written, and whether they are in force.
    #[serde(default)]
    pub settings: Vec<SettingView>,
}

/// One field of Istio's `meshConfig`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingView {
    pub field: String,
    pub value: String,
    pub in_force: bool,
    /// Why it is not.
    pub note: Option<String>,
}

/// State of the kernel side.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureView {
    /// The programs are attached and the heartbeat is fresh.
    pub attached: bool,
    pub bpf_dir: String,
    pub abi: String,
    /// What is wrong, if anything.
    pub problem: Option<String>,
}

/// State of the source of truth.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SourceView {
    /// `directory /etc/mesh` and the like.
    pub from: String,
    pub world_version: u64,
    pub loaded: Timestamp,
    /// Since when the last good state is kept because the source cannot be used.
    pub stale_since: Option<Timestamp>,
    #[serde(default)]
    pub stale_seconds: u64,
    /// Each kind of object, where the source is a cluster.
    #[serde(default)]
    pub kinds: Vec<KindView>,
    pub diagnostics: Vec<DiagnosticView>,
}

/// How the source is doing with one kind of object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KindView {
    /// `peerauthentications.security.istio.io`.
    pub resource: String,
    /// The served version that is read.
    pub version: Option<String>,
    /// `starting`, `current`, `not installed` or `failing`.
    pub state: String,
    pub objects: usize,
    pub problem: Option<String>,
    pub remedy: Option<String>,
}

/// How bad a diagnostic is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Warning,
    Error,
}

/// What the compiler said about an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiagnosticView {
    pub severity: Severity,
    /// `KIND NAMESPACE/NAME`, or a file.
    pub object: String,
    pub field: String,
    pub message: String,
    pub remedy: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadCounts {
    pub known: usize,
    /// Of this node.
    pub local: usize,
    pub enrolled: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertCounts {
    pub valid: usize,
    pub total: usize,
}

/// A limit that was hit, or is worth watching.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitView {
    pub name: String,
    pub used: Option<u64>,
    pub max: u64,
    pub hits: u64,
}

/// Outcome of one check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    Pass,
    Warn,
    Fail,
}

/// One line of `mesh-agent check`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// `machine`, `agent`, `certificates`, ...
    pub group: String,
    pub name: String,
    pub outcome: Outcome,
    /// What was found.
    pub detail: String,
    /// What to do, unless it passed.
    pub remedy: Option<String>,
}

impl Check {
    pub fn pass(group: &str, name: &str, detail: impl Into<String>) -> Self {
        let (group, name) = (group.to_owned(), name.to_owned());
        Self { group, name, outcome: Outcome::Pass, detail: detail.into(), remedy: None }
    }

    pub fn warn(group: &str, name: &str, detail: impl Into<String>, remedy: &str) -> Self {
        Self { outcome: Outcome::Warn, remedy: Some(remedy.to_owned()), ..Self::pass(group, name, detail) }
    }

    pub fn fail(group: &str, name: &str, detail: impl Into<String>, remedy: &str) -> Self {
        Self { outcome: Outcome::Fail, remedy: Some(remedy.to_owned()), ..Self::pass(group, name, detail) }
    }
}

/// How a workload takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Enrolment {
    /// Its traffic is captured by this agent.
    Captured,
    /// It should be captured here and is not (yet); `problem` says why.
    Pending,
    /// Enrolled on another node.
    Remote,
    /// Outside the mesh.
    Off,
}

/// One row of `mesh-agent workloads`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadView {
    pub namespace: String,
    pub name: String,
    pub addresses: Vec<IpAddr>,
    pub node: String,
    /// On the agent's own node.
    pub local: bool,
    pub enrolment: Enrolment,
    pub identity: Identity,
    /// PeerAuthentication's mode: STRICT, PERMISSIVE or DISABLE.
    pub mtls: String,
    pub netns: Option<String>,
    /// Ports that its applications listen on, where the kernel told.
    pub listening: Vec<u16>,
    pub problem: Option<String>,
}

/// One row of `mesh-agent services`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceView {
    pub namespace: String,
    pub name: String,
    pub hostname: String,
    pub vips: Vec<IpAddr>,
    pub balance: String,
    pub ports: Vec<PortView>,
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortView {
    pub name: String,
    pub port: u16,
    pub protocol: String,
    pub endpoints: Vec<EndpointView>,
}

/// One endpoint of a Service's port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointView {
    pub address: SocketAddr,
    /// `NAMESPACE/NAME`, if the world knows it.
    pub workload: Option<String>,
    pub node: String,
    pub ready: bool,
    /// How this node would reach it.
    pub path: Option<Path>,
    /// Requests and relayed connections of this node's pods that are under way there; only among Services.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<u32>,
    /// Pods of this node that leave it alone for a while because it failed them (`outlierDetection`); the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ejected: Option<Vec<EjectionView>>,
}

/// An endpoint as one pod sees it that has had errors from it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct EjectionView {
    /// `NAMESPACE/NAME` of the pod that called it.
    pub by: String,
    /// Of which subset it is one, where the route named one.
    pub subset: Option<String>,
    /// It comes back at the first sweep after that (`outlierDetection.interval`).
    pub until: Timestamp,
}

/// One row of `mesh-agent policies`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyView {
    pub kind: String,
    pub namespace: String,
    pub name: String,
    /// ALLOW, DENY, ... or the mTLS mode.
    pub action: String,
    /// `mesh`, `namespace shop`, `app=reviews in shop`, `Service shop/reviews`.
    pub scope: String,
    pub rules: usize,
    pub dry_run: bool,
    /// Workloads of this node that it speaks of.
    pub workloads: Vec<String>,
    /// Why it could not be understood; it denies until mended.
    pub invalid: Option<String>,
}

/// State of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CertState {
    Valid,
    /// Valid, and its last renewal failed.
    Failing,
    Pending,
    Expired,
}

/// One row of `mesh-agent certs`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertView {
    pub identity: Identity,
    pub state: CertState,
    pub serial: Option<String>,
    pub not_before: Option<Timestamp>,
    pub not_after: Option<Timestamp>,
    pub renews: Option<Timestamp>,
    pub problem: Option<String>,
}

/// One end of a connection or of an explained one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartyView {
    pub address: Option<SocketAddr>,
    /// `NAMESPACE/NAME`.
    pub workload: Option<String>,
    pub node: Option<String>,
    pub identity: Option<Identity>,
}

impl PartyView {
    /// The name if there is one, else the address.
    pub fn label(&self) -> String {
        self.workload.clone().or_else(|| self.address_label()).unwrap_or_else(|| "unknown".to_owned())
    }

    /// The address, without a port where it has none (0: a source that has not connected yet).
    pub fn address_label(&self) -> Option<String> {
        self.address.map(|address| match address.port() {
            0 => address.ip().to_string(),
            _ => address.to_string(),
        })
    }
}

/// One row of `mesh-agent connections`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConnView {
    pub id: u64,
    pub direction: Direction,
    pub path: Path,
    pub source: PartyView,
    pub destination: PartyView,
    pub hbone_address: Option<SocketAddr>,
    /// Host name of the Service.
    pub service: Option<String>,
    pub established: bool,
    pub age_seconds: f64,
    /// From source to destination.
    pub bytes_sent: u64,
    pub bytes_received: u64,
    /// The kernel's smoothed round-trip time; bypassed flows only.
    pub rtt_us: Option<u64>,
    pub retransmits: Option<u64>,
    pub decision_id: Option<String>,
}

/// What `explain` found about one policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Match {
    Matched,
    NotMatched,
    /// Looked at and without effect (dry run, another port, ...).
    Ignored,
}

/// One policy that was looked at, in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepView {
    /// `PeerAuthentication shop/default`, or a built-in default.
    pub policy: String,
    /// STRICT, ALLOW, DENY, ...
    pub action: String,
    pub matched: Match,
    /// Index of the rule that matched.
    pub rule: Option<usize>,
    /// Why, in words.
    pub detail: String,
    /// This step decided.
    pub decided: bool,
}

/// The route a connection would take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteView {
    /// None: it is refused before any path is chosen.
    pub path: Option<Path>,
    /// Why that path.
    pub why: String,
    /// Host name of the Service, if the destination is one.
    pub service: Option<String>,
    pub port: u16,
    /// Every endpoint that could be chosen.
    pub endpoints: Vec<EndpointView>,
}

/// `mesh-agent explain`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    pub allowed: bool,
    /// Label of the reason, when denied.
    pub reason: Option<String>,
    /// See [`Explanation::hint_for`].
    pub hint: Option<String>,
    /// `AuthorizationPolicy shop/deny-frontend, rule 0`; None where no policy decided.
    pub rule: Option<String>,
    pub source: PartyView,
    pub destination: PartyView,
    pub route: RouteView,
    pub steps: Vec<StepView>,
    /// What becomes of the request that was asked about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<RequestStory>,
    /// Where rules for connections send it, if there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection: Option<ConnectionStory>,
    pub world_version: u64,
    /// Things worth knowing that did not decide.
    pub notes: Vec<String>,
}

impl Explanation {
    /// The reason's hint, unless the hint is to ask `explain`.
    pub fn hint_for(reason: Reason) -> Option<String> {
        match reason {
            Reason::PolicyDenied | Reason::PolicyNotAllowed | Reason::PolicyChanged => None,
            _ => Some(reason.row().hint.to_owned()),
        }
    }
}

/// What a scrape of readiness, or an error of the API, says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    pub error: String,
}

/// `mesh-agent version`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    pub version: String,
    /// Version of the ABI between programs and agent, where the agent told.
    pub abi: Option<String>,
}

impl Version {
    /// This binary's.
    pub fn own() -> Self {
        Self { version: env!("CARGO_PKG_VERSION").to_owned(), abi: None }
    }
}
