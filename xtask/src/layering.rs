//! The rules of the house that the compiler does not know (DESIGN, section 2), read from the source text: which module
//! may use which, what the pure modules may not name, how long a file may be, and where `unsafe` may stand.
//!
//! It reads tokens, not types: enough for `crate::module` and `super` paths, and it needs no compiled agent.
use std::fs;
use std::path::{Path, PathBuf};

/// The agent's modules from the ground floor up. A module uses those before it, never those after it.
const FLOORS: &[&str] = &[
    "model",
    "decide",
    "api",
    "compile",
    "world",
    "identity",
    "net",
    "capture",
    "tunnel",
    "proxy",
    "observe",
    "config",
    "source",
    "ca",
    "admin",
    "cni",
    // Above `admin`: it shows its metrics and readiness by the same servers.
    "controller",
    "install",
    "cli",
    "agent",
];

/// Uses that go up one floor and are right.
const ALLOWED_UP: &[(&str, &str)] = &[
    // `proxy` opens and closes the connections that `observe` counts; the list has `observe` above it because the
    // connection table shows what `proxy` does, not because it calls it.
    ("proxy", "observe"),
];

/// Modules whose answers depend on their arguments alone.
const PURE: &[&str] = &["model", "decide", "compile", "world"];

/// What a pure module may not name: runtimes, the network, clocks and chance.
const IMPURE: &[&str] = &[
    "tokio",
    "hyper",
    "hyper_util",
    "aya",
    "h2",
    "rustls",
    "nix",
    "libc",
    "socket2",
    "rand",
    "fastrand",
    "getrandom",
    "kube::Client",
    "kube::client",
    "kube::Api",
    "kube::api",
    "kube::runtime",
    "kube_client",
    "kube_runtime",
    "Instant::now",
    "SystemTime::now",
    "UtcNow",
    "OffsetDateTime::now_utc",
    "std::thread",
    "std::fs",
    "std::env",
];

/// Where `unsafe` may stand, as paths from the workspace's root. The tests of capture make system calls that no crate
/// wraps, to try what a hostile pod would try.
const UNSAFE_ALLOWED: &[&str] = &[
    "mesh-ebpf/",
    "mesh-common/",
    "mesh-agent/src/net/",
    "mesh-agent/src/capture/",
    "mesh-agent/tests/capture/",
];

/// A file longer than this is on the list below, with the reason.
const LINES: usize = 500;
/// No file is longer than this.
const LINES_HARD: usize = 800;
const LONG: &[(&str, &str)] = &[];

/// One source file: its path from the root, and its text without comments and literals.
struct Source {
    path: String,
    code: String,
    lines: usize,
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        Self { path: path.to_owned(), code: strip(text), lines: text.lines().count() }
    }

    fn is_test(&self) -> bool {
        self.path.ends_with("/tests.rs") || self.path.contains("/tests/")
    }

    /// The module path inside the agent: `mesh-agent/src/world/store.rs` is `["world", "store"]`.
    fn module(&self) -> Option<Vec<&str>> {
        let inside = self.path.strip_prefix("mesh-agent/src/")?.strip_suffix(".rs")?;
        let mut parts: Vec<&str> = inside.split('/').collect();
        if matches!(parts.last(), Some(&("mod" | "lib" | "main"))) {
            parts.pop();
        }
        Some(parts)
    }
}

/// Everything in one file that breaks a rule, as sentences.
fn faults(source: &Source) -> Vec<String> {
    let mut found = Vec::new();
    length(source, &mut found);
    if !UNSAFE_ALLOWED.iter().any(|prefix| source.path.starts_with(prefix)) && names(&source.code, "unsafe") {
        found.push(format!("{}: `unsafe` is for {} only", source.path, UNSAFE_ALLOWED.join(", ")));
    }
    let Some(module) = source.module() else { return found };
    let Some((&first, _)) = module.split_first() else { return found };
    if source.is_test() {
        return found;
    }
    order(source, first, module.len(), &mut found);
    if PURE.contains(&first) {
        for &name in IMPURE.iter().filter(|name| names(&source.code, name)) {
            found.push(format!(
                "{}: `{first}` is pure and may not name `{name}`; take it as an argument",
                source.path
            ));
        }
    }
    found
}

fn length(source: &Source, found: &mut Vec<String>) {
    let listed = LONG.iter().any(|(path, _)| *path == source.path);
    if source.lines > LINES_HARD || (source.lines > LINES && !listed) {
        found.push(format!("{}: {} lines, the limit is {LINES}; split it", source.path, source.lines));
    }
}

