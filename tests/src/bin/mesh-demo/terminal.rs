//! What the demo prints: headings, one sentence of why, commands with what they said, and what is proven by it.
//! Owns: the looks. Never: decides whether a step held.
use std::cell::Cell;
use std::io::IsTerminal;
use std::time::Instant;

const BOLD: &str = "1";
const DIM: &str = "2";
const RED: &str = "31";
const GREEN: &str = "32";
const CYAN: &str = "36";

/// Where sentences are broken.
const COLUMNS: usize = 100;
/// How many lines of one command's answer are shown.
const LINES_MAX: usize = 24;

pub(crate) struct Terminal {
    colour: bool,
    step: Cell<u32>,
    started: Instant,
}

impl Terminal {
    pub(crate) fn new() -> Self {
        // https://no-color.org: any value but the empty one says no.
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let colour = !refused && std::io::stdout().is_terminal();
        Self { colour, step: Cell::new(0), started: Instant::now() }
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    pub(crate) fn title(&self, text: &str) {
        println!("{}", self.paint(BOLD, text));
    }

    /// The heading of the next step and why it is worth looking at.
    pub(crate) fn step(&self, heading: &str, why: &str) {
        self.step.set(self.step.get() + 1);
        println!("\n{}", self.paint(BOLD, &format!("{}. {heading}", self.step.get())));
        println!("{}", wrap(why));
    }

    /// Something that happened without a command.
    pub(crate) fn say(&self, text: &str) {
        println!("   {text}");
    }

    pub(crate) fn command(&self, text: &str) {
        println!("   {}", self.paint(CYAN, &format!("$ {text}")));
    }

    pub(crate) fn output(&self, text: &str) {
        let lines: Vec<&str> = text.trim_end().lines().collect();
        for line in lines.iter().take(LINES_MAX) {
            println!("     {line}");
        }
        if lines.len() > LINES_MAX {
            println!("     {}", self.paint(DIM, &format!("... {} more lines", lines.len() - LINES_MAX)));
        }
    }

    /// What a check found to be true.
    pub(crate) fn proven(&self, text: &str) {
        println!("   {} {text}", self.paint(GREEN, "ok:"));
    }

    pub(crate) fn failure(&self, text: &str) {
        println!("\n{} {text}", self.paint(RED, "demo:"));
    }

    pub(crate) fn dim(&self, text: &str) {
        println!("{}", self.paint(DIM, text));
    }

    pub(crate) fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }
}

/// Breaks a sentence into indented lines.
fn wrap(text: &str) -> String {
    let mut out = String::new();
    let mut column = COLUMNS;
    for word in text.split(' ') {
        if column + word.len() >= COLUMNS {
            out.push_str(if out.is_empty() { "   " } else { "\n   " });
            column = 3;
        } else {
            out.push(' ');
        }
        out.push_str(word);
        column += word.len() + 1;
    }
    out.push('\n');
    out
}
