//! Reference section 4.2, one test for each point.

use super::*;

fn mode(texts: &[String], port: u16) -> MtlsMode {
    let world = world(texts);
    world.mtls_mode(pod(&world, "reviews"), port).0
}

const STRICT: &str = "{mtls: {mode: STRICT}}";
const PERMISSIVE: &str = "{mtls: {mode: PERMISSIVE}}";
const UNSET: &str = "{mtls: {mode: UNSET}}";

fn selected(mtls: &str, ports: &str) -> String {
    format!("{{selector: {{matchLabels: {{app: reviews}}}}, mtls: {{mode: {mtls}}}{ports}}}")
}

fn aged(text: &str, time: &str) -> String {
    text.replace("metadata: {", &format!("metadata: {{creationTimestamp: '{time}', "))
}

#[test]
fn the_narrowest_scope_wins_and_permissive_is_the_default() {
    let mesh = peer("istio-system", "m", STRICT);
    let namespace = peer("shop", "n", PERMISSIVE);
    let workload = peer("shop", "w", &selected("DISABLE", ""));
    assert_eq!(mode(&[], 80), MtlsMode::Permissive);
    assert_eq!(mode(std::slice::from_ref(&mesh), 80), MtlsMode::Strict);
    assert_eq!(mode(&[mesh.clone(), namespace.clone()], 80), MtlsMode::Permissive);
    assert_eq!(mode(&[mesh, namespace, workload], 80), MtlsMode::Disable);
    assert_eq!(mode(&[peer("other", "n", STRICT)], 80), MtlsMode::Permissive, "another namespace");
}

#[test]
fn unset_inherits() {
    let mesh = peer("istio-system", "m", STRICT);
    for spec in [UNSET, "{}", "{mtls: {}}"] {
        assert_eq!(mode(&[mesh.clone(), peer("shop", "n", spec)], 80), MtlsMode::Strict, "{spec}");
        assert_eq!(mode(&[peer("istio-system", "m", spec)], 80), MtlsMode::Permissive, "mesh {spec}");
    }
    let workload = peer("shop", "w", &selected("UNSET", ""));
    assert_eq!(mode(&[mesh.clone(), peer("shop", "n", UNSET), workload.clone()], 80), MtlsMode::Strict);
    assert_eq!(mode(&[mesh, peer("shop", "n", PERMISSIVE), workload], 80), MtlsMode::Permissive);
}

#[test]
fn the_oldest_of_one_scope_wins_without_merging() {
    let old = aged(&peer("shop", "z", UNSET), "2024-01-01T00:00:00Z");
    let new = aged(&peer("shop", "a", STRICT), "2025-01-01T00:00:00Z");
    assert_eq!(mode(&[new.clone(), old.clone()], 80), MtlsMode::Permissive);
    let (old, new) = (old.replace("UNSET", "STRICT"), new.replace("STRICT", "DISABLE"));
    assert_eq!(mode(&[old, new], 80), MtlsMode::Strict);
}

#[test]
fn a_selector_in_the_root_namespace_is_ignored() {
    assert_eq!(mode(&[peer("istio-system", "m", &selected("STRICT", ""))], 80), MtlsMode::Permissive);
}

#[test]
fn ports_are_container_ports_and_an_unset_port_has_the_workloads_mode() {
    let ports = ", portLevelMtls: {8080: {mode: PERMISSIVE}, 9090: {mode: UNSET}, 7070: {mode: DISABLE}}";
    let texts = [peer("shop", "w", &selected("STRICT", ports))];
    let modes: Vec<_> = [8080, 9090, 7070, 80].into_iter().map(|port| mode(&texts, port)).collect();
    assert_eq!(modes, [MtlsMode::Permissive, MtlsMode::Strict, MtlsMode::Disable, MtlsMode::Strict]);
    // Ambient loses a DISABLE port under an inherited STRICT; here it holds.
    let inherited = [peer("istio-system", "m", STRICT), peer("shop", "w", &selected("UNSET", ports))];
    assert_eq!(mode(&inherited, 7070), MtlsMode::Disable);
    assert_eq!(mode(&inherited, 9090), MtlsMode::Strict);
}

#[test]
fn a_broken_policy_is_strict_in_its_scope_and_leaves_others_alone() {
    let broken = peer("shop", "n", "{mtls: {mode: LAX}}");
    let older = aged(&peer("shop", "a", PERMISSIVE), "2020-01-01T00:00:00Z");
    assert_eq!(mode(&[older.clone(), broken.clone()], 80), MtlsMode::Strict, "ahead of an older one");
    assert_eq!(
        mode(&[broken, peer("shop", "w", &selected("PERMISSIVE", ""))], 80),
        MtlsMode::Permissive,
        "narrower"
    );
    let selector = peer("shop", "n", "{selector: {matchLabel: {app: web}}}");
    assert_eq!(mode(&[selector, peer("shop", "w", &selected("PERMISSIVE", ""))], 80), MtlsMode::Strict);
}

#[test]
fn strict_refuses_plaintext_and_says_which_object() {
    let world = world(&[peer("shop", "default", STRICT)]);
    let verdict = from(&world, None, 8080);
    assert_eq!(verdict.reason, Some(Reason::PlaintextRefused));
    assert_eq!(verdict.rule.unwrap().policy.to_string(), "PeerAuthentication shop/default");
    assert!(from(&world, Some("web"), 8080).allowed);
}
