//! May a connection or a request reach a workload: the deny list, peer authentication, then AuthorizationPolicy in the
//! order CUSTOM, DENY, ALLOW. Owns that order and its explanation; `judge` and `explain` are one walk, with and without
//! notes, so that an explanation can never differ from what was done; so are connections and requests.
//! Called by `proxy`, `bypass`, `explain`.

use std::net::{IpAddr, SocketAddr};

use super::Snapshot;
use super::authz::{Layer, asks_http, http_field, in_scope, rule_matches, token_field};
use super::route::RequestView;
use crate::model::policy::AuthzRule;
use crate::model::{AuthzAction, AuthzPolicy, Identity, MtlsMode, PolicyRef, Reason, Workload};

/// A connection as policy sees it.
#[derive(Clone, Copy, Debug)]
pub struct ConnFacts<'a> {
    /// The identity that mutual TLS proved (or that the kernel knows, on one node); None = plaintext.
    pub peer: Option<&'a Identity>,
    pub source_ip: IpAddr,
    /// The pod's address and the container port.
    pub destination: SocketAddr,
}

/// A request as policy sees it. Its path is in the normal form (`decide::path`).
#[derive(Clone, Copy, Debug)]
pub struct HttpFacts<'a> {
    pub conn: ConnFacts<'a>,
    pub request: RequestView<'a>,
}

/// What is judged: a connection, or a request on one.
#[derive(Clone, Copy)]
struct Facts<'a> {
    conn: &'a ConnFacts<'a>,
    layer: Layer<'a>,
}

impl<'a> Facts<'a> {
    fn tcp(conn: &'a ConnFacts<'a>) -> Self {
        Self { conn, layer: Layer::Tcp }
    }

    fn request(facts: &'a HttpFacts<'a>) -> Self {
        Self { conn: &facts.conn, layer: Layer::Request(&facts.request) }
    }
}

/// The rule a verdict comes from; `rule: None` = the policy as a whole.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct RuleRef {
    pub policy: PolicyRef,
    pub rule: Option<usize>,
}

/// The answer. `reason` is set exactly when `allowed` is false; `rule` is none where a default decided.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Verdict {
    pub allowed: bool,
    pub reason: Option<Reason>,
    pub rule: Option<RuleRef>,
}

impl Verdict {
    fn allow(rule: Option<RuleRef>) -> Self {
        Self { allowed: true, reason: None, rule }
    }

    fn deny(reason: Reason, rule: Option<RuleRef>) -> Self {
        Self { allowed: false, reason: Some(reason), rule }
    }
}

/// Which part of the judgement a step belongs to, in the order they are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// One of the identities is on the mesh's deny list.
    DenyList,
    PeerAuthentication,
    Audit,
    Custom,
    Deny,
    Allow,
    /// No policy decided.
    Default,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Step {
    pub stage: Stage,
    pub policy: Option<PolicyRef>,
    pub rule: Option<usize>,
    /// The policy or rule matched the connection.
    pub matched: bool,
    /// False for a dry run or an audit, and for whatever comes after the decision.
    pub enforced: bool,
    /// The verdict, on exactly the one step that decided.
    pub verdict: Option<Verdict>,
    pub why: String,
}

/// Judges a TCP connection to `dst`.
pub fn judge<S: Snapshot + ?Sized>(world: &S, dst: &Workload, facts: &ConnFacts<'_>) -> Verdict {
    walk(world, dst, Facts::tcp(facts), None)
}

/// Judges a request to `dst`.
pub fn judge_request<S: Snapshot + ?Sized>(world: &S, dst: &Workload, facts: &HttpFacts<'_>) -> Verdict {
    walk(world, dst, Facts::request(facts), None)
}

/// Whether a connection to `dst` may be, or why not. Of a destination outside the mesh no policy speaks.
pub fn admit<S: Snapshot + ?Sized>(world: &S, dst: &Workload, facts: &ConnFacts<'_>) -> Result<(), Reason> {
    admitted(dst, || judge(world, dst, facts))
}

/// Whether a request to `dst` may be, or why not.
pub fn admit_request<S: Snapshot + ?Sized>(
    world: &S,
    dst: &Workload,
    facts: &HttpFacts<'_>,
) -> Result<(), Reason> {
    admitted(dst, || judge_request(world, dst, facts))
}

/// Whether a connection whose requests will be judged may be at all: the deny list and peer authentication. What
/// AuthorizationPolicy refuses is refused by a status, request by request.
pub fn admit_stream<S: Snapshot + ?Sized>(
    world: &S,
    dst: &Workload,
    facts: &ConnFacts<'_>,
) -> Result<(), Reason> {
    admitted(dst, || {
        let mut walk = Walk { facts: Facts::tcp(facts), decided: None, notes: None };
        walk.deny_list(world, dst);
        walk.peer_authentication(world, dst);
        walk.decided.unwrap_or_else(|| Verdict::allow(None))
    })
}

