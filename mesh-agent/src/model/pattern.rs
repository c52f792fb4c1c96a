//! Text patterns of routes.

use std::sync::{Arc, OnceLock};

use regex::Regex as Compiled;

/// A regular expression that has to match the whole text, as Istio and the Gateway API mean it. The engine takes time
/// linear in the text (like RE2), and `compile` bounds the size of the program.
#[derive(Clone, Debug)]
pub struct Regex {
    source: Arc<str>,
    whole: Compiled,
    /// The same without the ends, for those few that replace; made when first used.
    part: OnceLock<Option<Compiled>>,
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
        Ok(Self { source: source.into(), whole, part: OnceLock::new() })
    }

    pub fn source(&self) -> &str {
        &self.source
    }

    /// The pattern that matches this text and nothing else.
    pub fn escape(text: &str) -> String {
        regex::escape(text)
    }

    pub fn matches(&self, text: &str) -> bool {
        self.whole.is_match(text)
    }

    /// The text with every part that matches replaced: `\1` to `\9` are groups, `\0` is the part, `\\` a backslash (RE2).
    pub fn replace_all(&self, text: &str, rewrite: &str) -> String {
        let part = self.part.get_or_init(|| {
            let builder = &mut regex::RegexBuilder::new(&self.source);
            builder.size_limit(Self::MAX_BYTES).dot_matches_new_line(true).build().ok()
        });
        let Some(part) = part else { return text.to_owned() };
        let expand = |found: &regex::Captures<'_>| {
            let mut out = String::new();
            let mut rest = rewrite.chars();
            while let Some(c) = rest.next() {
                match (c, if c == '\\' { rest.next() } else { None }) {
                    ('\\', Some(digit)) if digit.is_ascii_digit() => {
                        let group = digit.to_digit(10).and_then(|group| found.get(group as usize));
                        out.push_str(group.map_or("", |group| group.as_str()));
                    }
                    ('\\', Some(other)) => out.push(other),
                    (c, _) => out.push(c),
                }
            }
            out
        };
        part.replace_all(text, expand).into_owned()
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
