//! May a connection reach a workload: the deny list, peer authentication, then AuthorizationPolicy in the order CUSTOM,
//! DENY, ALLOW. Owns that order and its explanation; `judge` and `explain` are one walk, with and without notes,
//! so that an explanation can never differ from what was done. Called by `proxy::inbound`, `bypass`, `explain`.

use std::net::{IpAddr, SocketAddr};

use super::Snapshot;
use super::authz::{http_field, in_scope, rule_matches};
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

/// Judges a connection to `dst`.
pub fn judge<S: Snapshot + ?Sized>(world: &S, dst: &Workload, facts: &ConnFacts<'_>) -> Verdict {
    walk(world, dst, facts, None)
}

/// Whether a connection to `dst` may be, or why not. Of a destination outside the mesh no policy speaks.
pub fn admit<S: Snapshot + ?Sized>(world: &S, dst: &Workload, facts: &ConnFacts<'_>) -> Result<(), Reason> {
    if !dst.enrolled {
        return Ok(());
    }
    let verdict = judge(world, dst, facts);
    if verdict.allowed { Ok(()) } else { Err(verdict.reason.unwrap_or(Reason::PolicyDenied)) }
}

/// Judges it the same way and notes every policy looked at.
pub fn explain<S: Snapshot + ?Sized>(world: &S, dst: &Workload, facts: &ConnFacts<'_>) -> Vec<Step> {
    let mut steps = Vec::new();
    walk(world, dst, facts, Some(&mut steps));
    steps
}

/// The walk's state: the first decision stands; notes go on after it, the judgement alone stops there.
struct Walk<'a> {
    facts: &'a ConnFacts<'a>,
    decided: Option<Verdict>,
    notes: Option<&'a mut Vec<Step>>,
}

fn walk<'a, S: Snapshot + ?Sized>(
    world: &S,
    dst: &Workload,
    facts: &'a ConnFacts<'a>,
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
        let Some(denied) = denied(world, self.facts.peer, &dst.identity) else { return };
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
        let (mode, policy) = world.mtls_mode(dst, self.facts.destination.port());
        let refused = mode == MtlsMode::Strict && self.facts.peer.is_none();
        let verdict = refused.then(|| {
            let rule = policy.clone().map(|policy| RuleRef { policy, rule: None });
            Verdict::deny(Reason::PlaintextRefused, rule)
        });
        let peer = self.facts.peer;
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
            let result = rule_matches(policy.action, rule, self.facts);
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
            self.step(step, verdict, || match result {
                Err(mismatch) => mismatch.to_string(),
                Ok(()) => matched_text(stage, policy, http_field(rule)),
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

fn matched_text(stage: Stage, policy: &AuthzPolicy, http: Option<&str>) -> String {
    let mut text = match stage {
        Stage::Custom => "matches; without an external provider CUSTOM denies".to_owned(),
        Stage::Audit => "matches; an audit changes nothing".to_owned(),
        _ => "matches".to_owned(),
    };
    if let Some(name) = http {
        text.push_str(&format!("; `{name}` needs HTTP and counts as matched on a TCP connection"));
    }
    if policy.dry_run {
        text.push_str("; dry run, not enforced");
    }
    text
}

#[cfg(test)]
mod tests;
