use super::Results;

fn of(text: &str) -> Results {
    let mut results = Results::default();
    text.lines().for_each(|line| results.add(line));
    results
}

/// The summary adds up what each test binary reports, and nothing else.
#[test]
fn result_lines_add_up() {
    let results = of("running 3 tests\n\
        test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 12 filtered out; finished in 0.00s\n\
        test result: FAILED. 1 passed; 2 failed; 4 ignored; 0 measured; 0 filtered out; finished in 1.27s");
    assert_eq!((results.passed, results.failed, results.ignored), (4, 2, 4));
    assert_eq!(results.details(), "");
}

/// Of a failed test the end of the log repeats its name, how it began and why it failed, and of another binary's tests
/// nothing gets among it.
#[test]
fn a_failure_is_said_again() {
    let long: String = (0..200).map(|line| format!("step {line}\n")).collect();
    let results = of(&format!(
        "test a::long ... FAILED\n\nfailures:\n\n---- a::long stdout ----\n{long}FAILED step: it waits\nwhy\n\n\
         failures:\n    a::long\n\ntest result: FAILED. 0 passed; 1 failed; 0 ignored\nrunning 1 test\nnoise"
    ));
    let details = results.details();
    assert!(details.starts_with("---- a::long\nstep 0\n"), "{details}");
    assert!(details.contains("FAILED step: it waits\nwhy\n"), "{details}");
    assert!(!details.contains("step 100") && !details.contains("noise"), "{details}");
}

/// What is short is there whole, and once.
#[test]
fn a_short_failure_is_whole() {
    let results = of("---- b stdout ----\none\nthread 'b' panicked at x.rs:1:\ntwo\n\nfailures:\n    b\n");
    assert_eq!(results.details(), "---- b\none\nthread 'b' panicked at x.rs:1:\ntwo\n\n");
}
