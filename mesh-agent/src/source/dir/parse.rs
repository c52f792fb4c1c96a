//! A file's text into compiled objects, document by document.
//! Owns: the split at `---`, YAML errors with the file's line, two documents of one object, and what an unreadable
//! document is taken for when nothing better is known. Called by `load`.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::compile::{
    self, Compiled, Context, Diagnostic, MeshSettings, Object, ObjectKey, Origin, Severity,
};

/// What a file says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Content {
    /// With the document's number, counted from 1.
    pub(super) objects: BTreeMap<ObjectKey, (usize, Object)>,
    pub(super) diagnostics: Vec<Diagnostic>,
    /// A document was not even YAML.
    pub(super) unreadable: bool,
    /// There was anything but comments.
    pub(super) documents: usize,
}

impl Content {
    /// Nothing in it is refused.
    pub(super) fn sound(&self) -> bool {
        !self.diagnostics.iter().any(|found| found.severity == Severity::Error)
    }

    fn add(&mut self, source: &str, document: usize, compiled: Compiled) {
        self.diagnostics.extend(compiled.diagnostics);
        for (key, object) in compiled.objects {
            let Some((first, kept)) = self.objects.get_mut(&key) else {
                self.objects.insert(key, (document, object));
                continue;
            };
            self.diagnostics.push(Diagnostic {
                severity: Severity::Error,
                object: key.to_string(),
                source: source.to_owned(),
                field: "metadata.name".to_owned(),
                message: format!("the same object is also document {first} of this file"),
                effect: String::new(),
                remedy: "keep one of the two".to_owned(),
            });
            if *kept != object {
                *kept = compile::ambiguous(kept, "the object is written twice in one file");
            }
        }
    }
}

/// Reads a whole file. With `salvage`, a document that is not YAML but names a security kind becomes one that fails
/// closed: used when the agent starts and so knows no earlier state that could stay in force.
pub(super) fn file(mesh: &MeshSettings, name: &str, text: &str, salvage: bool) -> Content {
    let mut content = Content::default();
    for (line, chunk) in chunks(text) {
        if blank(chunk) {
            continue;
        }
        content.documents += 1;
        let number = content.documents;
        let source = format!("{name}:{number}");
        let context = Context { mesh, source: &source, origin: Origin::File };
        match compile::yaml(chunk) {
            Ok(Value::Null) => {}
            Ok(value) => content.add(&source, number, compile::document(&context, &value)),
            Err((at, message)) => {
                content.unreadable = true;
                content.diagnostics.push(Diagnostic {
                    severity: Severity::Error,
                    object: "file".to_owned(),
                    source: source.clone(),
                    field: at.map_or_else(String::new, |at| format!("line {}", at + line)),
                    message: format!("is not YAML: {message}"),
                    effect: String::new(),
                    remedy: "mend the syntax; indentation and quotes are the usual cause".to_owned(),
                });
                if salvage {
                    content.add(&source, number, compile::unreadable(&context, chunk));
                }
            }
        }
    }
    content
}

/// The documents with the number of lines before each. A `---` at the start of a line always separates (YAML 9.1.2),
/// so this cannot cut a document in two.
fn chunks(text: &str) -> Vec<(usize, &str)> {
    let mut chunks = Vec::new();
    let (mut start, mut start_line) = (0, 0);
    let mut at = 0;
    for (line, full) in text.split_inclusive('\n').enumerate() {
        let bare = full.trim_end_matches(['\n', '\r']);
        let marker = ["---", "..."].into_iter().find(|marker| {
            bare.strip_prefix(marker).is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t']))
        });
        if let Some(marker) = marker {
            chunks.push((start_line, text.get(start..at).unwrap_or_default()));
            start = at + marker.len();
            start_line = line;
        }
        at += full.len();
    }
    chunks.push((start_line, text.get(start..).unwrap_or_default()));
    chunks
}

/// Only comments, directives and white space.
fn blank(chunk: &str) -> bool {
    chunk.lines().map(str::trim).all(|line| line.is_empty() || line.starts_with(['#', '%']))
}

#[cfg(test)]
mod tests;
