//! Which rule takes a connection to a Service's port (reference section 4.3; Gateway API TCPRoute and TLSRoute).
//! Owns: matching, and which of several matches counts. Never: reads a ClientHello (`proxy` does), resolves a backend
//! (`outbound`), or says which rules a port has (`Snapshot::conn_rules`). Called by `outbound`.

use std::net::IpAddr;
use std::sync::Arc;

use super::peer_auth::selects;
use crate::model::Workload;
use crate::model::connection::{ConnMatch, ConnRule, SniPattern};

/// A connection as its rules see it.
#[derive(Clone, Copy, Debug)]
pub struct ConnView<'a> {
    /// The address that was dialled.
    pub address: IpAddr,
    /// The Service's port that was dialled.
    pub port: u16,
    /// The name of the ClientHello, in lower case. None = it has none, or there is no ClientHello.
    pub sni: Option<&'a str>,
}

/// How narrowly a match describes a connection: the prefix of the subnet, then the name. Envoy's order of a listener's
/// filter chains, which is what Istio makes of these rules.
type Narrowness = (u16, u8, usize);

/// The rule that takes the connection: of those that match, the narrowest, and of equally narrow ones the first.
///
/// A rule that asks neither for a name nor for a subnet ends the list, as in Istio: what stands behind it is never
/// reached, however narrow it is.
pub fn select<'r>(
    rules: &'r [Arc<ConnRule>],
    source: &Workload,
    conn: &ConnView<'_>,
) -> Option<&'r Arc<ConnRule>> {
    let mut best: Option<(Narrowness, &'r Arc<ConnRule>)> = None;
    for rule in rules {
        let mut consider = |narrowness: Narrowness| {
            if best.is_none_or(|(before, _)| narrowness > before) {
                best = Some((narrowness, rule));
            }
        };
        if rule.matches.is_empty() {
            consider((0, 0, 0));
            break;
        }
        let mut ends = false;
        for one in &rule.matches {
            if let Some(narrowness) = narrowness(one, source, conn) {
                consider(narrowness);
                ends |= one.sni.is_empty() && one.subnets.is_empty();
            }
        }
        if ends {
            break;
        }
    }
    best.map(|(_, rule)| rule)
}

/// None where the match does not hold.
fn narrowness(one: &ConnMatch, source: &Workload, conn: &ConnView<'_>) -> Option<Narrowness> {
    let known = one.port.is_none_or(|port| port == conn.port)
        && one.source_namespace.as_ref().is_none_or(|namespace| *namespace == source.namespace)
        && (one.source_labels.is_empty() || selects(&one.source_labels, &source.labels));
    if !known {
        return None;
    }
    let subnet = if one.subnets.is_empty() {
        0
    } else {
        let with = one.subnets.iter().filter(|subnet| subnet.contains(&conn.address));
        1 + with.map(|subnet| u16::from(subnet.prefix_len())).max()?
    };
    let (kind, length) = if one.sni.is_empty() {
        (0, 0)
    } else {
        let named = one.sni.iter().filter(|pattern| pattern.matches(conn.sni));
        let rank = |pattern: &SniPattern| match pattern {
            SniPattern::Any => (0, 0),
            SniPattern::Under(suffix) => (1, suffix.len()),
            SniPattern::Exact(name) => (2, name.len()),
        };
        named.map(rank).max()?
    };
    Some((subnet, kind, length))
}

/// One of several by weight; none where nothing has one.
pub fn draw<T>(all: &[T], weight: impl Fn(&T) -> u32, random: u64) -> Option<&T> {
    if let [only] = all {
        return Some(only);
    }
    let sum: u64 = all.iter().map(|one| u64::from(weight(one))).sum();
    let mut drawn = random.checked_rem(sum)?;
    all.iter().find(|one| {
        let weight = u64::from(weight(one));
        let hit = drawn < weight;
        drawn = drawn.saturating_sub(weight);
        hit
    })
}

#[cfg(test)]
mod tests;
