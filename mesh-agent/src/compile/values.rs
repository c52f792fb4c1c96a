//! Texts of an AuthorizationPolicy into what is matched: patterns, address blocks, ports, accounts.
//! A list that is present and empty is refused: read as «no restriction» it would open what its author closed
//! (CVE-2025-64715).

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::model::policy::{PathPattern, PathTemplate, StringMatch, Values};

/// What is wrong with one field: its path, the message, the remedy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) field: String,
    pub(super) message: String,
    pub(super) remedy: String,
}

pub(super) fn fault(field: &str, message: impl Into<String>, remedy: impl Into<String>) -> Fault {
    Fault { field: field.to_owned(), message: message.into(), remedy: remedy.into() }
}

/// A list and its `not` twin, each with its path.
pub(super) struct Lists<'a> {
    pub(super) any: (&'a str, &'a Option<Vec<String>>),
    pub(super) none: (&'a str, &'a Option<Vec<String>>),
}

/// Reads both lists with `one` for each text; every fault is reported, not just the first.
pub(super) fn read<T>(
    path: &str,
    lists: &Lists<'_>,
    faults: &mut Vec<Fault>,
    one: impl Fn(&str) -> Result<T, (String, String)>,
) -> Values<T> {
    let mut list = |(name, texts): (&str, &Option<Vec<String>>)| -> Vec<T> {
        let field = format!("{path}.{name}");
        let Some(texts) = texts else { return Vec::new() };
        if texts.is_empty() {
            faults.push(fault(&field, "is an empty list", "list at least one value, or remove the field"));
        }
        let mut values = Vec::with_capacity(texts.len());
        for (index, text) in texts.iter().enumerate() {
            match one(text) {
                Ok(value) => values.push(value),
                Err((message, remedy)) => {
                    faults.push(Fault { field: format!("{field}[{index}]"), message, remedy });
                }
            }
        }
        values
    };
    Values { any: list(lists.any), none: list(lists.none) }
}

type Parsed<T> = Result<T, (String, String)>;

/// `*`, `*suffix`, `prefix*` or exact; a `*` anywhere else is a plain character.
pub(super) fn pattern(text: &str) -> Parsed<StringMatch> {
    if text.is_empty() {
        return Err(("is empty".to_owned(), "give a value, or `*` for any".to_owned()));
    }
    Ok(if text == "*" {
        StringMatch::Present
    } else if let Some(suffix) = text.strip_prefix('*') {
        StringMatch::Suffix(suffix.into())
    } else if let Some(prefix) = text.strip_suffix('*') {
        StringMatch::Prefix(prefix.into())
    } else {
        StringMatch::Exact(text.into())
    })
}

/// A path: as any text, or a template if it has one of the operators `{*}` and `{**}`.
pub(super) fn path_pattern(text: &str) -> Parsed<PathPattern> {
    if !text.contains("{*}") && !text.contains("{**}") {
        return pattern(&upper_escapes(text)).map(PathPattern::Text);
    }
    let text = &upper_escapes(text);
    let wrong =
        |message: &str| (format!("`{text}` {message}"), "write e.g. /api/{*}/items or /api/{**}".to_owned());
    let inside = text.strip_prefix('/').ok_or_else(|| wrong("does not begin with a slash"))?;
    let mut segments = Vec::new();
    let mut rest = inside.split('/');
    while let Some(segment) = rest.next() {
        match segment {
            "{*}" => segments.push(None),
            "{**}" => {
                let after: String = rest.map(|segment| format!("/{segment}")).collect();
                if after.contains("{*}") || after.contains("{**}") {
                    return Err(wrong("has an operator after {**}"));
                }
                return literal(&after)
                    .then(|| PathPattern::Template(PathTemplate { segments, rest: Some(after.into()) }))
                    .ok_or_else(|| wrong("has `*`, `{` or `}` outside of an operator"));
            }
            segment if literal(segment) => segments.push(Some(segment.into())),
            _ => return Err(wrong("has `*`, `{` or `}` outside of an operator")),
        }
    }
    Ok(PathPattern::Template(PathTemplate { segments, rest: None }))
}

/// The digits of escapes in upper case, as requests have them (`decide::path`).
fn upper_escapes(text: &str) -> String {
    let mut parts = text.split('%');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out.push('%');
        out.extend(
            part.chars()
                .enumerate()
                .map(|(at, c)| if at < 2 && c.is_ascii_hexdigit() { c.to_ascii_uppercase() } else { c }),
        );
    }
    out
}

fn literal(text: &str) -> bool {
    !text.contains(['*', '{', '}'])
}

/// A principal pattern; the scheme is a common slip that would make the rule match nothing, ever.
pub(super) fn principal(text: &str) -> Parsed<StringMatch> {
    if text.starts_with("spiffe://") {
        return Err((
            format!("`{text}` would never match"),
            "write principals without spiffe://, as TRUST_DOMAIN/ns/NAMESPACE/sa/ACCOUNT".to_owned(),
        ));
    }
    pattern(text)
}

/// An address or a block, IPv4 or IPv6.
pub(super) fn block(text: &str) -> Parsed<IpNet> {
    text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).map_err(|_neither| {
        (
            format!("`{text}` is not an address or a block"),
            "write 10.0.0.0/8, fd00::/8 or an address".to_owned(),
        )
    })
}

/// A port as the API writes it: a text.
pub(super) fn port(text: &str) -> Parsed<u16> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse::<u16>().ok().filter(|port| digits && *port != 0).ok_or_else(|| {
        (format!("`{text}` is not a port"), "write a number from 1 to 65535, in quotes".to_owned())
    })
}

/// `NAMESPACE/ACCOUNT`, or `ACCOUNT` in the policy's namespace. No wildcards.
pub(super) fn account(own: &Arc<str>, text: &str) -> Parsed<(Arc<str>, Arc<str>)> {
    let (namespace, account) = match text.split_once('/') {
        Some((namespace, account)) => (Arc::from(namespace), account),
        None => (Arc::clone(own), text),
    };
    let good = |part: &str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
    };
    if good(&namespace) && good(account) {
        return Ok((namespace, account.into()));
    }
    Err((
        format!("`{text}` is not a service account"),
        "write ACCOUNT or NAMESPACE/ACCOUNT; wildcards are not possible here".to_owned(),
    ))
}

#[cfg(test)]
mod tests;
