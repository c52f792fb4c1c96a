//! Header operations of routes (VirtualService `headers`, HTTPRoute header modifiers). Owns: their order and effect.
//! Never: touches what carries the message itself (framing, the connection); `proxy::http`, which calls this, does.

use http::header::{
    CONNECTION, CONTENT_LENGTH, HOST, HeaderMap, HeaderName, HeaderValue, TE, TRAILER, TRANSFER_ENCODING,
    UPGRADE,
};

use crate::model::route::{Field, HeaderOps, Variable};

/// Fields that say how the message is carried. Set or removed by a route they would give it a second meaning.
const CARRYING: [HeaderName; 6] = [CONNECTION, CONTENT_LENGTH, TE, TRAILER, TRANSFER_ENCODING, UPGRADE];

/// What variables stand for; none = unknown, or not there.
pub trait Facts {
    fn value(&self, variable: &Variable, edited: &HeaderMap) -> Option<String>;
}

/// Nothing is filled in.
#[derive(Clone, Copy, Debug)]
pub struct NoFacts;

impl Facts for NoFacts {
    fn value(&self, _variable: &Variable, _edited: &HeaderMap) -> Option<String> {
        None
    }
}

/// Removes, then sets, then adds, so that a field may be replaced in one go (Envoy's order). Returns the new authority
/// where one of the operations sets Host, which HTTP/2 has no field for. A value with variables of which nothing is known
/// leaves its field as it is.
pub fn apply(ops: &HeaderOps, headers: &mut HeaderMap, facts: &impl Facts) -> Option<String> {
    let mut authority = None;
    for name in ops.remove.iter().filter_map(|name| field(name)) {
        headers.remove(name);
    }
    for (name, text) in &ops.set {
        let Some(value) = text.fill(|variable| facts.value(variable, headers)) else { continue };
        if is_authority(name) {
            authority = Some(value.into_owned());
        } else if let (Some(name), Ok(value)) = (field(name), HeaderValue::from_str(&value)) {
            headers.insert(name, value);
        }
    }
    for (name, text) in &ops.add {
        let Some(value) = text.fill(|variable| facts.value(variable, headers)) else { continue };
        if is_authority(name) {
            authority.get_or_insert_with(|| value.into_owned());
        } else if let (Some(name), Ok(value)) = (field(name), HeaderValue::from_str(&value)) {
            headers.append(name, value);
        }
    }
    authority
}

/// The value of a field, or of what stands for it (`part` knows those that begin with a colon), cut to its length.
pub fn value_of(
    wanted: &Field,
    headers: &HeaderMap,
    part: impl Fn(&str) -> Option<String>,
) -> Option<String> {
    let one = |name: &str| match name.starts_with(':') {
        true => part(name),
        false => headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned),
    };
    let mut value = one(&wanted.name).or_else(|| one(wanted.otherwise.as_ref()?))?;
    if let Some(length) = wanted.length {
        let end = (0..=length.min(value.len())).rev().find(|at| value.is_char_boundary(*at)).unwrap_or(0);
        value.truncate(end);
    }
    Some(value)
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
