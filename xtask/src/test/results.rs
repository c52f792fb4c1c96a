//! What libtest's output adds up to, and what it says of the tests that failed.

/// Of what a failed test says, this many lines at its start and from its first panic or error on. A log that is kept
/// may be its end only, so a failure has to fit there.
const HEAD: usize = 4;
const REST: usize = 36;

#[derive(Default, Debug)]
pub(super) struct Results {
    pub(super) passed: u64,
    pub(super) failed: u64,
    pub(super) ignored: u64,
    failures: Vec<Failure>,
    /// Between a failed test's headline and the list of names that ends its binary's report.
    open: bool,
}

#[derive(Debug)]
struct Failure {
    test: String,
    said: Vec<String>,
}

impl Results {
    /// One line of the output.
    pub(super) fn add(&mut self, line: &str) {
        if let Some(rest) = line.strip_prefix("test result: ") {
            self.open = false;
            self.count(rest);
        } else if let Some(test) =
            line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----"))
        {
            self.failures.push(Failure { test: test.to_owned(), said: Vec::new() });
            self.open = true;
        } else if line == "failures:" {
            self.open = false;
        } else if self.open
            && let Some(failure) = self.failures.last_mut()
        {
            failure.said.push(line.to_owned());
        }
    }

    fn count(&mut self, rest: &str) {
        for part in rest.split(['.', ';']) {
            let mut words = part.split_whitespace();
            let (Some(number), Some(what)) =
                (words.next().and_then(|word| word.parse::<u64>().ok()), words.next())
            else {
                continue;
            };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }

    /// Each failed test with the part of what it said that tells why; empty if none failed.
    pub(super) fn details(&self) -> String {
        let mut text = String::new();
        for failure in &self.failures {
            let said = &failure.said;
            let why = said
                .iter()
                .position(|line| {
                    line.starts_with("FAILED ")
                        || line.starts_with("Error: ")
                        || line.contains(" panicked at ")
                })
                .unwrap_or_default()
                .max(HEAD);
            text.push_str(&format!("---- {}\n", failure.test));
            for line in said.iter().take(HEAD).chain(said.iter().skip(why).take(REST)) {
                text.push_str(line);
                text.push('\n');
            }
        }
        text
    }
}

#[cfg(test)]
mod tests;
