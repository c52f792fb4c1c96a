use super::*;

fn object(kind: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "security.istio.io/v1", "kind": kind,
        "metadata": {"name": "x", "namespace": "shop", "generation": 3, "resourceVersion": "77"},
        "spec": spec,
    })
}

fn judged(object: &Value) -> Wanted {
    wanted(&findings(&MeshSettings::default(), object), Some(3))
}

#[test]
fn a_good_object_is_accepted_a_broken_one_is_not_and_the_message_names_field_effect_and_remedy() {
    let good = judged(&object("PeerAuthentication", &json!({"mtls": {"mode": "STRICT"}})));
    assert_eq!((good.status, good.reason), ("True", "Accepted"));
    let broken = judged(&object("PeerAuthentication", &json!({"mtls": {"mode": "SOMETIMES"}})));
    assert_eq!((broken.status, broken.reason), ("False", "Invalid"));
    for words in ["spec.mtls.mode", "SOMETIMES", "STRICT holds in its scope"] {
        assert!(broken.message.contains(words), "{words}: {}", broken.message);
    }
}

#[test]
fn a_warning_is_accepted_and_told() {
    let rules = json!({"action": "DENY", "rules": []});
    let told = judged(&object("AuthorizationPolicy", &rules));
    let quiet = judged(&object("AuthorizationPolicy", &json!({"rules": [{}]})));
    assert_eq!(quiet.reason, "Accepted");
    assert_eq!(told.status, "True");
    assert!(told.reason == "AcceptedWithWarnings", "{told:?}");
}

#[test]
fn a_patch_keeps_the_conditions_of_others_and_the_time_of_the_last_change() {
    let mut object = object("PeerAuthentication", &json!({}));
    let foreign = json!({"type": "ZtunnelAccepted", "status": "True"});
    object["status"] = json!({"conditions": [foreign.clone()]});
    let first = patch(&object, &judged(&object), "2026-01-01T00:00:00Z");
    assert_eq!(first["status"]["conditions"][0], foreign);
    assert_eq!(first["status"]["conditions"][1]["type"], ACCEPTED);
    assert_eq!(first["metadata"]["resourceVersion"], "77", "written over nothing newer");

    object["status"] = first["status"].clone();
    assert_eq!(current(&object), Some(judged(&object).shown()), "the second look changes nothing");
    let again = Wanted { message: "other words".into(), ..judged(&object) };
    let second = patch(&object, &again, "2026-02-02T00:00:00Z");
    assert_eq!(second["status"]["conditions"][1]["lastTransitionTime"], "2026-01-01T00:00:00Z");
    let turned = Wanted { status: "False", ..again };
    let third = patch(&object, &turned, "2026-02-02T00:00:00Z");
    assert_eq!(third["status"]["conditions"][1]["lastTransitionTime"], "2026-02-02T00:00:00Z");
    assert_eq!(third["status"]["conditions"].as_array().unwrap().len(), 2);
}

#[test]
fn a_status_of_any_shape_never_changes_what_a_policy_means() {
    let mut object = object("PeerAuthentication", &json!({"mtls": {"mode": "STRICT"}}));
    object["status"] = json!("odd");
    assert_eq!(judged(&object).status, "True");
}

#[test]
fn long_texts_are_cut_at_a_character() {
    assert_eq!(cut("größer", 4), "gr\u{f6}");
    assert_eq!(cut("short", 100), "short");
}
