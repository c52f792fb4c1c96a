use super::version;

/// Kernel releases of every distribution begin with two numbers.
#[test]
fn releases_are_read() {
    assert_eq!(version("6.18.44-generic\n"), Some((6, 18)));
    assert_eq!(version("5.15-rc1"), Some((5, 15)));
    assert_eq!(version("unknown"), None);
}
