use super::*;

#[test]
fn tests_are_counted_and_neither_their_parts_nor_what_was_skipped() {
    let mut count = Count::default();
    for line in [
        "--- FAIL: TestConformance (21.81s)",
        "    --- PASS: TestConformance/MeshBasic (0.29s)",
        "        --- PASS: TestConformance/MeshBasic/0_request_to_'echo/'_should_go_to_ (0.10s)",
        "    --- FAIL: TestConformance/MeshPorts (30.07s)",
        "        --- FAIL: TestConformance/MeshPorts/No_port_set (30.00s)",
        "    --- SKIP: TestConformance/HTTPRouteWeight (0.00s)",
    ] {
        count.add(line);
    }
    assert_eq!((count.passed, count.failed), (vec!["MeshBasic".to_owned()], vec!["MeshPorts".to_owned()]));
}

#[test]
fn the_suite_is_of_the_release_of_its_crds() {
    assert_eq!(pinned(PINS, MODULE).unwrap(), pinned(PINS, "sigs.k8s.io/gateway-api").unwrap());
}
