use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::template::names;
use super::values::{MESH_CONFIG, all};
use super::*;

fn documents(text: &str) -> Vec<Value> {
    let all: Vec<Value> = serde_saphyr::from_multiple(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    all.into_iter().filter(|one| !one.is_null()).collect()
}

fn object<'a>(all: &'a [Value], kind: &str, name: &str) -> &'a Value {
    all.iter()
        .find(|one| one["kind"] == kind && one["metadata"]["name"] == name)
        .unwrap_or_else(|| panic!("no {kind} {name}"))
}

/// What is committed under deploy/ is what the templates say; `cargo xtask manifests` writes it.
#[test]
fn the_tree_is_up_to_date() {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    let mut stale = Vec::new();
    for file in tree().unwrap() {
        let path = deploy.join(&file.path);
        if std::fs::read_to_string(&path).ok().as_deref() != Some(file.text.as_str()) {
            stale.push(file.path);
        }
    }
    assert!(stale.is_empty(), "run `cargo xtask manifests`: {stale:#?}");
}

#[test]
fn every_name_in_a_template_is_a_value_and_every_value_is_used() {
    let mut used: Vec<&str> = PIECES.iter().flat_map(|piece| names(piece.text)).collect();
    used.sort_unstable();
    used.dedup();
    let mut known: Vec<&str> = all().map(|known| known.key).chain([MESH_CONFIG]).collect();
    known.sort_unstable();
    assert_eq!(used, known);
}

/// What is installed twice over must not differ: every object of `install` is one of the base's files.
#[test]
fn install_prints_well_formed_objects_each_once() {
    let all = documents(&render(&Values::default()));
    let mut seen = BTreeMap::new();
    for one in &all {
        let id = (one["kind"].to_string(), one["metadata"]["name"].to_string());
        assert_eq!(seen.insert(id.clone(), ()), None, "{id:?} twice");
        assert!(one["apiVersion"].is_string(), "{id:?}");
        assert_eq!(one["metadata"]["labels"][PART_OF_LABEL], PART_OF, "{id:?}");
    }
    assert!(all.len() > 15, "{}", all.len());
}

