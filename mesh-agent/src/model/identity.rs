//! SPIFFE identities as Istio writes them: `spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT`.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Longest trust domain name, bytes (SPIFFE-ID specification, section 2.1).
pub const TRUST_DOMAIN_MAX_BYTES: usize = 255;
/// Longest SPIFFE id, bytes (SPIFFE-ID specification, section 2.3).
pub const SPIFFE_ID_MAX_BYTES: usize = 2048;

/// A workload's identity. Compares by all three parts; a trust domain is lower case (SPIFFE-ID 2.1).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    trust_domain: Arc<str>,
    namespace: Arc<str>,
    service_account: Arc<str>,
}

/// Why a text is not an identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    #[error("`{0}` does not start with spiffe://")]
    Scheme(String),
    #[error("`{0}` is not spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT")]
    Shape(String),
    #[error("`{part}` is not a valid {what}: {rule}")]
    Part { what: &'static str, part: String, rule: &'static str },
}

impl Identity {
    /// Builds an identity from its parts, each checked against its character set.
    pub fn new(trust_domain: &str, namespace: &str, service_account: &str) -> Result<Self, IdentityError> {
        check_trust_domain(trust_domain)?;
        check_segment("namespace", namespace)?;
        check_segment("service account", service_account)?;
        Ok(Self {
            trust_domain: trust_domain.into(),
            namespace: namespace.into(),
            service_account: service_account.into(),
        })
    }

    /// Replaces each part by an equal text that is held elsewhere too.
    pub fn share(&mut self, mut share: impl FnMut(&mut Arc<str>)) {
        share(&mut self.trust_domain);
        share(&mut self.namespace);
        share(&mut self.service_account);
    }

    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    pub fn service_account(&self) -> &str {
        &self.service_account
    }

    /// The form AuthorizationPolicy principals use: no scheme.
    pub fn principal(&self) -> String {
        format!("{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    /// Strict: exactly five parts, no empty segment, no percent sign, query or fragment (CVE-2025-66220's class).
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > SPIFFE_ID_MAX_BYTES {
            return Err(IdentityError::Shape(format!("an id of {} bytes", text.len())));
        }
        let rest = text.strip_prefix("spiffe://").ok_or_else(|| IdentityError::Scheme(text.to_owned()))?;
        let parts: Vec<&str> = rest.split('/').collect();
        match parts.as_slice() {
            [trust_domain, "ns", namespace, "sa", account] => Self::new(trust_domain, namespace, account),
            _ => Err(IdentityError::Shape(text.to_owned())),
        }
    }
}

impl serde::Serialize for Identity {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Identity {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Checks a trust domain name: letters in lower case, digits, dot, dash and underscore, 1 to 255 bytes.
pub fn check_trust_domain(name: &str) -> Result<(), IdentityError> {
    let good = !name.is_empty()
        && name.len() <= TRUST_DOMAIN_MAX_BYTES
        && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_'));
    if good {
        return Ok(());
    }
    Err(IdentityError::Part {
        what: "trust domain",
        part: name.to_owned(),
        rule: "use 1 to 255 of a-z, 0-9, '.', '-' and '_'",
    })
}

fn check_segment(what: &'static str, part: &str) -> Result<(), IdentityError> {
    let good = !part.is_empty()
        && part != "."
        && part != ".."
        && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
    if good {
        return Ok(());
    }
    Err(IdentityError::Part { what, part: part.to_owned(), rule: "use letters, digits, '.', '-' and '_'" })
}

#[cfg(test)]
mod tests;
