//! AuthorizationPolicy on a connection (L4) and on a request (L7): which policies speak of a workload, and whether a
//! rule matches. One evaluation for both, so that a policy means one thing whatever the client speaks.
//! Owns: scope, rule, source, operation and condition matching (reference section 4.1).
//! Never: the order of actions (that is `inbound`), paths that are not in their normal form. Called by `inbound`.

use std::net::IpAddr;

use http::HeaderMap;

use super::Snapshot;
use super::inbound::ConnFacts;
use super::matching::{account, address, field, header, host, path, text};
use super::peer_auth::selects;
use super::route::{self, RequestView};
use crate::model::policy::{AuthzRule, Condition, Operation, Source, StringMatch, Values};
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

/// How much is known of what the client wants.
#[derive(Clone, Copy, Debug)]
pub enum Layer<'a> {
    /// A TCP connection: no field of HTTP will ever have a value.
    Tcp,
    /// HTTP, and the question is whether any request at all could pass.
    AnyRequest,
    Request(&'a RequestView<'a>),
}

/// What a connection or a request is, in the pieces that rules ask about.
struct Attributes<'a> {
    facts: &'a ConnFacts<'a>,
    layer: Layer<'a>,
    principal: Option<[&'a str; 5]>,
    /// Every action but ALLOW: what cannot be known counts as matched. An ALLOW rule wants every field proven.
    wide: bool,
}

/// Whether one rule matches, seen as a policy of this action sees it.
///
/// HTTP fields on a TCP connection: an ALLOW rule that has one never matches; in a DENY, CUSTOM or AUDIT rule they
/// count as matched, so that it denies rather than silently does nothing (DESIGN section 5; ztunnel drops it).
/// So do, on every layer, the fields that a verified token has to prove: no token is verified here.
pub fn rule_matches(
    action: AuthzAction,
    rule: &AuthzRule,
    facts: &ConnFacts<'_>,
    layer: Layer<'_>,
) -> Result<(), Mismatch> {
    let wide = action != AuthzAction::Allow;
    if !wide
        && matches!(layer, Layer::Tcp)
        && let Some(name) = http_field(rule)
    {
        return Err(Mismatch::Http(name.to_owned()));
    }
    let principal = facts
        .peer
        .map(|peer| [peer.trust_domain(), "/ns/", peer.namespace(), "/sa/", peer.service_account()]);
    let attributes = Attributes { facts, layer, principal, wide };
    let unproven = || if wide { None } else { token_field(rule) };
    if !rule.from.is_empty() && !rule.from.iter().any(|source| attributes.source(source)) {
        return Err(unproven().map_or(Mismatch::From, |name| Mismatch::Token(name.to_owned())));
    }
    if !rule.to.is_empty() && !rule.to.iter().any(|operation| attributes.operation(operation)) {
        return Err(Mismatch::To);
    }
    match rule.when.iter().position(|condition| !attributes.condition(condition)) {
        Some(index) => match rule.when.get(index) {
            Some(Condition::Token(key)) => Err(Mismatch::Token(key.to_string())),
            _ => Err(Mismatch::When(index)),
        },
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
    /// An ALLOW rule with this field cannot match: no token is verified.
    Token(String),
}

impl std::fmt::Display for Mismatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::From => f.write_str("no `from` matches"),
            Self::To => f.write_str("no `to` matches"),
            Self::When(index) => write!(f, "when[{index}] does not match"),
            Self::Http(name) => write!(f, "`{name}` needs HTTP, and this is a TCP connection"),
            Self::Token(name) => write!(f, "`{name}` needs a verified token, and none is verified"),
        }
    }
}

/// The first field of a rule that only a request can have.
pub fn http_field(rule: &AuthzRule) -> Option<&str> {
    let from = rule.from.iter().filter_map(|source| {
        let remote = (!source.remote_ip_blocks.is_empty()).then_some("remoteIpBlocks");
        remote.or_else(|| source.token.first().copied())
    });
    let to = rule.to.iter().filter_map(|operation| {
        let set = [
            ("hosts", operation.hosts.is_empty()),
            ("methods", operation.methods.is_empty()),
            ("paths", operation.paths.is_empty()),
        ];
        set.into_iter().find_map(|(name, unset)| (!unset).then_some(name))
    });
    let when = rule.when.iter().filter_map(|condition| match condition {
        Condition::RemoteIp(_) => Some("remote.ip"),
        Condition::Sni(_) => Some("connection.sni"),
        Condition::Header(..) => Some("request.headers"),
        Condition::Token(key) => Some(&**key),
        _ => None,
    });
    from.chain(to).chain(when).next()
}

