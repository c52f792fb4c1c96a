//! What a request must be before anybody looks at what it wants: one meaning, whoever reads it. hyper refuses by itself
//! what its parser cannot read (obsolete line folding, bare CR, NUL, two different lengths, a coding that is not
//! chunked last, a coding in HTTP/1.0), takes a length away where there is a coding too, and closes after it.
//! Owns: the rest. Never: changes a request. Called by `proxy::http::pipeline`.

use http::header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::uri::Authority;
use http::{HeaderMap, Method, Uri, Version};

/// Longest request target, bytes.
pub const TARGET_MAX_BYTES: usize = 8 * 1024;
/// Header fields of one request.
pub const HEADER_FIELDS_MAX: usize = 100;
/// All header fields of one request together, bytes.
pub const HEADER_LIST_MAX_BYTES: usize = 64 * 1024;

/// Why a request is refused unread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("HTTP/1.1 wants exactly one Host (RFC 9112, 3.2)")]
    Host,
    #[error("the Host is not the target's authority")]
    TwoHosts,
    #[error("the authority is no host and port")]
    Authority,
    #[error("the method is not in capitals")]
    Method,
    #[error("CONNECT is not for an application's server")]
    Connect,
    #[error("the target is longer than 8 KiB")]
    TargetLength,
    #[error("the target is no path")]
    Target,
    #[error("a transfer coding other than chunked")]
    Coding,
    #[error("more than one length")]
    Length,
    #[error("more than 100 header fields, or more than 64 KiB of them")]
    Headers,
}

impl Malformed {
    /// RFC 9110, 15.5 and 15.6; RFC 6585, 5.
    pub fn status(self) -> u16 {
        match self {
            Self::TargetLength => 414,
            Self::Headers => 431,
            Self::Coding => 501,
            Self::Connect => 405,
            _ => 400,
        }
    }
}

/// Checks a request's head; gives its authority where it has one (HTTP/1.0 may have none).
pub fn head(
    method: &Method,
    uri: &Uri,
    version: Version,
    headers: &HeaderMap,
) -> Result<Option<Authority>, Malformed> {
    if method == Method::CONNECT {
        return Err(Malformed::Connect);
    }
    if method.as_str().bytes().any(|byte| byte.is_ascii_lowercase()) {
        return Err(Malformed::Method);
    }
    let target = uri.path_and_query().map_or("", |path| path.as_str());
    if target.len() > TARGET_MAX_BYTES {
        return Err(Malformed::TargetLength);
    }
    let of_server = target == "*" && method == Method::OPTIONS;
    if !of_server && !target.starts_with('/') {
        return Err(Malformed::Target);
    }
    size(headers)?;
    framing(headers)?;
    authority(uri, version, headers)
}

/// HTTP/2's engine counts bytes, not fields.
fn size(headers: &HeaderMap) -> Result<(), Malformed> {
    // What HTTP/2 counts too (RFC 9113, 6.5.2): 32 bytes for each field beside its text.
    const OVERHEAD: usize = 32;
    if headers.len() > HEADER_FIELDS_MAX {
        return Err(Malformed::Headers);
    }
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + OVERHEAD).sum();
    if bytes > HEADER_LIST_MAX_BYTES { Err(Malformed::Headers) } else { Ok(()) }
}

fn framing(headers: &HeaderMap) -> Result<(), Malformed> {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next()
        && (codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked"))
    {
        return Err(Malformed::Coding);
    }
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    if lengths.next().is_some() && (lengths.next().is_some() || headers.contains_key(TRANSFER_ENCODING)) {
        return Err(Malformed::Length);
    }
    Ok(())
}

fn authority(uri: &Uri, version: Version, headers: &HeaderMap) -> Result<Option<Authority>, Malformed> {
    let mut hosts = headers.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(Malformed::Host);
    }
    let host = match host {
        Some(host) if host.is_empty() && version < Version::HTTP_2 && uri.authority().is_none() => None,
        Some(host) => Some(Authority::try_from(host.as_bytes()).map_err(|_bad| Malformed::Authority)?),
        None => None,
    };
    if version == Version::HTTP_11 && !headers.contains_key(HOST) {
        return Err(Malformed::Host);
    }
    let authority = match (uri.authority(), host) {
        // Absolute form and HTTP/2. RFC 9112, 3.2.2 has the Host ignored; two answers to one question are an attack.
        (Some(of_target), Some(host)) if *of_target != host => return Err(Malformed::TwoHosts),
        (Some(of_target), _) => Some(of_target.clone()),
        (None, host) => host,
    };
    match authority {
        Some(authority) if authority.as_str().contains('@') || bad_port(&authority) => {
            Err(Malformed::Authority)
        }
        authority => Ok(authority),
    }
}

/// `host:` and `host:99999` parse as authorities and name no port.
fn bad_port(authority: &Authority) -> bool {
    let after = authority.as_str().strip_prefix(authority.host()).unwrap_or_default();
    !after.is_empty() && authority.port_u16().is_none_or(|port| port == 0)
}

#[cfg(test)]
mod tests;
