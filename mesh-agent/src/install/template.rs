//! Fills `${name}` in a template, for a cluster or for Helm. Called by `install`.

use super::values::{MESH_CONFIG, Values, all};

/// What a name is replaced by.
pub(super) enum Form<'a> {
    /// Its value.
    Plain(&'a Values),
    /// Helm's expression for it.
    Helm,
}

/// The template with every name replaced. A value of several lines keeps the indentation of its place.
pub(super) fn fill(text: &str, form: &Form<'_>) -> String {
    let mut out = String::with_capacity(text.len());
    for line in text.lines() {
        out.push_str(&fill_line(line, form));
        out.push('\n');
    }
    out
}

fn fill_line(line: &str, form: &Form<'_>) -> String {
    let indent = line.len() - line.trim_start().len();
    let mut out = String::with_capacity(line.len());
    let mut rest = line;
    while let Some((before, name, after)) = next(rest) {
        out.push_str(before);
        match form {
            Form::Plain(values) => {
                let value = values.get(name).trim_end();
                out.push_str(&value.replace('\n', &format!("\n{}", " ".repeat(indent))));
            }
            Form::Helm if name == MESH_CONFIG => {
                // Its own line: Helm's `nindent` brings the indentation.
                out =
                    format!("{}{{{{- toYaml .Values.meshConfig | nindent {indent} }}}}", " ".repeat(indent));
            }
            Form::Helm => out.push_str(&expression(name)),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

/// Splits at the first `${name}`.
fn next(text: &str) -> Option<(&str, &str, &str)> {
    let (before, rest) = text.split_once("${")?;
    let (name, after) = rest.split_once('}')?;
    Some((before, name, after))
}

fn expression(name: &str) -> String {
    match all().find(|known| known.key == name).and_then(|known| known.chart) {
        Some(chart) => format!("{{{{ .Values.{chart} }}}}"),
        None => "{{ .Release.Namespace }}".to_owned(),
    }
}

/// Every name that a template uses.
#[cfg(test)]
pub(super) fn names(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some((_, name, after)) = next(rest) {
        found.push(name);
        rest = after;
    }
    found
}