/// Whether there is any request that `dst` would admit on this connection. A live connection for which there is none
/// is cut, with the requests that are under way on it.
pub fn admit_any_request<S: Snapshot + ?Sized>(
    world: &S,
    dst: &Workload,
    facts: &ConnFacts<'_>,
) -> Result<(), Reason> {
    admitted(dst, || walk(world, dst, Facts { conn: facts, layer: Layer::AnyRequest }, None))
}

fn admitted(dst: &Workload, judge: impl FnOnce() -> Verdict) -> Result<(), Reason> {
    if !dst.enrolled {
        return Ok(());
    }
    let verdict = judge();
    if verdict.allowed { Ok(()) } else { Err(verdict.reason.unwrap_or(Reason::PolicyDenied)) }
}

/// Whether some policy in force asks about requests to this port, so that its connections have to be read as HTTP.
pub fn needs_http<S: Snapshot + ?Sized>(world: &S, dst: &Workload, port: u16) -> bool {
    let in_force = |policy: &&AuthzPolicy| {
        !policy.dry_run && policy.invalid.is_none() && policy.action != AuthzAction::Audit
    };
    dst.enrolled
        && in_scope(world, dst)
            .filter(in_force)
            .any(|policy| policy.rules.iter().any(|rule| asks_http(rule, port)))
}

/// Judges a connection as [`judge`] does and notes every policy looked at.
pub fn explain<S: Snapshot + ?Sized>(world: &S, dst: &Workload, facts: &ConnFacts<'_>) -> Vec<Step> {
    let mut steps = Vec::new();
    walk(world, dst, Facts::tcp(facts), Some(&mut steps));
    steps
}

/// Judges a request as [`judge_request`] does and notes every policy looked at.
pub fn explain_request<S: Snapshot + ?Sized>(world: &S, dst: &Workload, facts: &HttpFacts<'_>) -> Vec<Step> {
    let mut steps = Vec::new();
    walk(world, dst, Facts::request(facts), Some(&mut steps));
    steps
}

/// The walk's state: the first decision stands; notes go on after it, the judgement alone stops there.
struct Walk<'a> {
    facts: Facts<'a>,
    decided: Option<Verdict>,
    notes: Option<&'a mut Vec<Step>>,
}

fn walk<'a, S: Snapshot + ?Sized>(
    world: &S,
    dst: &Workload,
    facts: Facts<'a>,
    notes: Option<&'a mut Vec<Step>>,
) -> Verdict {
    let mut walk = Walk { facts, decided: None, notes };
    walk.deny_list(world, dst);
    walk.peer_authentication(world, dst);
    // An audit is only ever noted.
    if walk.notes.is_some() {
        for policy in in_scope(world, dst).filter(|policy| policy.action == AuthzAction::Audit) {
            walk.policy(Stage::Audit, policy);
        }
    }
    for (stage, action) in [(Stage::Custom, AuthzAction::Custom), (Stage::Deny, AuthzAction::Deny)] {
        for policy in in_scope(world, dst).filter(|policy| policy.action == action) {
            if walk.finished() {
                break;
            }
            walk.policy(stage, policy);
        }
    }
    let mut restricted = false;
    // An ALLOW policy that could not be understood denies, and so must be seen before one that allows.
    for broken in [true, false] {
        for policy in in_scope(world, dst)
            .filter(|policy| policy.action == AuthzAction::Allow && policy.invalid.is_some() == broken)
        {
            if walk.finished() {
                break;
            }
            restricted |= !policy.dry_run;
            walk.policy(Stage::Allow, policy);
        }
    }
    walk.default(restricted)
}