/// The first field of a rule that only a verified token can prove.
pub fn token_field(rule: &AuthzRule) -> Option<&str> {
    let from = rule.from.iter().filter_map(|source| source.token.first().copied());
    let when = rule.when.iter().filter_map(|condition| match condition {
        Condition::Token(key) => Some(&**key),
        _ => None,
    });
    from.chain(when).next()
}

/// Whether a rule asks about requests to this port of the workload.
pub fn asks_http(rule: &AuthzRule, port: u16) -> bool {
    let meant = |ports: &Values<u16>| field(ports, |one| *one == port);
    http_field(rule).is_some()
        && (rule.to.is_empty() || rule.to.iter().any(|operation| meant(&operation.ports)))
        && rule.when.iter().all(|condition| match condition {
            Condition::DestinationPort(ports) => meant(ports),
            _ => true,
        })
}

/// The client of a request: the last address of `X-Forwarded-For`, which whoever connected here wrote, else who did
/// connect (Envoy's rule without trusted hops, as a sidecar has it).
pub fn remote_ip(headers: &HeaderMap, source: IpAddr) -> IpAddr {
    let last = headers.get_all("x-forwarded-for").iter().next_back();
    let text = last.and_then(|value| value.to_str().ok()).and_then(|text| text.rsplit(',').next());
    text.and_then(|text| text.trim().parse().ok()).unwrap_or(source)
}

impl<'a> Attributes<'a> {
    fn peer(&self) -> Option<&Identity> {
        self.facts.peer
    }

    fn peer_account(&self) -> Option<(&str, &str)> {
        self.peer().map(|peer| (peer.namespace(), peer.service_account()))
    }

    /// A field that only a request has.
    fn http(&self, unset: bool, holds: impl FnOnce(&RequestView<'a>) -> bool) -> bool {
        unset
            || match self.layer {
                Layer::Tcp => self.wide,
                Layer::AnyRequest => !self.wide,
                Layer::Request(request) => holds(request),
            }
    }

    fn source(&self, source: &Source) -> bool {
        let principal = self.principal.as_ref().map(<[&str; 5]>::as_slice);
        let namespace = self.peer().map(|peer| [peer.namespace()]);
        let trust_domain = self.peer().map(|peer| [peer.trust_domain()]);
        (source.token.is_empty() || self.wide)
            && text(&source.principals, principal)
            && account(&source.service_accounts, self.peer_account())
            && text(&source.namespaces, namespace.as_ref().map(<[&str; 1]>::as_slice))
            && text(&source.trust_domains, trust_domain.as_ref().map(<[&str; 1]>::as_slice))
            && address(&source.ip_blocks, self.facts.source_ip)
            && self.remote(&source.remote_ip_blocks)
    }

    fn remote(&self, blocks: &Values<ipnet::IpNet>) -> bool {
        self.http(blocks.is_empty(), |request| {
            address(blocks, remote_ip(request.headers, self.facts.source_ip))
        })
    }

    fn operation(&self, operation: &Operation) -> bool {
        field(&operation.ports, |port| *port == self.facts.destination.port())
            && self.http(operation.methods.is_empty(), |request| {
                text(&operation.methods, Some(&[request.method]))
            })
            && self.http(operation.hosts.is_empty(), |request| {
                // With and without the port, and a name with the root's dot is the same name.
                let bare = route::host_of(request.authority);
                host(&operation.hosts, &[request.authority, bare, bare.strip_suffix('.').unwrap_or(bare)])
            })
            && self.http(operation.paths.is_empty(), |request| path(&operation.paths, request.path))
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
            Condition::RemoteIp(blocks) => self.remote(blocks),
            Condition::Header(name, values) => self.http(false, |request| self.header(request, name, values)),
            // What is read as HTTP came without TLS inside.
            Condition::Sni(values) => self.http(false, |_| text(values, None)),
            Condition::Token(_) => self.wide,
        }
    }

    fn header(&self, request: &RequestView<'_>, name: &str, values: &Values<StringMatch>) -> bool {
        let own = match name {
            ":authority" | "host" => request.authority,
            ":method" => request.method,
            ":scheme" => request.scheme,
            ":path" => request.path,
            _ => {
                let value = route::value(request.headers, name);
                return header(values, value.as_deref(), self.wide);
            }
        };
        text(values, Some(&[own]))
    }
}

#[cfg(test)]
mod tests;
