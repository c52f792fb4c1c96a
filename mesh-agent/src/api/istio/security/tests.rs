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

/// The controller writes conditions; without the subresource its writes would count as new generations.
#[test]
fn the_resources_have_a_status_that_keeps_what_others_write() {
    for crd in [AuthorizationPolicy::crd(), PeerAuthentication::crd()] {
        let version = &crd.spec.versions[0];
        assert!(version.subresources.as_ref().unwrap().status.is_some());
        let schema = serde_json::to_value(version.schema.as_ref().unwrap()).unwrap();
        let status = &schema["openAPIV3Schema"]["properties"]["status"];
        assert_eq!(status["x-kubernetes-preserve-unknown-fields"], true, "{status}");
    }
}

#[test]
fn the_resources_carry_istios_names() {
    assert_eq!(AuthorizationPolicy::crd_name(), "authorizationpolicies.security.istio.io");
    assert_eq!(PeerAuthentication::crd_name(), "peerauthentications.security.istio.io");
}
