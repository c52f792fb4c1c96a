use super::*;
use crate::compile::fixture;

fn one(text: &str) -> Workload {
    match fixture::compile(text).objects.pop() {
        Some((_, Object::Pod(facts))) => facts.workload,
        other => panic!("{other:?}"),
    }
}

fn with(metadata: &str, rest: &str) -> Workload {
    one(&format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: web-x, namespace: shop{metadata}}}\n{rest}\n"))
}

#[test]
fn a_pod_may_be_enrolled_unless_its_label_its_network_or_its_end_forbid_it() {
    assert!(with("", "").enrolled);
    assert!(!with(", labels: {nodemesh.io/mesh: disabled}", "").enrolled);
    assert!(!with("", "spec: {hostNetwork: true, containers: []}").enrolled);
    for (phase, may) in [("Running", true), ("Pending", true), ("Succeeded", false), ("Failed", false)] {
        assert_eq!(with("", &format!("status: {{phase: {phase}}}")).enrolled, may, "{phase}");
    }
}

#[test]
fn the_workload_is_named_after_its_owner() {
    let owner = |kind: &str, name: &str| {
        format!(
            ", labels: {{pod-template-hash: 5d8}}, ownerReferences: [{{apiVersion: v1, kind: {kind}, name: {name}, uid: u, controller: true}}]"
        )
    };
    assert_eq!(&*with(&owner("ReplicaSet", "web-5d8"), "").workload_name, "web");
    assert_eq!(&*with(&owner("ReplicaSet", "web"), "").workload_name, "web");
    assert_eq!(&*with(&owner("StatefulSet", "db"), "").workload_name, "db");
    assert_eq!(&*with(", generateName: job-", "").workload_name, "job");
    assert_eq!(&*with("", "").workload_name, "web-x");
}

#[test]
fn the_identity_is_the_account_or_default() {
    assert_eq!(with("", "").identity.to_string(), "spiffe://cluster.local/ns/shop/sa/default");
    let named = with("", "spec: {serviceAccountName: api, containers: []}");
    assert_eq!(named.identity.to_string(), "spiffe://cluster.local/ns/shop/sa/api");
    let found = fixture::findings(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {serviceAccountName: 'a/b', containers: []}\n",
    );
    assert!(found[0].contains("spec.serviceAccountName"), "{found:?}");
}

#[test]
fn a_uid_makes_another_workload_of_the_same_name() {
    assert_eq!(&*with("", "").id.0, "shop/web-x");
    assert_eq!(&*with(", uid: u1", "").id.0, "shop/web-x/u1");
}

#[test]
fn single_podip_counts_where_podips_is_absent() {
    assert_eq!(with("", "status: {podIP: 10.0.0.1}").addresses, ["10.0.0.1".parse::<IpAddr>().unwrap()]);
    let both =
        with("", "status: {podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}, {ip: 10.0.0.2}]}");
    assert_eq!(both.addresses.len(), 2, "one per family");
}

/// A node's labels, the older ones too, as far as they go without a gap; a pod's own label instead of its node's.
#[test]
fn where_nodes_and_pods_are() {
    let node = |labels: &str| {
        let text = format!("apiVersion: v1\nkind: Node\nmetadata: {{name: n, labels: {{{labels}}}}}\n");
        match fixture::compile(&text).objects.pop() {
            Some((_, Object::Node(facts))) => facts.locality.to_string(),
            other => panic!("{other:?}"),
        }
    };
    for (labels, expected) in [
        ("", ""),
        (
            "topology.kubernetes.io/region: eu, topology.kubernetes.io/zone: a, topology.istio.io/subzone: b",
            "eu/a/b",
        ),
        ("failure-domain.beta.kubernetes.io/region: eu, failure-domain.beta.kubernetes.io/zone: a", "eu/a"),
        ("topology.kubernetes.io/region: eu, failure-domain.beta.kubernetes.io/region: us", "eu"),
        ("topology.kubernetes.io/zone: a", ""),
    ] {
        assert_eq!(node(labels), expected, "{labels}");
    }
    for (label, expected) in [("eu.a.b", "eu/a/b"), ("eu", "eu")] {
        assert_eq!(&*with(&format!(", labels: {{istio-locality: {label}}}"), "").locality, expected);
    }
    assert_eq!(&*with("", "").locality, "");
}
