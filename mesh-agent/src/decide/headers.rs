//! Header operations of routes (VirtualService `headers`, HTTPRoute header modifiers). Owns: their order and effect.
//! Never: touches what carries the message itself (framing, the connection); `proxy::http`, which calls this, does.

use http::header::{
    CONNECTION, CONTENT_LENGTH, HOST, HeaderMap, HeaderName, HeaderValue, TE, TRAILER, TRANSFER_ENCODING,
    UPGRADE,
};

use crate::model::route::HeaderOps;

/// Fields that say how the message is carried. Set or removed by a route they would give it a second meaning.
const CARRYING: [HeaderName; 6] = [CONNECTION, CONTENT_LENGTH, TE, TRAILER, TRANSFER_ENCODING, UPGRADE];

/// Removes, then sets, then adds, so that a field may be replaced in one go (Envoy's order). Returns the new authority
/// where one of the operations sets Host, which HTTP/2 has no field for.
pub fn apply(ops: &HeaderOps, headers: &mut HeaderMap) -> Option<String> {
    let mut authority = None;
    for name in ops.remove.iter().filter_map(|name| field(name)) {
        headers.remove(name);
    }
    for (name, value) in &ops.set {
        if is_authority(name) {
            authority = Some(value.to_string());
        } else if let (Some(name), Ok(value)) = (field(name), HeaderValue::from_str(value)) {
            headers.insert(name, value);
        }
    }
    for (name, value) in &ops.add {
        if is_authority(name) {
            authority.get_or_insert_with(|| value.to_string());
        } else if let (Some(name), Ok(value)) = (field(name), HeaderValue::from_str(value)) {
            headers.append(name, value);
        }
    }
    authority
}

fn is_authority(name: &str) -> bool {
    name.eq_ignore_ascii_case(":authority") || name.eq_ignore_ascii_case("host")
}

/// A field that an operation may touch. `compile` has refused names that are none.
fn field(name: &str) -> Option<HeaderName> {
    let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
    (name != HOST && !CARRYING.contains(&name)).then_some(name)
}

#[cfg(test)]
mod tests;
