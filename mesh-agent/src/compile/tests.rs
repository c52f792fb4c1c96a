use proptest::prelude::*;

use super::fixture::{compile, findings};
use super::*;

/// Istio configurations as people write them, of kinds that this version does not act on.
const NOT_YET: &[(&str, &str)] = &[
    ("networking.istio.io/v1alpha3", "Gateway"),
    ("networking.istio.io/v1", "Sidecar"),
    ("security.istio.io/v1beta1", "RequestAuthentication"),
    ("telemetry.istio.io/v1alpha1", "Telemetry"),
    ("gateway.networking.k8s.io/v1alpha2", "UDPRoute"),
];

#[test]
fn a_kind_that_is_not_built_yet_is_announced() {
    for (version, kind) in NOT_YET {
        let text = format!(
            "apiVersion: {version}\nkind: {kind}\nmetadata: {{name: a, namespace: shop}}\nspec: {{x: 1}}\n"
        );
        let compiled = compile(&text);
        assert!(compiled.objects.is_empty(), "{kind}");
        let [found] = compiled.diagnostics.as_slice() else { panic!("{kind}: {:?}", compiled.diagnostics) };
        assert_eq!(found.severity, Severity::Warning);
        assert_eq!(found.object, format!("{kind} shop/a"));
        assert!(found.message.contains("not supported by this version"), "{found}");
    }
}

/// YAML 1.1 would read these names as booleans.
#[test]
fn a_name_is_a_text_even_if_it_looks_like_a_boolean() {
    for name in ["n", "y", "on", "off", "yes", "no"] {
        let text = format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n");
        assert_eq!(&*compile(&text).objects[0].0.name, name);
    }
}

#[test]
fn kinds_that_are_none_of_the_meshs_business_are_no_warning() {
    let compiled = compile("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\n");
    assert_eq!(compiled.diagnostics[0].severity, Severity::Info);
}

#[test]
fn what_is_no_manifest_is_an_error() {
    for text in ["[1, 2]\n", "kind: Pod\n", "apiVersion: v1\n", "just text\n"] {
        let compiled = compile(text);
        assert!(compiled.objects.is_empty(), "{text}");
        assert!(compiled.diagnostics.iter().any(|d| d.severity == Severity::Error), "{text}");
    }
}

#[test]
fn a_list_is_its_items() {
    let compiled = compile(
        "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Namespace, metadata: {name: a}}\n- {apiVersion: v1, kind: Namespace, metadata: {name: b}}\n",
    );
    assert_eq!(compiled.objects.len(), 2);
}

#[test]
fn unknown_fields_of_other_kinds_are_warned_about_and_the_object_is_used() {
    let compiled = compile(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: shop}\nspec: {nodename: n1, containers: []}\nstatus: {x: y}\n",
    );
    assert_eq!(compiled.objects.len(), 1);
    let fields: Vec<_> = compiled.diagnostics.iter().map(|d| (d.severity, d.field.as_str())).collect();
    assert_eq!(fields, [(Severity::Warning, "spec.nodename")]);
}

#[test]
fn a_wrong_type_names_its_field_and_refuses_the_object() {
    let found = findings("apiVersion: v1\nkind: Pod\nmetadata: {name: p, labels: {version: 1}}\n");
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        found[0].starts_with("error: test.yaml:1: Pod default/p: metadata.labels.version: "),
        "{}",
        found[0]
    );
}