fn order(source: &Source, own: &str, depth: usize, found: &mut Vec<String>) {
    let Some(floor) = FLOORS.iter().position(|name| *name == own) else {
        found
            .push(format!("{}: module `{own}` has no floor; add it to FLOORS where it belongs", source.path));
        return;
    };
    for used in uses(&source.code, depth) {
        let above = FLOORS.iter().position(|name| *name == used).is_some_and(|other| other > floor);
        if above && !ALLOWED_UP.contains(&(own, used.as_str())) {
            found.push(format!("{}: `{own}` uses `{used}`, which stands above it", source.path));
        }
    }
}

/// The top-level modules a file names, by `crate::` or by enough `super::`.
fn uses(code: &str, depth: usize) -> Vec<String> {
    let up = "super::".repeat(depth);
    let mut found = Vec::new();
    for root in ["crate::", "mesh_agent::", up.as_str()] {
        for (at, _) in code.match_indices(root) {
            if code[..at].ends_with(|c: char| is_word(c) || c == ':') {
                continue;
            }
            found.extend(heads(&code[at + root.len()..]));
        }
    }
    found.sort();
    found.dedup();
    found
}

/// The first names of what follows a root: `a::b` gives `a`, `{a::{b, c}, d}` gives `a` and `d`.
fn heads(rest: &str) -> Vec<String> {
    let word = |text: &str| text.chars().take_while(|c| is_word(*c)).collect::<String>();
    let Some(group) = rest.trim_start().strip_prefix('{') else {
        return Vec::from([word(rest.trim_start())]);
    };
    let mut found = Vec::new();
    let (mut nested, mut start) = (0_usize, true);
    for (at, c) in group.char_indices() {
        match c {
            '{' => nested += 1,
            '}' if nested == 0 => break,
            '}' => nested -= 1,
            ',' if nested == 0 => start = true,
            _ if start && is_word(c) => {
                found.push(word(&group[at..]));
                start = false;
            }
            _ => {}
        }
    }
    found
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Whether the code names this, as whole words.
fn names(code: &str, name: &str) -> bool {
    code.match_indices(name)
        .any(|(at, _)| !code[..at].ends_with(is_word) && !code[at + name.len()..].starts_with(is_word))
}

/// The text without comments, strings and characters: what is written about a module is no use of it.
fn strip(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let skip = literal(rest, out.chars().next_back());
        if skip > 0 {
            out.push(' ');
            rest = &rest[skip..];
        } else {
            out.push(c);
            rest = &rest[c.len_utf8()..];
        }
    }
    out
}

/// How many bytes of comment or literal stand at the start; zero when it is code.
fn literal(rest: &str, before: Option<char>) -> usize {
    if rest.starts_with("//") {
        return rest.find('\n').unwrap_or(rest.len());
    }
    if rest.starts_with("/*") {
        return block(rest);
    }
    if rest.starts_with('"') {
        return quoted(rest, '"');
    }
    if !before.is_some_and(is_word) && rest.starts_with('r') {
        let hashes = rest[1..].chars().take_while(|c| *c == '#').count();
        if rest[1 + hashes..].starts_with('"') {
            let end = format!("\"{}", "#".repeat(hashes));
            let body = 2 + hashes;
            return rest[body..].find(&end).map_or(rest.len(), |at| body + at + end.len());
        }
    }
    // A character, not a lifetime: 'x' or '\n'.
    let mut next = rest.chars().skip(1);
    match (rest.starts_with('\''), next.next(), next.next()) {
        (true, Some('\\'), _) | (true, Some(_), Some('\'')) => quoted(rest, '\''),
        _ => 0,
    }
}

fn quoted(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        if !escaped && c == quote {
            return at + 1;
        }
        escaped = !escaped && c == '\\';
    }
    rest.len()
}

fn block(rest: &str) -> usize {
    let (mut at, mut depth) = (2, 1);
    while depth > 0 && at < rest.len() {
        let here = &rest.as_bytes()[at..];
        let step = match (here.starts_with(b"/*"), here.starts_with(b"*/")) {
            (true, _) => 1,
            (_, true) => -1,
            _ => 0,
        };
        depth += step;
        at += if step == 0 { 1 } else { 2 };
    }
    at.min(rest.len())
}

/// Every Rust file below a folder of the workspace.
fn sources(root: &Path, below: &str) -> Vec<Source> {
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> = Vec::from([root.join(below)]);
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                if path.file_name().is_none_or(|name| name != "target") {
                    open.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs")
                && let (Ok(text), Ok(inside)) = (fs::read_to_string(&path), path.strip_prefix(root))
            {
                found.push(Source::new(&inside.to_string_lossy(), &text));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests;
