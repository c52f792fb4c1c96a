//! Headers that belong to a hop, and those that only the mesh may set. Owns: what is taken away, what is added.
//! Never: decides where a request goes. Called by `proxy::http`.

use http::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HOST, HeaderName, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderValue};

use crate::model::Identity;

/// Names the client by the certificate it proved (Envoy's format): only an agent that verified it may say so.
pub const XFCC: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
pub const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
/// Our own between agents; nobody else's word counts.
const OWN_PREFIX: &str = "nodemesh-";

/// RFC 9110, 7.6.1, with the older names of the same things.
const OF_A_HOP: [HeaderName; 8] = [
    KEEP_ALIVE,
    PROXY_CONNECTION,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TRANSFER_ENCODING,
    UPGRADE,
    HTTP2_SETTINGS,
    EXPECT,
];

/// Whether a comma-separated list holds a word, in any case.
pub fn lists(headers: &HeaderMap, name: &HeaderName, word: &str) -> bool {
    headers.get_all(name).iter().any(|value| words(value).any(|found| found.eq_ignore_ascii_case(word)))
}

fn words(value: &HeaderValue) -> impl Iterator<Item = &str> {
    value.to_str().unwrap_or_default().split(',').map(str::trim).filter(|word| !word.is_empty())
}

/// What a request or an answer asks to switch to; none where it does not. HTTP/2 is never among it: requests that an
/// application got behind our back would be nobody's to judge (h2c smuggling).
pub fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    if !headers.contains_key(UPGRADE) || !lists(headers, &CONNECTION, "upgrade") {
        return None;
    }
    let all = || headers.get_all(UPGRADE).iter().flat_map(words);
    let is_http2 = |word: &str| {
        let name = word.split('/').next().unwrap_or_default().trim();
        ["h2c", "h2", "http"].iter().any(|http| name.eq_ignore_ascii_case(http))
    };
    let kept: Vec<&str> = all().filter(|word| !is_http2(word)).collect();
    if kept.is_empty() { None } else { HeaderValue::from_str(&kept.join(", ")).ok() }
}

/// Takes away what is meant for this hop only, of a request or an answer. `TE: trailers` stays: gRPC wants to see it,
/// and this proxy does pass trailers on. `Expect` goes because hyper answers it when the body is first asked for.
pub fn strip_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let nominated: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .flat_map(words)
            .filter_map(|word| HeaderName::from_bytes(word.as_bytes()).ok())
            // Framing and routing are ours to keep: a client must not have us forget them.
            .filter(|name| *name != HOST && *name != CONTENT_LENGTH && *name != TE)
            .collect();
        headers.remove(CONNECTION);
        for name in nominated {
            headers.remove(name);
        }
    }
    for name in &OF_A_HOP {
        headers.remove(name);
    }
    if let Some(value) = headers.get(TE)
        && value != "trailers"
    {
        if lists(headers, &TE, "trailers") {
            headers.insert(TE, HeaderValue::from_static("trailers"));
        } else {
            headers.remove(TE);
        }
    }
}

/// Takes away what a client might claim of itself and completes what every request of the mesh has. `id` is 128
/// random bits. X-Forwarded-For stays as it is: the application sees its client's true address, so this is no hop.
pub fn vouch(headers: &mut HeaderMap, peer: Option<&HeaderValue>, id: impl FnOnce() -> [u64; 2]) {
    match peer {
        Some(peer) => drop(headers.insert(XFCC, peer.clone())),
        None => drop(headers.remove(XFCC)),
    }
    let own: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with(OWN_PREFIX)).cloned().collect();
    for name in own {
        headers.remove(name);
    }
    if !headers.contains_key(FORWARDED_PROTO) {
        headers.insert(FORWARDED_PROTO, HeaderValue::from_static("http"));
    }
    if !headers.contains_key(REQUEST_ID) {
        headers.insert(REQUEST_ID, request_id(id()));
    }
}

/// A version 4 UUID (RFC 9562, 5.4) of these bits.
fn request_id([high, low]: [u64; 2]) -> HeaderValue {
    let high = (high & !0xf000) | 0x4000;
    let low = (low & !(0b11 << 62)) | (0b10 << 62);
    let mut text = [b'-'; 36];
    let bits = u128::from(high) << 64 | u128::from(low);
    let mut shift = 128;
    for (at, place) in text.iter_mut().enumerate() {
        if matches!(at, 8 | 13 | 18 | 23) {
            continue;
        }
        shift -= 4;
        *place = b"0123456789abcdef"[((bits >> shift) & 15) as usize];
    }
    HeaderValue::from_bytes(&text).unwrap_or_else(|_never| HeaderValue::from_static("-"))
}

/// Who calls whom, as the callee's application may read it. None where a name cannot be a header's value.
pub fn client_cert(by: &Identity, uri: &Identity) -> Option<HeaderValue> {
    HeaderValue::from_str(&format!("By={by};URI={uri}")).ok()
}

/// A gRPC request, whose refusals are told by trailers (gRPC over HTTP/2: `application/grpc`, `+proto`, `;...`).
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.as_bytes().strip_prefix(b"application/grpc"))
        .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

#[cfg(test)]
mod tests;
