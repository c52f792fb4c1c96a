//! Istio's `meshConfig` into the mesh-wide settings: from the ConfigMap `nodemesh`, or from an IstioOperator as
//! `install -f` reads it. One that does not fit is refused as a whole, so that a slip in one field does not quietly
//! undo another. [`settings`] says of each field whether it is in force. Called by `compile::document` and, for what
//! is in force, by whoever shows a status.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::Value;

use super::pod::named;
use super::{
    Compiled, Diagnostic, Head, Kind, MeshFacts, MeshSettings, Object, ObjectKey, Severity, traffic, typed,
};
use crate::api::ConfigMap;
use crate::api::istio::install;
use crate::api::istio::mesh::{MeshConfig, OutboundMode};
use crate::api::names::{DENIED_KEY, MESH_CONFIG_KEY, MESH_CONFIG_MAP, SYSTEM_NAMESPACE};
use crate::model::Identity;
use crate::model::identity::check_trust_domain;

/// Where Istio writes its access log when it is on. The agent's own log stands for both.
pub const STANDARD_OUTPUTS: [&str; 2] = ["/dev/stdout", "/dev/stderr"];

/// Providers that Istio knows without a definition.
const BUILT_IN_PROVIDERS: [&str; 3] = ["prometheus", "envoy", "stackdriver"];

/// One field of the mesh-wide settings, as people are told about it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Setting {
    /// Istio's name of the field.
    pub field: &'static str,
    /// In JSON.
    pub value: String,
    pub in_force: bool,
    /// Why it is not in force and what to do.
    pub note: String,
}

/// The one key under which mesh-wide settings are known, wherever they come from.
pub fn key() -> ObjectKey {
    ObjectKey { kind: Kind::MeshConfig, namespace: SYSTEM_NAMESPACE.into(), name: MESH_CONFIG_MAP.into() }
}

/// ConfigMap `nodemesh`: YAML in its key `mesh`.
pub(super) fn config_map(head: &Head<'_>, value: &Value, out: &mut Compiled) {
    typed::warn_unknown::<ConfigMap>(head, value, &mut out.diagnostics);
    let field = format!("data.{MESH_CONFIG_KEY}");
    let text = |key: &str| value.pointer(&format!("/data/{key}")).and_then(Value::as_str);
    let config = match super::yaml(text(MESH_CONFIG_KEY).unwrap_or_default()) {
        Ok(config) => mesh_config(head, &field, &config, &mut out.diagnostics),
        Err((line, message)) => {
            let at = line.map_or_else(String::new, |line| format!(" in line {line}"));
            out.diagnostics.push(head.error(
                &field,
                &format!("is not YAML{at}: {message}"),
                "mend the syntax; indentation and quotes are the usual cause",
            ));
            None
        }
    };
    let (denied, faults) = super::denied::parse(text(DENIED_KEY).unwrap_or_default());
    for (line, fault) in faults {
        out.diagnostics.push(head.error(
            &format!("data.{DENIED_KEY}"),
            &format!("line {line} denies nobody: {fault}"),
            "write one SPIFFE id a line, such as spiffe://cluster.local/ns/shop/sa/web",
        ));
    }
    put(head, config, denied, out);
}

/// Settings that were refused leave those before them in force; the deny list beside them holds at once.
fn put(head: &Head<'_>, config: Option<MeshConfig>, denied: BTreeSet<Identity>, out: &mut Compiled) {
    if config.is_none() {
        for one in out.diagnostics.iter_mut().filter(|one| one.severity == Severity::Error) {
            "the settings before stay in force".clone_into(&mut one.effect);
        }
    }
    let defaults = config.as_ref().map(|config| traffic::defaults(head, config).0).unwrap_or_default();
    let facts = MeshFacts { config, defaults: Arc::new(defaults), denied: Arc::new(denied) };
    out.objects.push((key(), Object::MeshConfig(Box::new(facts))));
}

/// IstioOperator: `spec.meshConfig`. What else it holds is for Istio's own installer.
pub(super) fn operator(head: &Head<'_>, value: &Value, out: &mut Compiled) {
    if !install::VERSIONS.contains(&head.version.as_str()) {
        return out.diagnostics.push(head.error(
            "apiVersion",
            &format!("`{}` is not known for this kind", head.api_version),
            "use install.istio.io/v1alpha1",
        ));
    }
    if !named(head, out) {
        return;
    }
    let empty = serde_json::Map::new();
    let spec = value.get("spec").and_then(Value::as_object).unwrap_or(&empty);
    for field in spec.keys().filter(|field| *field != "meshConfig") {
        out.diagnostics.push(head.warning(
            &format!("spec.{field}"),
            "is for Istio's own installer and has no effect",
            "remove it, or leave it for Istio",
        ));
    }
    let config = spec.get("meshConfig").unwrap_or(&Value::Null);
    let config = mesh_config(head, "spec.meshConfig", config, &mut out.diagnostics);
    put(head, config, BTreeSet::new(), out);
}

