//! Where in a JSON text a value stands. For changing one place of a file that belongs to somebody else and leaving every
//! other byte as it is, which reading and writing it anew would not. Owns: nothing. Never: judges a text; what is not
//! valid JSON (as `serde_json` says) has no members and no elements.

use std::ops::Range;

use serde::de::IgnoredAny;

/// The members of the object that the text is: name, and where its value stands. None if it is no object.
pub(super) fn members(text: &str) -> Option<Vec<(String, Range<usize>)>> {
    let mut scan = Scan::begin(text, b'{')?;
    let mut found = Vec::new();
    while !scan.ends(b'}') {
        let name = scan.value();
        let name: String = serde_json::from_str(text.get(name)?).ok()?;
        scan.skip(b':');
        found.push((name, scan.value()));
        scan.skip(b',');
    }
    Some(found)
}

/// Where the elements of the array stand that the text is. None if it is no array.
pub(super) fn elements(text: &str) -> Option<Vec<Range<usize>>> {
    let mut scan = Scan::begin(text, b'[')?;
    let mut found = Vec::new();
    while !scan.ends(b']') {
        found.push(scan.value());
        scan.skip(b',');
    }
    Some(found)
}

/// A place in a text that is known to be valid.
struct Scan<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Scan<'a> {
    fn begin(text: &'a str, opening: u8) -> Option<Self> {
        serde_json::from_str::<IgnoredAny>(text).ok()?;
        let mut scan = Self { bytes: text.as_bytes(), at: 0 };
        scan.space();
        (scan.next() == Some(opening)).then(|| {
            scan.at += 1;
            scan
        })
    }

    fn next(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn space(&mut self) {
        while matches!(self.next(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    /// Whether the object or array is over; the end of the text ends it too.
    fn ends(&mut self, closing: u8) -> bool {
        self.space();
        self.next().is_none_or(|byte| byte == closing)
    }

    fn skip(&mut self, punctuation: u8) {
        self.space();
        if self.next() == Some(punctuation) {
            self.at += 1;
        }
        self.space();
    }

    /// Goes past one value of any kind.
    fn value(&mut self) -> Range<usize> {
        let start = self.at;
        let mut depth = 0_usize;
        while let Some(byte) = self.next() {
            match byte {
                b'"' => self.string(),
                b'{' | b'[' => depth += 1,
                b'}' | b']' if depth > 0 => depth -= 1,
                b'}' | b']' | b',' | b':' | b' ' | b'\t' | b'\n' | b'\r' if depth == 0 => break,
                _ => {}
            }
            self.at += 1;
            if depth == 0 && matches!(byte, b'"' | b'}' | b']') {
                break;
            }
        }
        start..self.at
    }

    /// To the string's closing quote.
    fn string(&mut self) {
        self.at += 1;
        while let Some(byte) = self.next() {
            match byte {
                b'"' => return,
                b'\\' => self.at += 2,
                _ => self.at += 1,
            }
        }
    }
}

#[cfg(test)]
mod tests;
