//! What of a request says which endpoint it belongs to (`consistentHash`). Owns: the hash of the key, and the cookie that
//! is made for a client that has none. Called by `proxy::http` before `Roster::pick`.

use std::net::IpAddr;

use http::HeaderMap;
use http::header::COOKIE;

use super::hash::hash;
use crate::decide::route::{RequestView, value};
use crate::model::traffic::HashKey;

/// The outcome for one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keyed {
    /// None = the request has no key and any endpoint will do.
    pub hash: Option<u64>,
    /// A `set-cookie` for the response, which brings the client back to the same endpoint.
    pub set_cookie: Option<String>,
}

/// `random` is where the value of a new cookie comes from.
pub fn keyed(key: &HashKey, request: &RequestView<'_>, source: IpAddr, random: u64) -> Keyed {
    let of = |text: &str| Keyed { hash: Some(hash(text.as_bytes())), set_cookie: None };
    match key {
        HashKey::Header(name) => value(request.headers, name).map(|text| of(&text)).unwrap_or_default(),
        HashKey::SourceAddress => Keyed { hash: Some(of_address(source)), set_cookie: None },
        HashKey::QueryParameter(name) => query(request.query, name).map(of).unwrap_or_default(),
        HashKey::Cookie { name, path, ttl } => match (cookie(request.headers, name), ttl) {
            (Some(text), _) => of(text),
            // Without a ttl the application is to set the cookie.
            (None, None) => Keyed::default(),
            (None, Some(ttl)) => {
                let text = format!("{random:016x}");
                let age = if ttl.is_zero() { String::new() } else { format!("; Max-Age={}", ttl.as_secs()) };
                let path = path.as_deref().map_or_else(String::new, |path| format!("; Path={path}"));
                let set_cookie = Some(format!("{name}={text}{age}{path}; HttpOnly"));
                Keyed { set_cookie, ..of(&text) }
            }
        },
    }
}

/// Of a connection, whose address is all the key that it can have.
pub fn of_connection(key: &HashKey, source: IpAddr) -> Option<u64> {
    (*key == HashKey::SourceAddress).then(|| of_address(source))
}

fn of_address(source: IpAddr) -> u64 {
    hash(source.to_canonical().to_string().as_bytes())
}

fn query<'q>(query: Option<&'q str>, name: &str) -> Option<&'q str> {
    let pairs = query?.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.into_iter().find(|(key, _)| *key == name).map(|(_, text)| text)
}

/// RFC 6265, 4.2: `name=value; name=value`, in quotes or not. HTTP/2 may split the list over several fields.
fn cookie<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    let lines = headers.get_all(COOKIE).iter().filter_map(|line| line.to_str().ok());
    let pairs = lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
    let found = pairs.into_iter().find(|(key, text)| *key == name && !text.is_empty());
    found.map(|(_, text)| text.trim_matches('"'))
}

#[cfg(test)]
mod tests;
