use super::Count;

/// The summary adds up what each test binary reports, and nothing else.
#[test]
fn result_lines_add_up() {
    let mut count = Count::default();
    count.add("running 3 tests");
    count.add(
        "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 12 filtered out; finished in 0.00s",
    );
    count.add(
        "test result: FAILED. 1 passed; 2 failed; 4 ignored; 0 measured; 0 filtered out; finished in 1.27s",
    );
    assert_eq!(count, Count { passed: 4, failed: 2, ignored: 4 });
}
