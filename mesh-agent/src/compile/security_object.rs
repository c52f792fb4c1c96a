//! What both security kinds share: the version check, the refusal of nulls and unknown fields, the selector, and
//! the widest scope that a broken object may have meant.

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::values::{Fault, fault};
use super::{Diagnostic, Head, typed};
use crate::api::istio::security::{self, WorkloadSelector};
use crate::model::Labels;

/// Checks what every security object must keep; what is found makes it fail closed.
pub(super) fn check<T: DeserializeOwned>(head: &Head<'_>, value: &Value) -> Vec<Fault> {
    let mut faults = Vec::new();
    if head.group != security::GROUP || !security::VERSIONS.contains(&head.version.as_str()) {
        faults.push(fault(
            "apiVersion",
            format!("`{}` is not known for this kind", head.api_version),
            format!("use {}/{}", security::GROUP, security::VERSIONS.join(" or ")),
        ));
    }
    if head.name.is_empty() {
        faults.push(fault("metadata.name", "is missing", "name the object"));
    }
    if let Some(spec) = value.get("spec") {
        nulls("spec", spec, &mut faults);
    }
    for path in typed::unknown::<T>(value) {
        // What only a person or a tool reads cannot change the meaning.
        if path.starts_with("metadata.") {
            continue;
        }
        faults.push(fault(
            &path,
            "is not a field of this kind",
            "check its spelling and indentation, or remove it",
        ));
    }
    faults
}

/// The object with `spec: {}` where it has none, which Istio takes for the same, and without its status, which
/// must not change what it means.
pub(super) fn with_spec(value: &Value) -> Value {
    let mut value = value.clone();
    if let Some(object) = value.as_object_mut() {
        object.remove("status");
        object.entry("spec").or_insert_with(|| Value::Object(serde_json::Map::new()));
    }
    value
}

/// A null reads as «absent», which for `from:` would be «anybody»: more likely the file is not finished.
fn nulls(path: &str, value: &Value, faults: &mut Vec<Fault>) {
    match value {
        Value::Null => faults.push(fault(path, "has no value", "give it a value or remove the field")),
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                nulls(&format!("{path}[{index}]"), item, faults);
            }
        }
        Value::Object(fields) => {
            for (name, field) in fields {
                nulls(&format!("{path}.{name}"), field, faults);
            }
        }
        Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// `selector.matchLabels`; an empty one selects everything, as in Istio.
pub(super) fn selector(selector: Option<&WorkloadSelector>, faults: &mut Vec<Fault>) -> Option<Labels> {
    let labels = selector?.match_labels.as_ref()?;
    for (key, value) in labels {
        if key.is_empty() || key.contains('*') || value.contains('*') {
            faults.push(fault(
                &format!("spec.selector.matchLabels.{key}"),
                "labels are compared as they are, without wildcards",
                "write the label's exact key and value",
            ));
        }
    }
    (!labels.is_empty()).then(|| labels.clone())
}

/// The selector of an object that could not be read, if that part of it is sound; `Err` if it has one that is not.
pub(super) fn salvage_selector(value: &Value) -> Result<Option<Labels>, ()> {
    let Some(selector) = value.pointer("/spec/selector") else { return Ok(None) };
    let fields = selector.as_object().ok_or(())?;
    if fields.keys().any(|key| key != "matchLabels") {
        return Err(());
    }
    let Some(labels) = fields.get("matchLabels") else { return Ok(None) };
    let labels: Labels = labels
        .as_object()
        .ok_or(())?
        .iter()
        .map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
        .collect::<Option<_>>()
        .ok_or(())?;
    if labels.iter().any(|(key, value)| key.contains('*') || value.contains('*')) {
        return Err(());
    }
    Ok((!labels.is_empty()).then_some(labels))
}

/// Puts the faults among the diagnostics and gives the one line that a verdict will show.
pub(super) fn report(
    head: &Head<'_>,
    faults: &[Fault],
    consequence: &str,
    out: &mut Vec<Diagnostic>,
) -> String {
    for one in faults {
        let effect = format!("{consequence} until mended");
        out.push(Diagnostic { effect, ..head.error(&one.field, &one.message, &one.remedy) });
    }
    faults.first().map_or_else(String::new, |first| format!("{}: {}", first.field, first.message))
}
