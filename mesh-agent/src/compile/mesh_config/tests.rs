use super::super::fixture::compile;
use super::super::{Context, MeshSettings, Object, Origin, document, yaml};
use super::*;

fn config_map(mesh: &str) -> String {
    let indented: String = mesh.lines().map(|line| format!("    {line}\n")).collect();
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: nodemesh, namespace: nodemesh-system}}\n\
         data:\n  mesh: |\n{indented}"
    )
}

fn one(text: &str) -> (Option<MeshConfig>, Vec<Diagnostic>) {
    let mesh = MeshSettings::default();
    let context = Context { mesh: &mesh, source: "m.yaml:1", origin: Origin::File };
    let compiled = document(&context, &yaml(text).unwrap());
    let object = compiled.objects.into_iter().next().and_then(|(_, object)| match object {
        Object::MeshConfig(facts) => facts.config,
        other => panic!("{other:?}"),
    });
    (object, compiled.diagnostics)
}

#[test]
fn the_guides_istio_operator_is_accepted_and_its_fields_are_named_as_not_in_force() {
    let text = "apiVersion: install.istio.io/v1alpha1\nkind: IstioOperator\nmetadata:\n  name: control-plane\n\
                spec:\n  meshConfig:\n    defaultProviders:\n      tracing:\n      - zipkin\n    \
                extensionProviders:\n    - name: zipkin\n      zipkin:\n        \
                service: zipkin.istio-system.svc.cluster.local\n        port: 9411\n";
    let (config, found) = one(text);
    assert_eq!(found, []);
    let settings = settings(&config.unwrap(), &MeshSettings::default());
    let fields: Vec<_> = settings.iter().map(|one| (one.field, one.in_force)).collect();
    assert_eq!(fields, [("defaultProviders", false), ("extensionProviders", false)]);
    assert_eq!(settings[0].note, NOT_BUILT);
}

#[test]
fn a_config_map_with_every_field_is_read() {
    let (config, found) = one(&config_map(
        "trustDomain: example.org\nrootNamespace: istio-system\naccessLogFile: /dev/stdout\n\
         outboundTrafficPolicy: {mode: ALLOW_ANY}\ndefaultHttpRetryPolicy: {attempts: 2, perTryTimeout: 1s}\n\
         pathNormalization: {normalization: MERGE_SLASHES}\n\
         localityLbSetting: {enabled: true, failover: [{from: eu, to: us}]}",
    ));
    assert_eq!(found, []);
    let config = config.unwrap();
    assert_eq!(access_log(&config), Some(true));
    let shown = settings(&config, &MeshSettings::default());
    let in_force: Vec<_> = shown.iter().filter(|one| one.in_force).map(|one| one.field).collect();
    assert_eq!(
        in_force,
        [
            "rootNamespace",
            "accessLogFile",
            "outboundTrafficPolicy",
            "defaultHttpRetryPolicy",
            "pathNormalization",
            "localityLbSetting"
        ]
    );
    let trust = shown.iter().find(|one| one.field == "trustDomain").unwrap();
    assert!(trust.note.contains("restart"), "{}", trust.note);
    assert_eq!(trust.value, "example.org");
}

#[test]
fn a_wrong_value_refuses_the_whole_and_names_the_field() {
    for (text, field) in [
        ("outboundTrafficPolicy: {mode: ANY}", "data.mesh.outboundTrafficPolicy.mode"),
        ("trustDomain: 'a b'", "data.mesh.trustDomain"),
        ("rootNamespace: ''", "data.mesh.rootNamespace"),
        ("extensionProviders: [{name: a}]", "data.mesh.extensionProviders[0]"),
        ("extensionProviders: [{name: a, x: {}}, {name: a, x: {}}]", "data.mesh.extensionProviders[1].name"),
        (
            "localityLbSetting: {distribute: [{from: a, to: {b: 90}}]}",
            "data.mesh.localityLbSetting.distribute[0].to",
        ),
        ("defaultHttpRetryPolicy: {attempts: 1, retryOn: often}", "data.mesh.defaultHttpRetryPolicy.retryOn"),
        ("defaultHttpRetryPolicy: {perTryTimeout: soon}", "data.mesh.defaultHttpRetryPolicy.perTryTimeout"),
        ("localityLbSetting: {failover: [{from: a, to: a}]}", "data.mesh.localityLbSetting.failover[0]"),
        ("a: [", "data.mesh"),
    ] {
        let (config, found) = one(&config_map(text));
        assert_eq!(config, None, "{text}");
        assert!(found.iter().any(|one| one.field == field && !one.remedy.is_empty()), "{text}: {found:?}");
    }
}

#[test]
fn what_is_not_read_is_named_and_the_rest_holds() {
    let (config, found) = one(&config_map(
        "enableTracing: true\ntrustDomain: example.org\ndefaultProviders: {metrics: [nobody]}",
    ));
    assert_eq!(config.unwrap().trust_domain.as_deref(), Some("example.org"));
    let fields: Vec<_> = found.iter().map(|one| one.field.as_str()).collect();
    assert_eq!(fields, ["data.mesh.enableTracing", "data.mesh.defaultProviders.metrics[0]"]);
}

#[test]
fn an_empty_document_sets_nothing_and_another_config_map_is_none_of_the_meshs_business() {
    let (config, found) = one(&config_map("# nothing yet"));
    assert_eq!((config, found), (Some(MeshConfig::default()), vec![]));
    let other =
        compile("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: other, namespace: nodemesh-system}\n");
    assert!(other.objects.is_empty());
    assert!(other.diagnostics.iter().all(|found| found.severity == Severity::Info));
}

#[test]
fn a_deny_list_holds_though_the_settings_beside_it_are_broken() {
    let text = format!("{}  denied-identities: |\n    spiffe://a/ns/b/sa/c\n", config_map("a: ["));
    let compiled = compile(&text);
    let Some((_, Object::MeshConfig(facts))) = compiled.objects.first() else { panic!("{compiled:?}") };
    assert_eq!(facts.config, None);
    assert_eq!(*facts.denied, BTreeSet::from(["spiffe://a/ns/b/sa/c".parse().unwrap()]));
    assert_eq!(compiled.diagnostics[0].effect, "the settings before stay in force");
}