#[test]
fn values_reach_every_object() {
    let mut values = Values::default();
    values.set("namespace", "mesh").unwrap();
    values.set_text("image=registry.example/agent:7").unwrap();
    values.set("trust-domain", "corp.example").unwrap();
    let text = render(&values);
    assert!(!text.contains(DEFAULT_NAMESPACE) && !text.contains("${"), "{text}");
    let all = documents(&text);
    for one in all.iter().filter(|one| one["metadata"]["namespace"].is_string()) {
        assert_eq!(one["metadata"]["namespace"], "mesh");
    }
    let agent = object(&all, "DaemonSet", AGENT);
    let container = &agent["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["image"], "registry.example/agent:7");
    let env = container["env"].as_array().unwrap();
    let value = |name: &str| env.iter().find(|one| one["name"] == name).unwrap()["value"].clone();
    assert_eq!(value("NODEMESH_TRUST_DOMAIN"), "corp.example");
    assert_eq!(value("NODEMESH_CA_ADDRESS"), "https://nodemesh-controller.mesh.svc:15012");
}

#[test]
fn a_value_that_would_change_the_yaml_is_refused_by_name() {
    let mut values = Values::default();
    for (text, part) in [
        ("image=a\nhostIPC: true", "image: "),
        ("image=a b", "image: "),
        ("image=\"x", "image: "),
        ("image=", "image: "),
        ("namespace=Mesh", "namespace: "),
        ("controller-replicas=two", "controller-replicas: "),
        ("cni-bin-dir=bin", "cni-bin-dir: "),
        ("colour=red", "there is no such value"),
        ("image", "write KEY=VALUE"),
    ] {
        let error = values.set_text(text).unwrap_err().to_string();
        assert!(error.contains(part), "{text:?}: {error}");
    }
    assert_eq!(render(&values), render(&Values::default()));
}

/// The agent is no privileged container: what it may do is written out, and the others may do nothing.
#[test]
fn the_containers_have_the_least_that_they_need() {
    let all = documents(&render(&Values::default()));
    let pod = |kind: &str, name: &str| object(&all, kind, name)["spec"]["template"]["spec"].clone();
    for (kind, name, capabilities) in [
        ("DaemonSet", AGENT, vec!["NET_ADMIN", "SYS_ADMIN", "SYS_PTRACE"]),
        ("DaemonSet", HOLDER, vec![]),
        ("Deployment", CONTROLLER, vec![]),
    ] {
        let pod = pod(kind, name);
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault", "{name}");
        for container in pod["containers"].as_array().unwrap() {
            let security = &container["securityContext"];
            assert_eq!(security["privileged"], false, "{name}");
            assert_eq!(security["allowPrivilegeEscalation"], false, "{name}");
            assert_eq!(security["readOnlyRootFilesystem"], true, "{name}");
            assert_eq!(security["capabilities"]["drop"], serde_json::json!(["ALL"]), "{name}");
            let added: Vec<&str> = security["capabilities"]["add"]
                .as_array()
                .map(|list| list.iter().filter_map(Value::as_str).collect())
                .unwrap_or_default();
            assert_eq!(added, capabilities, "{name}");
        }
    }
    assert_eq!(pod("Deployment", CONTROLLER)["securityContext"]["runAsNonRoot"], true);
}

/// A second agent starts beside the first one: a port of the node's that is declared would keep it away.
#[test]
fn the_agents_rollout_lets_two_overlap() {
    let all = documents(&render(&Values::default()));
    let agent = object(&all, "DaemonSet", AGENT);
    let update = &agent["spec"]["updateStrategy"]["rollingUpdate"];
    assert_eq!((&update["maxSurge"], &update["maxUnavailable"]), (&Value::from(1), &Value::from(0)));
    let pod = &agent["spec"]["template"]["spec"];
    assert_eq!(pod["hostNetwork"], true);
    assert!(pod["containers"][0].get("ports").is_none());
    assert!(
        pod["terminationGracePeriodSeconds"].as_u64().unwrap()
            > crate::config::DEFAULT_DRAIN_DEADLINE.as_secs()
    );
}

#[test]
fn no_rule_reads_all_secrets_or_writes_what_is_not_the_meshs_own() {
    let all = documents(&render(&Values::default()));
    for role in all.iter().filter(|one| matches!(one["kind"].as_str(), Some("ClusterRole" | "Role"))) {
        for rule in role["rules"].as_array().unwrap() {
            let list = |field: &str| -> Vec<&str> {
                rule[field].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
            };
            let (resources, verbs) = (list("resources"), list("verbs"));
            assert!(!verbs.contains(&"*") && !resources.contains(&"*"), "{rule}");
            if resources.contains(&"secrets") && verbs != ["create"] {
                assert_eq!(list("resourceNames"), ["nodemesh-ca"], "{rule}");
            }
            if role["metadata"]["name"] == AGENT {
                assert!(verbs.iter().all(|verb| matches!(*verb, "get" | "list" | "watch")), "{rule}");
            }
        }
    }
}

/// The API server must hand an object on as it was written: a dropped condition would widen a policy.
#[test]
fn crds_serve_istios_versions_and_keep_what_they_do_not_know() {
    let all = documents(&render_crds().unwrap());
    let names: Vec<&str> = all.iter().filter_map(|one| one["metadata"]["name"].as_str()).collect();
    assert_eq!(
        names,
        [
            "authorizationpolicies.security.istio.io",
            "destinationrules.networking.istio.io",
            "peerauthentications.security.istio.io",
            "serviceentries.networking.istio.io",
            "virtualservices.networking.istio.io",
            "workloadentries.networking.istio.io",
        ]
    );
    for crd in &all {
        let versions = crd["spec"]["versions"].as_array().unwrap();
        let served: Vec<&str> = versions.iter().filter_map(|one| one["name"].as_str()).collect();
        let expected: &[&str] = match crd["spec"]["group"].as_str() {
            Some("networking.istio.io") => &["v1", "v1beta1", "v1alpha3"],
            _ => &["v1", "v1beta1"],
        };
        assert_eq!(served, expected);
        let stored = versions.iter().filter(|one| one["storage"] == true).count();
        assert_eq!((stored, &versions[0]["storage"]), (1, &serde_json::json!(true)));
        for version in versions {
            assert!(version["subresources"]["status"].is_object());
            let spec = &version["schema"]["openAPIV3Schema"]["properties"]["spec"];
            assert_eq!(spec["x-kubernetes-preserve-unknown-fields"], true);
        }
    }
    let source = &all[0]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
        ["rules"]["items"]["properties"]["from"]["items"]["properties"]["source"];
    assert_eq!(source["x-kubernetes-preserve-unknown-fields"], true);
}

/// The guide's IstioOperator becomes the mesh's settings; what of it has no effect yet is named.
#[test]
fn an_istio_operator_is_taken_for_its_mesh_config() {
    let text = "apiVersion: install.istio.io/v1alpha1
kind: IstioOperator
metadata: {name: control-plane}
spec:
  profile: ambient
  meshConfig:
    trustDomain: corp.example
    accessLogFile: /dev/stdout
    defaultProviders: {tracing: [zipkin]}
    extensionProviders:
    - name: zipkin
      zipkin: {service: zipkin.istio-system.svc.cluster.local, port: 9411}
    outboundTrafficPolicy: {mode: REGISTRY_ONLY}
    colour: red
";
    let config = MeshConfig::parse(text).unwrap();
    let fields: Vec<&str> = config.warnings.iter().filter_map(|warning| warning.split(": ").next()).collect();
    assert_eq!(
        fields,
        [
            "spec.profile",
            "spec.meshConfig.colour",
            "spec.meshConfig.defaultProviders",
            "spec.meshConfig.extensionProviders",
            "spec.meshConfig.outboundTrafficPolicy",
        ]
    );
    assert_eq!(config.text("trustDomain"), Some("corp.example"));
    let mut values = Values::default();
    values.set_mesh_config(config.yaml().unwrap());
    let all = documents(&render(&values));
    let inner = object(&all, "ConfigMap", "nodemesh")["data"]["mesh"].as_str().unwrap().to_owned();
    let inner = &documents(&inner)[0];
    assert_eq!(inner["extensionProviders"][0]["zipkin"]["port"], 9411);
    assert_eq!(inner["outboundTrafficPolicy"]["mode"], "REGISTRY_ONLY");
}

#[test]
fn a_mesh_config_file_that_is_none_is_refused() {
    for (text, part) in [
        ("a: [", "not YAML"),
        ("kind: Pod", "kind: `Pod`"),
        ("kind: IstioOperator\nspec: {meshConfig: [1]}", "spec.meshConfig: is no map"),
        ("trustDomain: 'a b'", "trustDomain: "),
        ("{}\n---\n{}", "2 documents"),
    ] {
        let error = MeshConfig::parse(text).unwrap_err().to_string();
        assert!(error.contains(part), "{text:?}: {error}");
    }
}
