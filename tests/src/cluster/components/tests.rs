use super::*;

#[test]
fn the_pins_name_a_version_of_each_component() {
    assert!(minor(version()).is_some(), "{:?}", version());
    assert!(minor(coredns_version()).is_some(), "{:?}", coredns_version());
}

#[test]
fn a_version_is_found_in_what_a_program_says() {
    assert_eq!(minor("Kubernetes v1.36.3\n"), Some((1, 36)));
    assert_eq!(minor("Client Version: v1.35.0\nKustomize Version: v5.7.1\n"), Some((1, 35)));
    assert_eq!(minor("kubelet: not found"), None);
}
