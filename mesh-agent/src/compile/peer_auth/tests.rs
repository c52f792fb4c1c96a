use super::*;
use crate::compile::fixture::{self, findings};

fn one(text: &str) -> PeerAuth {
    match fixture::compile(text).objects.pop() {
        Some((_, Object::PeerAuthentication(policy))) => policy,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_broken_policy_is_strict_and_names_the_field() {
    for (spec, field) in [
        ("{mtls: {mode: STRIKT}}", "spec.mtls.mode"),
        ("{mtls: {}, mtlz: {}}", "spec.mtlz"),
        ("{mtls: }", "spec.mtls"),
        ("{portLevelMtls: {80: {mode: DISABLE}}}", "spec.portLevelMtls"),
        ("{selector: {}, portLevelMtls: {80: {mode: DISABLE}}}", "spec.portLevelMtls"),
        (
            "{selector: {matchLabels: {a: b}}, portLevelMtls: {web: {mode: DISABLE}}}",
            "spec.portLevelMtls.web",
        ),
        ("{selector: {matchLabels: {a: b}}, portLevelMtls: {0: {mode: DISABLE}}}", "spec.portLevelMtls.0"),
        ("{selector: {labels: {a: b}}}", "spec.selector.labels"),
    ] {
        let text = fixture::peer("shop", "p", spec);
        let policy = one(&text);
        assert!(policy.invalid.is_some() && policy.mode == Some(MtlsMode::Strict), "{spec}");
        assert!(policy.ports.is_empty(), "{spec}");
        assert!(
            findings(&text).iter().any(|f| f.contains(&format!(": {field}: "))),
            "{spec}: {:?}",
            findings(&text)
        );
    }
}

#[test]
fn a_broken_selector_is_taken_as_every_workload() {
    assert_eq!(one(&fixture::peer("shop", "p", "{selector: {x: y}}")).selector, Some(Labels::new()));
    assert_eq!(one(&fixture::peer("shop", "p", "{x: y}")).selector, None);
    assert_eq!(one(&fixture::peer("istio-system", "p", "{selector: {x: y}}")).selector, None);
    let kept = one(&fixture::peer("shop", "p", "{selector: {matchLabels: {a: b}}, x: y}")).selector.unwrap();
    assert_eq!(kept.get("a").unwrap(), "b");
}

#[test]
fn the_modes_and_the_age_are_read() {
    let text = fixture::peer("shop", "p", "{selector: {matchLabels: {a: b}}, mtls: {mode: UNSET}, portLevelMtls: {80: {mode: DISABLE}, 81: {}}}")
        .replace("namespace: shop}", "namespace: shop, creationTimestamp: '1970-01-01T00:01:00Z'}");
    let policy = one(&text);
    assert_eq!((policy.mode, policy.created, policy.invalid), (None, 60, None));
    assert_eq!(policy.ports, BTreeMap::from([(80, Some(MtlsMode::Disable)), (81, None)]));
}

#[test]
fn a_selector_in_the_root_namespace_is_announced_as_ignored() {
    let text = fixture::peer("istio-system", "p", "{selector: {matchLabels: {a: b}}, mtls: {mode: STRICT}}");
    assert!(findings(&text).iter().any(|f| f.contains("is ignored")));
}
