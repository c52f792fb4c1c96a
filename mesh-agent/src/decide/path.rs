//! One form of a request's path, before anything judges it (reference section 4.6; RFC 3986, section 6.2.2).
//! Owns: escapes, backslashes, dot segments, doubled slashes. What comes out is what policies and routes see *and* what
//! is forwarded, so that nobody behind the mesh reads another path than the one that was judged (CVE-2021-29492's class).
//! Never: the authority, or a judgement. Called by `proxy::http` once per request, and by `explain`.

use std::borrow::Cow;

/// Istio's `meshConfig.pathNormalization.normalization`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize)]
pub enum PathNormalization {
    /// As it came; only a fragment is cut.
    None,
    /// RFC 3986, and a backslash is a slash. Istio's default.
    #[default]
    Base,
    /// Then several slashes are one.
    MergeSlashes,
    /// And `%2F` and `%5C` are slashes, before everything else.
    DecodeAndMergeSlashes,
}

/// A path that is refused with status 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadPath {
    /// Neither `*` nor a path that begins with a slash.
    Relative,
    /// `%` without two hexadecimal digits. Left alone it could become an escape by what is decoded beside it.
    Escape,
    /// `%00`: many programs end their texts there.
    Nul,
}

impl std::fmt::Display for BadPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Relative => "the path does not begin with a slash",
            Self::Escape => "the path has a `%` without two hexadecimal digits",
            Self::Nul => "the path has a `%00`",
        })
    }
}

/// The path and query of a request (origin form, RFC 9112 section 3.2.1) in their normal form. The query stays as it is.
///
/// # Errors
/// [`BadPath`]: the request is answered with 400.
pub fn normalise(path_and_query: &str, how: PathNormalization) -> Result<Cow<'_, str>, BadPath> {
    // A fragment is never sent by a client that follows RFC 9110 (CVE-2021-39156).
    let whole = path_and_query.split_once('#').map_or(path_and_query, |(before, _)| before);
    let path = whole.split_once('?').map_or(whole, |(path, _)| path);
    // `OPTIONS *` speaks of the server as a whole.
    if path == "*" {
        return Ok(Cow::Borrowed(whole));
    }
    if !path.starts_with('/') {
        return Err(BadPath::Relative);
    }
    if how == PathNormalization::None || is_plain(path, how) {
        return Ok(Cow::Borrowed(whole));
    }
    let decoded = decode(path, how == PathNormalization::DecodeAndMergeSlashes)?;
    let mut out = String::with_capacity(whole.len());
    remove_dot_segments(&decoded, &mut out);
    if matches!(how, PathNormalization::MergeSlashes | PathNormalization::DecodeAndMergeSlashes) {
        let mut before = ' ';
        out.retain(|c| {
            let doubled = c == '/' && before == '/';
            before = c;
            !doubled
        });
    }
    if out == path {
        return Ok(Cow::Borrowed(whole));
    }
    out.push_str(whole.get(path.len()..).unwrap_or_default());
    Ok(Cow::Owned(out))
}

/// Nearly every path: there is nothing to do.
fn is_plain(path: &str, how: PathNormalization) -> bool {
    let merged = how != PathNormalization::Base;
    let bytes = path.bytes().any(|byte| matches!(byte, b'%' | b'\\'));
    !(bytes || path.contains("/.") || merged && path.contains("//"))
}

fn decode(path: &str, slashes: bool) -> Result<String, BadPath> {
    let mut out = String::with_capacity(path.len());
    let mut rest = path.chars();
    while let Some(c) = rest.next() {
        match c {
            '\\' => out.push('/'),
            '%' => match escaped(&mut rest).ok_or(BadPath::Escape)? {
                0 => return Err(BadPath::Nul),
                b'/' | b'\\' if slashes => out.push('/'),
                byte if is_unreserved(byte) => out.push(char::from(byte)),
                // One spelling of the digits (RFC 3986, 6.2.2.1).
                byte => push_escape(&mut out, byte),
            },
            other => out.push(other),
        }
    }
    Ok(out)
}

fn escaped(rest: &mut std::str::Chars<'_>) -> Option<u8> {
    let high = rest.next()?.to_digit(16)?;
    let low = rest.next()?.to_digit(16)?;
    u8::try_from(high << 4 | low).ok()
}

/// `%` and two upper-case digits: one spelling of each escape (RFC 3986, 6.2.2.1).
fn push_escape(out: &mut String, byte: u8) {
    out.push('%');
    for digit in [byte >> 4, byte & 15] {
        out.extend(char::from_digit(digit.into(), 16).map(|digit| digit.to_ascii_uppercase()));
    }
}

/// RFC 3986, 2.3: an escape of these means the character itself, for everybody.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// RFC 3986, 5.2.4. Nothing leads out of the root.
fn remove_dot_segments(path: &str, out: &mut String) {
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            "." | ".." => {
                if segment == ".." {
                    out.truncate(out.rfind('/').unwrap_or(0));
                }
                if last {
                    out.push('/');
                }
            }
            segment => {
                out.push('/');
                out.push_str(segment);
            }
        }
    }
}

#[cfg(test)]
mod tests;
