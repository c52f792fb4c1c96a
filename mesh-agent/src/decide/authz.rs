//! AuthorizationPolicy on a connection (L4): which policies speak of a workload, and whether a rule matches.
//! Owns: scope, rule, source, operation and condition matching (reference section 4.1).
//! Never: the order of actions (that is `inbound`), HTTP attributes. Called by `inbound`.

use super::Snapshot;
use super::inbound::ConnFacts;
use super::matching::{account, address, field, text};
use super::peer_auth::selects;
use crate::model::policy::{AuthzRule, Condition, Operation, Source};
use crate::model::{AuthzAction, AuthzPolicy, Identity, Workload};

/// Policies in whose scope the workload is: the root namespace's and its own namespace's. No order among them.
pub fn in_scope<'a, S: Snapshot + ?Sized>(
    world: &'a S,
    dst: &'a Workload,
) -> impl Iterator<Item = &'a AuthzPolicy> {
    let root = world.root_namespace();
    let own = (&*dst.namespace != root).then(|| world.authz_policies(&dst.namespace)).into_iter().flatten();
    world.authz_policies(root).chain(own).map(AsRef::as_ref).filter(move |policy| covers(world, policy, dst))
}

fn covers<S: Snapshot + ?Sized>(world: &S, policy: &AuthzPolicy, dst: &Workload) -> bool {
    let scope = &policy.scope;
    if scope.namespace.as_ref().is_some_and(|namespace| *namespace != dst.namespace) {
        return false;
    }
    if scope.selector.as_ref().is_some_and(|selector| !selects(selector, &dst.labels)) {
        return false;
    }
    scope.services.is_empty()
        || scope.services.iter().any(|service| world.serves(&policy.policy.namespace, service, dst))
}

/// What a connection is, in the pieces that rules ask about.
struct Attributes<'a> {
    facts: &'a ConnFacts<'a>,
    principal: Option<[&'a str; 5]>,
    /// An ALLOW rule wants every HTTP field proven; the other actions take it as matched (wider).
    http_matches: bool,
}

/// Whether one rule matches the connection, seen as a policy of this action sees it.
///
/// HTTP fields on a TCP connection: an ALLOW rule that has one never matches; in a DENY, CUSTOM or AUDIT rule they
/// count as matched, so that it denies rather than silently does nothing (DESIGN section 5; ztunnel drops it).
pub fn rule_matches(action: AuthzAction, rule: &AuthzRule, facts: &ConnFacts<'_>) -> Result<(), Mismatch> {
    let http_matches = action != AuthzAction::Allow;
    if !http_matches && let Some(name) = http_field(rule) {
        return Err(Mismatch::Http(name.to_owned()));
    }
    let principal = facts
        .peer
        .map(|peer| [peer.trust_domain(), "/ns/", peer.namespace(), "/sa/", peer.service_account()]);
    let attributes = Attributes { facts, principal, http_matches };
    if !rule.from.is_empty() && !rule.from.iter().any(|source| attributes.source(source)) {
        return Err(Mismatch::From);
    }
    if !rule.to.is_empty() && !rule.to.iter().any(|operation| attributes.operation(operation)) {
        return Err(Mismatch::To);
    }
    match rule.when.iter().position(|condition| !attributes.condition(condition)) {
        Some(index) => Err(Mismatch::When(index)),
        None => Ok(()),
    }
}

/// Which part of a rule did not match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mismatch {
    From,
    To,
    When(usize),
    /// An ALLOW rule with this HTTP field cannot match a TCP connection.
    Http(String),
}

impl std::fmt::Display for Mismatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::From => f.write_str("no `from` matches"),
            Self::To => f.write_str("no `to` matches"),
            Self::When(index) => write!(f, "when[{index}] does not match"),
            Self::Http(name) => write!(f, "`{name}` needs HTTP, and this is a TCP connection"),
        }
    }
}

/// The first HTTP-only field of a rule.
pub fn http_field(rule: &AuthzRule) -> Option<&str> {
    let from = rule.from.iter().flat_map(|source| source.http.iter());
    let to = rule.to.iter().flat_map(|operation| operation.http.iter());
    let when = rule.when.iter().filter_map(|condition| match condition {
        Condition::Http(key) => Some(&**key),
        _ => None,
    });
    from.chain(to).copied().chain(when).next()
}

impl Attributes<'_> {
    fn peer(&self) -> Option<&Identity> {
        self.facts.peer
    }

    fn peer_account(&self) -> Option<(&str, &str)> {
        self.peer().map(|peer| (peer.namespace(), peer.service_account()))
    }

    fn source(&self, source: &Source) -> bool {
        let principal = self.principal.as_ref().map(<[&str; 5]>::as_slice);
        let namespace = self.peer().map(|peer| [peer.namespace()]);
        let trust_domain = self.peer().map(|peer| [peer.trust_domain()]);
        (source.http.is_empty() || self.http_matches)
            && text(&source.principals, principal)
            && account(&source.service_accounts, self.peer_account())
            && text(&source.namespaces, namespace.as_ref().map(<[&str; 1]>::as_slice))
            && text(&source.trust_domains, trust_domain.as_ref().map(<[&str; 1]>::as_slice))
            && address(&source.ip_blocks, self.facts.source_ip)
    }

    fn operation(&self, operation: &Operation) -> bool {
        (operation.http.is_empty() || self.http_matches)
            && field(&operation.ports, |port| *port == self.facts.destination.port())
    }

    fn condition(&self, condition: &Condition) -> bool {
        let namespace = self.peer().map(|peer| [peer.namespace()]);
        let trust_domain = self.peer().map(|peer| [peer.trust_domain()]);
        match condition {
            Condition::SourceIp(values) => address(values, self.facts.source_ip),
            Condition::SourceNamespace(values) => text(values, namespace.as_ref().map(<[&str; 1]>::as_slice)),
            Condition::SourcePrincipal(values) => {
                text(values, self.principal.as_ref().map(<[&str; 5]>::as_slice))
            }
            Condition::SourceServiceAccount(values) => account(values, self.peer_account()),
            Condition::SourceTrustDomain(values) => {
                text(values, trust_domain.as_ref().map(<[&str; 1]>::as_slice))
            }
            Condition::DestinationIp(values) => address(values, self.facts.destination.ip()),
            Condition::DestinationPort(values) => {
                field(values, |port| *port == self.facts.destination.port())
            }
            Condition::Http(_) => self.http_matches,
        }
    }
}