#[test]
fn an_unreadable_document_that_names_a_security_kind_fails_closed() {
    let mesh = MeshSettings::default();
    let context = Context { mesh: &mesh, source: "a.yaml:1", origin: Origin::File };
    let text = "kind: AuthorizationPolicy\nmetadata:\n  namespace: \"shop\"\nspec: [\n";
    let compiled = unreadable(&context, text);
    let [(_, Object::AuthorizationPolicy(policy))] = compiled.objects.as_slice() else {
        panic!("{compiled:?}")
    };
    assert!(policy.invalid.is_some());
    assert_eq!(policy.scope.namespace.as_deref(), Some("shop"));
    let everywhere = unreadable(&context, "kind: PeerAuthentication\nspec: [\n");
    let [(key, Object::PeerAuthentication(policy))] = everywhere.objects.as_slice() else {
        panic!("{everywhere:?}")
    };
    assert_eq!(
        (&*key.namespace, policy.selector.is_none(), policy.mode),
        ("istio-system", true, Some(MtlsMode::Strict))
    );
    assert!(unreadable(&context, "kind: VirtualService\nspec: [\n").objects.is_empty());
}

/// Every golden file with the model made of it.
#[test]
fn golden_files() {
    for (name, text) in [
        ("policies", include_str!("golden/policies.yaml")),
        ("shop", include_str!("golden/shop.yaml")),
        ("mistakes", include_str!("golden/mistakes.yaml")),
        ("guide", include_str!("golden/guide.yaml")),
        ("traffic", include_str!("golden/traffic.yaml")),
        ("connections", include_str!("golden/connections.yaml")),
    ] {
        let compiled = compile(text);
        let objects: Vec<_> =
            compiled.objects.iter().map(|(key, object)| (key.to_string(), object)).collect();
        let findings: Vec<_> = compiled.diagnostics.iter().map(ToString::to_string).collect();
        insta::with_settings!({ snapshot_path => "golden", prepend_module_to_snapshot => false, omit_expression => true }, {
            insta::assert_yaml_snapshot!(name, (objects, findings));
        });
    }
}

fn json() -> impl Strategy<Value = Value> {
    let keys = prop_oneof![
        Just("spec"),
        Just("rules"),
        Just("from"),
        Just("source"),
        Just("principals"),
        Just("to"),
        Just("when"),
        Just("key"),
        Just("values"),
        Just("selector"),
        Just("matchLabels"),
        Just("mtls"),
        Just("mode"),
        Just("targetRefs"),
        Just("ports"),
        Just("endpoints"),
        Just("addresses"),
        Just("metadata"),
        Just("labels"),
        Just("podIPs"),
        Just("status"),
        Just("ip"),
        Just("operation"),
        Just("items"),
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[*a/.:0-9]{0,6}".prop_map(Value::from),
        Just(Value::from("DENY")),
        Just(Value::from("STRICT")),
    ];
    leaf.prop_recursive(7, 48, 4, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            proptest::collection::btree_map(keys.clone().prop_map(str::to_owned), inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn compile_never_panics_and_a_security_object_never_vanishes(
        spec in json(),
        body in json(),
        kind in proptest::sample::select(vec![
            "AuthorizationPolicy", "PeerAuthentication", "Pod", "Service", "EndpointSlice", "Namespace", "Node", "List",
        ]),
        version in proptest::sample::select(vec!["security.istio.io/v1", "v1", "discovery.k8s.io/v1", "x/y/z"]),
    ) {
        let mut value = if body.is_object() { body } else { serde_json::json!({}) };
        value["apiVersion"] = version.into();
        value["kind"] = kind.into();
        value["spec"] = spec.clone();
        let mesh = MeshSettings::default();
        let compiled = document(&Context { mesh: &mesh, source: "p", origin: Origin::File }, &value);
        if matches!(kind, "AuthorizationPolicy" | "PeerAuthentication") {
            prop_assert_eq!(compiled.objects.len(), 1);
            // In force as written only if nothing was found wrong.
            let closed = match &compiled.objects[0].1 {
                Object::AuthorizationPolicy(policy) => policy.invalid.is_some(),
                Object::PeerAuthentication(policy) => policy.invalid.is_some(),
                _ => false,
            };
            let wrong = compiled.diagnostics.iter().any(|found| found.severity == Severity::Error);
            prop_assert_eq!(closed, wrong);
        }
        prop_assert_eq!(document(&Context { mesh: &mesh, source: "p", origin: Origin::File }, &value), compiled);
    }
}
