use serde_json::json;

use super::*;

fn intake(kind: Kind) -> Intake {
    Intake::of(kind, Arc::new(MeshSettings::default()), "node-a".into()).unwrap()
}

fn pod(name: &str, version: u32, node: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}"),
                     "resourceVersion": version.to_string(), "managedFields": [{"manager": "kubelet"}]},
        "spec": {"nodeName": node, "serviceAccountName": "web", "containers": [{"name": "app", "image": "x"}],
                 "newFieldOfALaterKubernetes": {"a": 1}},
        "status": {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}],
                   "conditions": [{"type": "Ready", "status": "True"}],
                   "containerStatuses": [{"name": "app", "image": "x", "imageID": "x", "ready": true,
                                          "restartCount": 0, "containerID": "containerd://abc"}]},
    })
}

fn workload(taken: &Taken) -> &crate::model::Workload {
    let Some(Change::Put(_, object)) = &taken.change else { panic!("{taken:?}") };
    let Object::Pod(facts) = &**object else { panic!("{object:?}") };
    &facts.workload
}

#[test]
fn an_item_of_a_list_is_read_though_it_does_not_name_its_kind_and_fields_of_a_later_version_are_no_finding() {
    let taken = intake(Kind::Pod).put("v1", pod("a", 1, "node-a")).unwrap();
    assert_eq!(taken.diagnostics, []);
    assert_eq!(workload(&taken).addresses, ["10.0.0.1".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(workload(&taken).uid(), Some("uid-a"));
}

#[test]
fn container_ids_are_kept_for_the_pods_of_this_node_only() {
    let mut intake = intake(Kind::Pod);
    let here = intake.put("v1", pod("a", 1, "node-a")).unwrap();
    let there = intake.put("v1", pod("b", 1, "node-b")).unwrap();
    assert_eq!(workload(&here).containers, ["abc".into()].into());
    assert!(workload(&there).containers.is_empty());
}

#[test]
fn a_list_after_a_gap_gives_only_what_has_changed_and_what_is_gone() {
    let mut intake = intake(Kind::Pod);
    intake.begin_list();
    for name in ["a", "b", "c"] {
        assert!(intake.put("v1", pod(name, 1, "node-a")).is_some());
    }
    assert!(intake.end_list().is_empty());
    intake.begin_list();
    assert!(intake.put("v1", pod("a", 1, "node-a")).is_none(), "nothing new about a");
    assert!(intake.put("v1", pod("b", 2, "node-a")).is_some());
    assert!(intake.put("v1", pod("d", 3, "node-a")).is_some());
    let gone = intake.end_list();
    assert_eq!(gone.iter().map(|taken| &*taken.key.name).collect::<Vec<_>>(), ["c"]);
    assert!(matches!(gone[0].change, Some(Change::Removed(_))));
    assert_eq!(intake.len(), 3);
}

#[test]
fn a_deletion_is_told_once() {
    let mut intake = intake(Kind::Pod);
    intake.put("v1", pod("a", 1, "node-a"));
    assert!(intake.deleted(&pod("a", 2, "node-a")).is_some());
    assert!(intake.deleted(&pod("a", 2, "node-a")).is_none());
}

#[test]
fn a_pod_cannot_choose_a_network_namespace_of_the_node() {
    let mut object = pod("a", 1, "node-a");
    object["metadata"]["annotations"] = json!({"nodemesh.io/netns": "/proc/1/ns/net"});
    let taken = intake(Kind::Pod).put("v1", object).unwrap();
    assert_eq!(workload(&taken).netns, None);
    assert_eq!(taken.diagnostics.len(), 1);
    assert!(taken.diagnostics[0].field.contains("nodemesh.io/netns"));
}

#[test]
fn a_broken_policy_fails_closed_and_any_other_broken_object_leaves_its_last_good_version() {
    let mut policies = intake(Kind::AuthorizationPolicy);
    let broken = json!({"metadata": {"name": "p", "namespace": "shop", "resourceVersion": "1"},
                        "spec": {"action": "SOMETIMES"}});
    let taken = policies.put("v1", broken).unwrap();
    let Some(Change::Put(_, object)) = &taken.change else { panic!("{taken:?}") };
    let Object::AuthorizationPolicy(policy) = &**object else { panic!("{object:?}") };
    assert!(policy.invalid.is_some());
    let mut services = intake(Kind::Service);
    let service = |version: &str, port: u32| {
        json!({"metadata": {"name": "s", "namespace": "shop", "resourceVersion": version},
               "spec": {"clusterIPs": ["10.96.0.1"], "ports": [{"port": port}]}})
    };
    assert!(services.put("v1", service("1", 80)).unwrap().change.is_some());
    let refused = services.put("v1", service("2", 70000)).unwrap();
    assert!(refused.change.is_none());
    assert_eq!(refused.diagnostics[0].effect, LAST_GOOD);
}

#[test]
fn policies_are_read_under_every_served_version() {
    for version in crate::api::istio::security::VERSIONS {
        let object = json!({"metadata": {"name": "p", "namespace": "shop", "resourceVersion": "1"},
                            "spec": {"mtls": {"mode": "STRICT"}}});
        let taken = intake(Kind::PeerAuthentication).put(version, object).unwrap();
        assert_eq!(taken.diagnostics, [], "{version}");
    }
}