/// The settings that `value`, found at `at` of the document, asks for; none if it is refused.
pub fn mesh_config(
    head: &Head<'_>,
    at: &str,
    value: &Value,
    found: &mut Vec<Diagnostic>,
) -> Option<MeshConfig> {
    // A key with nothing under it is YAML's null: no settings.
    if value.is_null() {
        return Some(MeshConfig::default());
    }
    let config: MeshConfig = match serde_path_to_error::deserialize(value) {
        Ok(config) => config,
        Err(error) => {
            let path = format!("{at}.{}", error.path());
            found.push(head.error(&path, &error.inner().to_string(), "write the field as Istio defines it"));
            return None;
        }
    };
    for path in typed::unknown::<MeshConfig>(value) {
        found.push(head.warning(
            &format!("{at}.{path}"),
            "is not read by this version and has no effect",
            "check its spelling; if Istio has such a field, do not rely on it here",
        ));
    }
    let faults = check(head, &config);
    for (field, message, remedy) in &faults {
        found.push(head.error(&format!("{at}.{field}"), message, remedy));
    }
    providers(head, at, &config, found);
    faults.is_empty().then_some(config)
}

/// Field, message, remedy.
type Faults = Vec<(String, String, String)>;

fn check(head: &Head<'_>, config: &MeshConfig) -> Faults {
    let mut faults = Faults::new();
    if let Some(error) = config.trust_domain.as_deref().and_then(|name| check_trust_domain(name).err()) {
        faults.push(("trustDomain".to_owned(), error.to_string(), "use e.g. `cluster.local`".to_owned()));
    }
    if let Some(name) = config.root_namespace.as_deref() {
        let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if name.is_empty() || !name.bytes().all(good) {
            let message = format!("`{name}` is not the name of a namespace");
            faults.push(("rootNamespace".to_owned(), message, "use e.g. `istio-system`".to_owned()));
        }
    }
    for (index, one) in config.extension_providers.iter().flatten().enumerate() {
        let field = format!("extensionProviders[{index}]");
        let before = config.extension_providers.iter().flatten().take(index);
        if before.clone().any(|other| other.name == one.name) {
            let message = format!("`{}` is defined twice", one.name);
            faults.push((format!("{field}.name"), message, "keep one of the two".to_owned()));
        }
        if one.provider.len() != 1 {
            let message = format!("`{}` has {} definitions instead of one", one.name, one.provider.len());
            faults.push((field, message, "write exactly one, such as `zipkin:`".to_owned()));
        }
    }
    let wrong = traffic::defaults(head, config).1;
    faults.extend(wrong.into_iter().map(|one| (one.field, one.message, one.remedy)));
    faults
}

/// A default provider that nobody defines would never do anything.
fn providers(head: &Head<'_>, at: &str, config: &MeshConfig, found: &mut Vec<Diagnostic>) {
    let Some(defaults) = &config.default_providers else { return };
    let lists = [
        ("tracing", &defaults.tracing),
        ("metrics", &defaults.metrics),
        ("accessLogging", &defaults.access_logging),
    ];
    for (list, names) in lists {
        for (index, name) in names.iter().enumerate() {
            let known = BUILT_IN_PROVIDERS.contains(&name.as_str())
                || config.extension_providers.iter().flatten().any(|one| one.name == *name);
            if !known {
                found.push(head.warning(
                    &format!("{at}.defaultProviders.{list}[{index}]"),
                    &format!("no provider is called `{name}`"),
                    "define it under extensionProviders, or correct the name",
                ));
            }
        }
    }
}

/// Whether connections shall be logged; none where the settings do not say.
pub fn access_log(config: &MeshConfig) -> Option<bool> {
    match config.access_log_file.as_deref()? {
        "" => Some(false),
        file if STANDARD_OUTPUTS.contains(&file) => Some(true),
        _ => None,
    }
}

/// What is set, in Istio's order, and whether it is in force under the settings that the agent runs with.
pub fn settings(config: &MeshConfig, mesh: &MeshSettings) -> Vec<Setting> {
    let Ok(Value::Object(fields)) = serde_json::to_value(config) else { return Vec::new() };
    let name = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut list = Vec::new();
    for field in FIELDS {
        let Some(value) = fields.get(field) else { continue };
        let note = match field {
            "trustDomain" => at_start(&name(value), &mesh.trust_domain),
            "rootNamespace" => at_start(&name(value), &mesh.root_namespace),
            "accessLogFile" => match access_log(config) {
                Some(_) => None,
                None => Some("files are not written; use /dev/stdout, which is the agent's log".to_owned()),
            },
            "outboundTrafficPolicy" => {
                let any = config.outbound_traffic_policy.as_ref().map(|policy| policy.mode);
                (any != Some(OutboundMode::AllowAny)).then(|| NOT_BUILT.to_owned())
            }
            "pathNormalization" | "defaultHttpRetryPolicy" | "localityLbSetting" => None,
            _ => Some(NOT_BUILT.to_owned()),
        };
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        list.push(Setting { field, value, in_force: note.is_none(), note: note.unwrap_or_default() });
    }
    list
}

const FIELDS: [&str; 9] = [
    "trustDomain",
    "rootNamespace",
    "accessLogFile",
    "defaultProviders",
    "extensionProviders",
    "outboundTrafficPolicy",
    "defaultHttpRetryPolicy",
    "pathNormalization",
    "localityLbSetting",
];

const NOT_BUILT: &str = "this version does not have the feature yet";

fn at_start(wanted: &str, running: &str) -> Option<String> {
    (wanted != running)
        .then(|| format!("the agent runs with `{running}`; restart it, unless a setting of its own says so"))
}

#[cfg(test)]
mod tests;
