//! Small values of the traffic kinds, each with its path for the diagnostics.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};

use super::{header_text, refused};
use crate::api::istio::networking::{HeaderOperations, Headers, Percent, StringMatch};
use crate::compile::values::{Fault, fault};
use crate::compile::{Compiled, Head};
use crate::model::pattern::{Pattern, Regex};
use crate::model::route::{HeaderOps, HeaderText, Millionths};

/// Who an object is for.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub enum ExportTo {
    All,
    /// `~` = nobody: an empty list.
    Namespaces(Vec<Arc<str>>),
}

impl ExportTo {
    pub fn includes(&self, namespace: &str) -> bool {
        match self {
            Self::All => true,
            Self::Namespaces(listed) => listed.iter().any(|one| **one == *namespace),
        }
    }
}

/// What one object says, and what is wrong with it.
pub(super) struct Reader<'a> {
    pub(super) head: &'a Head<'a>,
    faults: Vec<Fault>,
    warnings: Vec<Fault>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(head: &'a Head<'a>) -> Self {
        Self { head, faults: Vec::new(), warnings: Vec::new() }
    }

    pub(super) fn fault(&mut self, field: &str, message: &str, remedy: &str) {
        self.faults.push(fault(field, message, remedy));
    }

    pub(super) fn warn(&mut self, field: &str, message: &str, remedy: &str) {
        self.warnings.push(fault(field, message, remedy));
    }

    /// What is wrong, where there is no object to refuse.
    pub(super) fn into_faults(self) -> Vec<Fault> {
        self.faults
    }

    /// Puts everything among the diagnostics; says whether the object holds.
    pub(super) fn report(self, out: &mut Compiled) -> bool {
        let head = self.head;
        let error = |one: &Fault| refused(head.error(&one.field, &one.message, &one.remedy));
        out.diagnostics.extend(self.faults.iter().map(error));
        let warning = |one: &Fault| head.warning(&one.field, &one.message, &one.remedy);
        out.diagnostics.extend(self.warnings.iter().map(warning));
        self.faults.is_empty()
    }

    /// A time; none where it is absent or wrong.
    pub(super) fn duration(&mut self, field: &str, text: Option<&String>) -> Option<Duration> {
        let text = text?;
        let found = duration(text);
        if found.is_none() {
            self.fault(field, &format!("`{text}` is not a time"), "write a time such as 10s, 1m30s or 250ms");
        }
        found
    }

    /// A time of at least a millisecond, as Istio asks for.
    pub(super) fn positive(&mut self, field: &str, text: Option<&String>) -> Option<Duration> {
        let found = self.duration(field, text)?;
        if found < Duration::from_millis(1) {
            self.fault(field, "is shorter than 1ms", "write at least 1ms, or remove the field");
            return None;
        }
        Some(found)
    }

    /// `percentage`, or its older whole-number form.
    pub(super) fn percent(&mut self, field: &str, value: f64) -> Millionths {
        if !(0.0..=100.0).contains(&value) {
            self.fault(field, &format!("{value} is not a percentage"), "write 0 to 100");
            return Millionths::NEVER;
        }
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between 0 and a million, checked above"
        )]
        Millionths((value * 10_000.0).round() as u32)
    }

    pub(super) fn percentage(&mut self, field: &str, value: Option<Percent>) -> Option<Millionths> {
        let value = value?.value.unwrap_or_default();
        Some(self.percent(&format!("{field}.value"), value))
    }

    pub(super) fn port(&mut self, field: &str, number: Option<u32>) -> Option<u16> {
        let number = number?;
        let port = u16::try_from(number).ok().filter(|port| *port != 0);
        if port.is_none() {
            self.fault(field, &format!("{number} is not a port"), "write 1 to 65535");
        }
        port
    }

    pub(super) fn regex(&mut self, field: &str, text: &str) -> Option<Regex> {
        match Regex::new(text) {
            Ok(regex) => Some(regex),
            Err(error) => {
                let cause = error.to_string();
                let cause = cause.lines().last().unwrap_or_default().trim_start_matches("error: ");
                self.fault(
                    field,
                    &format!("`{text}` is not a pattern: {cause}"),
                    "write an RE2 expression that matches the whole value",
                );
                None
            }
        }
    }

    /// One of exact, prefix and regex; none of them is «there at all».
    pub(super) fn string(&mut self, field: &str, value: &StringMatch) -> Option<Pattern> {
        match (&value.exact, &value.prefix, &value.regex) {
            (None, None, None) => Some(Pattern::Present),
            (Some(text), None, None) => Some(Pattern::Exact(text.as_str().into())),
            (None, Some(text), None) => Some(Pattern::Prefix(text.as_str().into())),
            (None, None, Some(text)) if text == "*" => Some(Pattern::Present),
            (None, None, Some(text)) => self.regex(&format!("{field}.regex"), text).map(Pattern::Regex),
            _ => {
                self.fault(field, "says more than one of exact, prefix and regex", "keep one of them");
                None
            }
        }
    }

    /// The same, where a value must be asked for.
    pub(super) fn valued(&mut self, field: &str, value: &StringMatch) -> Option<Pattern> {
        if value == &StringMatch::default() {
            self.fault(field, "is empty", "give it one of exact, prefix and regex");
            return None;
        }
        self.string(field, value)
    }

    /// A header's name in lower case.
    pub(super) fn header_name(&mut self, field: &str, name: &str) -> Option<Arc<str>> {
        if let Ok(name) = HeaderName::from_bytes(name.as_bytes()) {
            return Some(name.as_str().into());
        }
        let remedy = if name.starts_with(':') {
            "use the field that names this part of the request (uri, method, scheme, authority)"
        } else {
            "write a header name of RFC 9110"
        };
        self.fault(field, &format!("`{name}` is not a header's name"), remedy);
        None
    }

    fn header_value(&mut self, field: &str, text: &str, answer: bool) -> Option<HeaderText> {
        match header_text::read(text, answer) {
            Ok(HeaderText::Plain(text)) => self.plain_value(field, &text),
            // What is between the variables is known now.
            Ok(filled) => self.plain_value(field, text).map(|_text| filled),
            Err((message, remedy)) => {
                self.fault(field, &message, &remedy);
                None
            }
        }
    }

    pub(super) fn plain_value(&mut self, field: &str, text: &str) -> Option<HeaderText> {
        if HeaderValue::from_str(text).is_err() {
            self.fault(field, "is not a header's value", "write visible characters only");
            return None;
        }
        Some(text.into())
    }

    fn pairs(
        &mut self,
        field: &str,
        pairs: Option<&BTreeMap<String, String>>,
        answer: bool,
    ) -> Vec<(Arc<str>, HeaderText)> {
        let mut read = Vec::new();
        for (name, value) in pairs.into_iter().flatten() {
            let field = format!("{field}.{name}");
            // Envoy's word for Host, which a set header may change.
            let name = if name == ":authority" { "host" } else { name.as_str() };
            let name = self.header_name(&field, name);
            let value = self.header_value(&field, value, answer);
            read.extend(name.zip(value));
        }
        read
    }

    fn header_ops(&mut self, field: &str, ops: Option<&HeaderOperations>, answer: bool) -> HeaderOps {
        let Some(ops) = ops else { return HeaderOps::default() };
        let remove = ops.remove.iter().flatten().enumerate();
        let mut removed = Vec::new();
        for (index, name) in remove {
            removed.extend(self.header_name(&format!("{field}.remove[{index}]"), name));
        }
        HeaderOps {
            set: self.pairs(&format!("{field}.set"), ops.set.as_ref(), answer),
            add: self.pairs(&format!("{field}.add"), ops.add.as_ref(), answer),
            remove: removed,
        }
    }

    /// What is done to requests, and to responses.
    pub(super) fn headers(&mut self, field: &str, headers: Option<&Headers>) -> (HeaderOps, HeaderOps) {
        let request = headers.and_then(|headers| headers.request.as_ref());
        let response = headers.and_then(|headers| headers.response.as_ref());
        (
            self.header_ops(&format!("{field}.request"), request, false),
            self.header_ops(&format!("{field}.response"), response, true),
        )
    }

    /// A host by its full name. A short one is of the object's own namespace, not of the client's or the Service's;
    /// one with a dot is left as it is (Istio's `ResolveShortnameToFQDN`).
    pub(super) fn host(&mut self, field: &str, host: &str, wildcard: bool) -> Option<Arc<str>> {
        let lower = host.to_ascii_lowercase();
        let bare = lower.strip_prefix("*.").filter(|_| wildcard).unwrap_or(&lower);
        let label = |label: &str| {
            !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        };
        let address = host.parse::<IpAddr>().is_ok();
        let good = (wildcard && host == "*") || address || bare.split('.').all(label);
        if host.is_empty() || !good {
            let remedy = if host.contains('*') && !wildcard {
                "name one host: a wildcard is not possible here"
            } else {
                "write a name such as reviews, or reviews.shop.svc.cluster.local"
            };
            self.fault(field, &format!("`{host}` is not a host's name"), remedy);
            return None;
        }
        if lower.contains(['.', '*']) || address {
            return Some(lower.into());
        }
        let domain = &self.head.context.mesh.cluster_domain;
        Some(format!("{lower}.{}.svc.{domain}", self.head.namespace).into())
    }

    pub(super) fn export_to(&mut self, listed: Option<&Vec<String>>) -> ExportTo {
        let Some(listed) = listed.filter(|listed| !listed.is_empty()) else { return ExportTo::All };
        if listed.iter().any(|one| one == "*") {
            return ExportTo::All;
        }
        let mut namespaces = Vec::new();
        for (index, one) in listed.iter().enumerate() {
            match one.as_str() {
                "~" if listed.len() == 1 => {}
                "." => namespaces.push(Arc::clone(&self.head.namespace)),
                name if !name.is_empty()
                    && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.')) =>
                {
                    namespaces.push(name.into());
                }
                other => self.fault(
                    &format!("spec.exportTo[{index}]"),
                    &format!("`{other}` is not a namespace"),
                    "write `.`, `*`, a namespace's name, or `~` alone",
                ),
            }
        }
        ExportTo::Namespaces(namespaces)
    }
}

/// `1h30m`, `0.5s`, `25ms`.
pub(super) fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut seconds = 0.0_f64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(digits);
        let letters = after.find(|c: char| !c.is_ascii_alphabetic() && c != 'µ').unwrap_or(after.len());
        let (unit, after) = after.split_at(letters);
        let scale = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        seconds += number.parse::<f64>().ok()? * scale;
        rest = after;
    }
    // Rounded to the nanosecond, so that 0.1s is 100ms.
    (!text.is_empty()).then(|| Duration::try_from_secs_f64((seconds * 1e9).round() / 1e9).ok()).flatten()
}
