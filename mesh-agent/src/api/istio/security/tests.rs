use kube::CustomResourceExt;

use super::*;

/// CVE-2025-64715: an empty set must survive every encoding as an empty set.
#[test]
fn an_empty_list_stays_an_empty_list_through_json_and_yaml() {
    let source =
        Source { principals: Some(Vec::new()), namespaces: Some(vec!["a".into()]), ..Source::default() };
    let json = serde_json::to_string(&source).unwrap();
    assert_eq!(json, r#"{"principals":[],"namespaces":["a"]}"#);
    assert_eq!(serde_json::from_str::<Source>(&json).unwrap(), source);
    let yaml = serde_saphyr::to_string(&source).unwrap();
    assert_eq!(serde_saphyr::from_str::<Source>(&yaml).unwrap(), source);
}

#[test]
fn the_resources_carry_istios_names() {
    assert_eq!(AuthorizationPolicy::crd_name(), "authorizationpolicies.security.istio.io");
    assert_eq!(PeerAuthentication::crd_name(), "peerauthentications.security.istio.io");
}