impl Walk<'_> {
    /// Nothing more to find out: decided, and nobody takes notes.
    fn finished(&self) -> bool {
        self.decided.is_some() && self.notes.is_none()
    }

    /// Notes a step; `verdict` decides if nothing has yet. The text is only built when notes are taken.
    fn step(&mut self, mut step: Step, verdict: Option<Verdict>, why: impl FnOnce() -> String) {
        let decides = self.decided.is_none();
        if decides && let Some(verdict) = &verdict {
            self.decided = Some(verdict.clone());
        }
        if let Some(notes) = self.notes.as_deref_mut() {
            step.enforced &= decides;
            step.verdict = if decides { verdict } else { None };
            step.why = why();
            notes.push(step);
        }
    }

    /// Noted only where it decides: it is empty but in an emergency.
    fn deny_list<S: Snapshot + ?Sized>(&mut self, world: &S, dst: &Workload) {
        let Some(denied) = denied(world, self.facts.conn.peer, &dst.identity) else { return };
        let step = Step {
            stage: Stage::DenyList,
            policy: None,
            rule: None,
            matched: true,
            enforced: true,
            verdict: None,
            why: String::new(),
        };
        let verdict = Some(Verdict::deny(Reason::IdentityDenied, None));
        self.step(step, verdict, || format!("{denied} is on the deny list"));
    }

    fn peer_authentication<S: Snapshot + ?Sized>(&mut self, world: &S, dst: &Workload) {
        let (mode, policy) = world.mtls_mode(dst, self.facts.conn.destination.port());
        let refused = mode == MtlsMode::Strict && self.facts.conn.peer.is_none();
        let verdict = refused.then(|| {
            let rule = policy.clone().map(|policy| RuleRef { policy, rule: None });
            Verdict::deny(Reason::PlaintextRefused, rule)
        });
        let peer = self.facts.conn.peer;
        let step = Step {
            stage: Stage::PeerAuthentication,
            policy,
            rule: None,
            matched: refused,
            enforced: true,
            verdict: None,
            why: String::new(),
        };
        self.step(step, verdict, || {
            let peer = peer.map_or_else(|| "plaintext".to_owned(), |peer| format!("mutual TLS as {peer}"));
            format!("mode {mode:?}, and the connection is {peer}")
        });
    }

    fn policy(&mut self, stage: Stage, policy: &AuthzPolicy) {
        let enforced = !policy.dry_run && stage != Stage::Audit;
        if let Some(cause) = &policy.invalid
            && stage != Stage::Audit
        {
            let verdict = enforced.then(|| Verdict::deny(Reason::PolicyInvalid, Some(whole(policy))));
            let step = note(stage, policy, None, true);
            self.step(step, verdict, || format!("denies until mended: {cause}"));
            return;
        }
        if policy.rules.is_empty() {
            let step = note(stage, policy, None, false);
            self.step(step, None, || "has no rules, so it never matches".to_owned());
        }
        for (index, rule) in policy.rules.iter().enumerate() {
            let result = rule_matches(policy.action, rule, self.facts.conn, self.facts.layer);
            let matched = result.is_ok();
            let verdict = (matched && enforced).then(|| {
                let rule = Some(RuleRef { policy: policy.policy.clone(), rule: Some(index) });
                if stage == Stage::Allow {
                    Verdict::allow(rule)
                } else {
                    Verdict::deny(Reason::PolicyDenied, rule)
                }
            });
            let step = note(stage, policy, Some(index), matched);
            let layer = self.facts.layer;
            self.step(step, verdict, || match result {
                Err(mismatch) => mismatch.to_string(),
                Ok(()) => matched_text(stage, policy, rule, layer),
            });
            if matched {
                return;
            }
        }
    }

    fn default(&mut self, restricted: bool) -> Verdict {
        if let Some(verdict) = &self.decided {
            return verdict.clone();
        }
        let verdict =
            if restricted { Verdict::deny(Reason::PolicyNotAllowed, None) } else { Verdict::allow(None) };
        let step = Step {
            stage: Stage::Default,
            policy: None,
            rule: None,
            matched: true,
            enforced: true,
            verdict: None,
            why: String::new(),
        };
        self.step(step, Some(verdict.clone()), || {
            if restricted {
                "ALLOW policies hold for this workload and none matched".to_owned()
            } else {
                "no ALLOW policy holds for this workload".to_owned()
            }
        });
        verdict
    }
}

/// Which of the two ends is on the deny list.
pub fn denied<'a, S: Snapshot + ?Sized>(
    world: &S,
    peer: Option<&'a Identity>,
    destination: &'a Identity,
) -> Option<&'a Identity> {
    peer.into_iter().chain([destination]).find(|identity| world.denied(identity))
}

fn note(stage: Stage, policy: &AuthzPolicy, rule: Option<usize>, matched: bool) -> Step {
    Step {
        stage,
        policy: Some(policy.policy.clone()),
        rule,
        matched,
        enforced: !policy.dry_run && stage != Stage::Audit,
        verdict: None,
        why: String::new(),
    }
}

fn whole(policy: &AuthzPolicy) -> RuleRef {
    RuleRef { policy: policy.policy.clone(), rule: None }
}

fn matched_text(stage: Stage, policy: &AuthzPolicy, rule: &AuthzRule, layer: Layer<'_>) -> String {
    let mut text = match stage {
        Stage::Custom => "matches; without an external provider CUSTOM denies".to_owned(),
        Stage::Audit => "matches; an audit changes nothing".to_owned(),
        _ => "matches".to_owned(),
    };
    if let (Layer::Tcp, Some(name)) = (layer, http_field(rule)) {
        text.push_str(&format!("; `{name}` needs HTTP and counts as matched on a TCP connection"));
    } else if let (true, Some(name)) = (policy.action != AuthzAction::Allow, token_field(rule)) {
        text.push_str(&format!(
            "; `{name}` needs a verified token, none is verified, and it counts as matched"
        ));
    }
    if policy.dry_run {
        text.push_str("; dry run, not enforced");
    }
    text
}

#[cfg(test)]
mod tests;
