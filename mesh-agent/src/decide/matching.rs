//! How one value is held against AuthorizationPolicy's `values` and `notValues`.
//! Owns: exact, prefix, suffix and presence matching, without building a string. Called by `authz` only.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::model::policy::{StringMatch, Values};

/// A text in pieces, as an identity holds its principal: `[trust domain, "/ns/", namespace, ...]`.
pub type Pieces<'a> = &'a [&'a str];

/// Holds one pattern against a text given in pieces. `*` is only ever a wildcard at the pattern's edge, which
/// `compile` has already turned into the variant; everything else is literal (CVE-2026-39350's class).
pub fn matches(pattern: &StringMatch, text: Pieces<'_>) -> bool {
    let length: usize = text.iter().map(|piece| piece.len()).sum();
    match pattern {
        StringMatch::Present => length > 0,
        StringMatch::Exact(want) => length == want.len() && starts(text, want),
        StringMatch::Prefix(want) => length >= want.len() && starts(text, want),
        StringMatch::Suffix(want) => length >= want.len() && ends(text, want),
    }
}

fn starts(text: Pieces<'_>, want: &str) -> bool {
    let mut rest = want.as_bytes();
    for piece in text {
        let piece = piece.as_bytes();
        let take = piece.len().min(rest.len());
        if piece.get(..take) != rest.get(..take) {
            return false;
        }
        rest = rest.get(take..).unwrap_or_default();
    }
    rest.is_empty()
}

fn ends(text: Pieces<'_>, want: &str) -> bool {
    let mut rest = want.as_bytes();
    for piece in text.iter().rev() {
        let piece = piece.as_bytes();
        let take = piece.len().min(rest.len());
        let (head, tail) = rest.split_at(rest.len() - take);
        if piece.get(piece.len() - take..) != Some(tail) {
            return false;
        }
        rest = head;
    }
    rest.is_empty()
}

/// `values` and `notValues` of one field: any of the first (where given) and none of the second. `one` says
/// whether a single pattern matches; where the connection has no such attribute it says no, so that positive
/// values fail and `not` values pass, as Istio does for a plaintext peer.
pub fn field<T>(values: &Values<T>, one: impl Fn(&T) -> bool) -> bool {
    (values.any.is_empty() || values.any.iter().any(&one)) && !values.none.iter().any(&one)
}

/// Text values against an attribute that may be absent.
pub fn text(values: &Values<StringMatch>, attribute: Option<Pieces<'_>>) -> bool {
    field(values, |pattern| attribute.is_some_and(|text| matches(pattern, text)))
}

/// Address blocks. An IPv4 client seen through an IPv6 socket is still the IPv4 client.
pub fn address(values: &Values<IpNet>, address: IpAddr) -> bool {
    let address = address.to_canonical();
    field(values, |block| block.contains(&address))
}

/// Service accounts: exact, never a pattern.
pub fn account(values: &Values<(Arc<str>, Arc<str>)>, peer: Option<(&str, &str)>) -> bool {
    field(values, |(namespace, account)| peer == Some((namespace, account)))
}

#[cfg(test)]
mod tests;
