use super::*;

#[test]
fn a_version_of_go_is_read_as_it_says_it() {
    assert_eq!(version("go1.26.8\n"), Some((1, 26)));
    assert_eq!(version("go1.27rc1"), Some((1, 27)));
    assert_eq!(version("devel"), None);
}
