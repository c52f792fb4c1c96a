//! The mesh-wide settings as `install -f FILE` takes them: an IstioOperator, whose `spec.meshConfig` is meant, or the
//! meshConfig itself. What it asks for and this version does not do is said, never dropped in silence.
//! Called by `cli::install`.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::model::identity::check_trust_domain;

/// Fields of Istio's meshConfig that are read by agents, and what is in force of them.
const FIELDS: [(&str, Force); 9] = [
    ("trustDomain", Force::All),
    ("rootNamespace", Force::All),
    ("accessLogFile", Force::Only(&["", "/dev/stdout", "/dev/stderr"])),
    ("defaultProviders", Force::Nothing),
    ("extensionProviders", Force::Nothing),
    ("outboundTrafficPolicy", Force::Field("mode", "ALLOW_ANY")),
    ("defaultHttpRetryPolicy", Force::All),
    ("pathNormalization", Force::All),
    ("localityLbSetting", Force::All),
];

/// How much of a field this version does.
#[derive(Clone, Copy, Debug)]
enum Force {
    All,
    Nothing,
    /// These values.
    Only(&'static [&'static str]),
    /// Only with this inner field at this value.
    Field(&'static str, &'static str),
}

/// What a file asks for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MeshConfig {
    fields: Map<String, Value>,
    /// What of it has no effect, a sentence each.
    pub warnings: Vec<String>,
}

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MeshConfigError {
    #[error("not YAML: {0}")]
    Syntax(String),
    #[error("holds {0} documents; it should be one IstioOperator or one meshConfig")]
    Documents(usize),
    #[error(
        "kind: `{0}` is neither an IstioOperator nor a meshConfig; name the file that holds spec.meshConfig"
    )]
    Kind(String),
    #[error("{field}: {problem}")]
    Field { field: String, problem: String },
}

impl MeshConfig {
    pub fn parse(text: &str) -> Result<Self, MeshConfigError> {
        let documents: Vec<Value> =
            serde_saphyr::from_multiple(text).map_err(|error| MeshConfigError::Syntax(error.to_string()))?;
        let [document] = documents.as_slice() else {
            return Err(MeshConfigError::Documents(documents.len()));
        };
        let mut this = Self::default();
        let (at, fields) = this.find(document)?;
        for (name, value) in &fields {
            this.judge(&at, name, value);
        }
        if let Some(name) = fields.get("trustDomain") {
            let problem = |problem| MeshConfigError::Field { field: format!("{at}trustDomain"), problem };
            let name = name.as_str().ok_or_else(|| problem("is no text".to_owned()))?;
            check_trust_domain(name).map_err(|error| problem(error.to_string()))?;
        }
        this.fields = fields;
        Ok(this)
    }

    /// Where the settings are in the document, and the settings.
    fn find(&mut self, document: &Value) -> Result<(String, Map<String, Value>), MeshConfigError> {
        let object = |field: &str, value: Option<&Value>| match value {
            None | Some(Value::Null) => Ok(Map::new()),
            Some(Value::Object(fields)) => Ok(fields.clone()),
            Some(_) => {
                Err(MeshConfigError::Field { field: field.to_owned(), problem: "is no map".to_owned() })
            }
        };
        match document.get("kind").and_then(Value::as_str) {
            None => Ok((String::new(), object("document", Some(document))?)),
            Some("IstioOperator") => {
                let spec = object("spec", document.get("spec"))?;
                for name in spec.keys().filter(|name| *name != "meshConfig") {
                    self.warnings.push(format!(
                        "spec.{name}: is for Istio's own installer and has no effect; see `mesh-agent install --help` for what can be set"
                    ));
                }
                Ok(("spec.meshConfig.".to_owned(), object("spec.meshConfig", spec.get("meshConfig"))?))
            }
            Some(other) => Err(MeshConfigError::Kind(other.to_owned())),
        }
    }

    fn judge(&mut self, at: &str, name: &str, value: &Value) {
        let force = FIELDS.iter().find(|(known, _)| *known == name).map(|(_, force)| *force);
        let later = "is kept, but this version does not have the feature yet: it has no effect";
        let note = match force {
            None => "is not read by this version and has no effect; check its spelling".to_owned(),
            Some(Force::All) => return,
            Some(Force::Nothing) => later.to_owned(),
            Some(Force::Only(values)) => match value.as_str() {
                Some(text) if values.contains(&text) => return,
                _ => "files are not written; use /dev/stdout, which is the agent's log".to_owned(),
            },
            Some(Force::Field(inner, wanted)) => match value.get(inner).and_then(Value::as_str) {
                None => return,
                Some(text) if text == wanted => return,
                Some(_) => later.to_owned(),
            },
        };
        self.warnings.push(format!("{at}{name}: {note}"));
    }

    pub fn text(&self, field: &str) -> Option<&str> {
        self.fields.get(field).and_then(Value::as_str)
    }

    pub fn set(&mut self, field: &str, value: &str) {
        self.fields.insert(field.to_owned(), Value::String(value.to_owned()));
    }

    /// The text of the ConfigMap's key.
    pub fn yaml(&self) -> Result<String, MeshConfigError> {
        if self.fields.is_empty() {
            return Ok("{}\n".to_owned());
        }
        yaml(&self.fields).map_err(|error| MeshConfigError::Syntax(error.to_string()))
    }
}

/// Block style YAML.
pub(super) fn yaml<T: Serialize>(value: &T) -> Result<String, serde_json::Error> {
    let text = serde_saphyr::to_string(value).map_err(serde::ser::Error::custom)?;
    Ok(if text.ends_with('\n') { text } else { text + "\n" })
}
