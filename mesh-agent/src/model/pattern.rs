//! Text patterns of routes.

use std::sync::Arc;

use regex::Regex as Compiled;

/// A regular expression that has to match the whole text, as Istio and the Gateway API mean it. The engine takes time
/// linear in the text (like RE2), and `compile` bounds the size of the program.
#[derive(Clone, Debug)]
pub struct Regex {
    source: Arc<str>,
    whole: Compiled,
}

impl Regex {
    /// Bytes that one compiled pattern may take.
    pub const MAX_BYTES: usize = 1 << 20;

    /// # Errors
    /// The pattern is not understood, or too large.
    pub fn new(source: &str) -> Result<Self, regex::Error> {
        let whole = regex::RegexBuilder::new(&format!("^(?:{source})$"))
            .size_limit(Self::MAX_BYTES)
            .dot_matches_new_line(true)
            .build()?;
        Ok(Self { source: source.into(), whole })
    }

    pub fn source(&self) -> &str {
        &self.source
    }

    pub fn matches(&self, text: &str) -> bool {
        self.whole.is_match(text)
    }
}

impl PartialEq for Regex {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

impl Eq for Regex {}

impl serde::Serialize for Regex {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.source)
    }
}

/// What a text (method, header value, query parameter) must be.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub enum Pattern {
    Exact(Arc<str>),
    Prefix(Arc<str>),
    Regex(Regex),
    /// There at all, whatever it says.
    Present,
}

impl Pattern {
    pub fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(wanted) => &**wanted == text,
            Self::Prefix(wanted) => text.starts_with(&**wanted),
            Self::Regex(wanted) => wanted.matches(text),
            Self::Present => true,
        }
    }
}

/// What the path (without query) must be.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub enum PathMatch {
    Exact {
        path: Arc<str>,
        ignore_case: bool,
    },
    /// Plain text: `/foo` matches `/foobar` (Istio).
    Prefix {
        prefix: Arc<str>,
        ignore_case: bool,
    },
    /// By segments: `/foo` matches `/foo` and `/foo/bar`. Without a slash at its end (Gateway API `PathPrefix`).
    Segments(Arc<str>),
    Regex(Regex),
}
