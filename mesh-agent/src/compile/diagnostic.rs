//! What is wrong with an object, in the words its author needs.

use std::fmt;

/// How much it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// For the curious: nothing is lost.
    Info,
    /// The object is in force, but something in it has no effect.
    Warning,
    /// The object is refused, or denies in its scope.
    Error,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
pub struct Diagnostic {
    pub severity: Severity,
    /// `KIND NAMESPACE/NAME`.
    pub object: String,
    /// `FILE:DOCUMENT`, documents counted from 1.
    pub source: String,
    /// Path in the object, `spec.rules[0].from`; empty for the object or file as a whole.
    pub field: String,
    pub message: String,
    /// What follows from it, where that is not plain from the severity.
    pub effect: String,
    pub remedy: String,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Info => "info",
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        write!(f, "{severity}: {}: {}: ", self.source, self.object)?;
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        write!(f, "{}; ", self.message)?;
        if !self.effect.is_empty() {
            write!(f, "{}; ", self.effect)?;
        }
        f.write_str(&self.remedy)
    }
}
