//! The ways to install the mesh give one and the same: Helm's chart, the Kustomize base, `mesh-agent install`.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a helper of a test may fail the test")]

use std::collections::BTreeMap;
use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Objects by kind, namespace and name.
type Objects = BTreeMap<(String, String, String), Value>;

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

fn objects(yaml: &str) -> Objects {
    let all: Vec<Value> = serde_saphyr::from_multiple(yaml).unwrap_or_else(|error| panic!("{error}\n{yaml}"));
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let id = |one: &Value| {
        (text(&one["kind"]), text(&one["metadata"]["namespace"]), text(&one["metadata"]["name"]))
    };
    all.into_iter().filter(|one| !one.is_null()).map(|one| (id(&one), one)).collect()
}

fn run(command: &mut Command) -> String {
    let out = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

fn helm_template(arguments: &[&str]) -> Objects {
    let chart = deploy().join("helm/nodemesh");
    let mut command = Command::new(mesh_tests::helm::program().unwrap());
    // No cluster is asked; where it would keep its state is nobody's business here.
    // A Helm that was not released by its makers takes the cluster for an ancient one.
    command
        .env_remove("KUBECONFIG")
        .args(["template", "nodemesh", "--kube-version=1.31.0"])
        .arg(chart)
        .args(arguments);
    objects(&run(&mut command))
}

fn install(arguments: &[&str]) -> Objects {
    let agent = Path::new(env!("CARGO_BIN_EXE_mesh-demo")).with_file_name("mesh-agent");
    objects(&run(Command::new(agent).arg("install").args(arguments)))
}

/// Helm makes the namespace by itself (`--create-namespace`).
fn without_namespace(mut all: Objects) -> Objects {
    all.retain(|(kind, _, _), _| kind != "Namespace");
    all
}

#[track_caller]
fn assert_same(one: &Objects, other: &Objects) {
    assert_eq!(one.keys().collect::<Vec<_>>(), other.keys().collect::<Vec<_>>());
    for (id, object) in one {
        assert_eq!(object, &other[id], "{id:?}");
    }
}

#[test]
fn the_chart_and_the_kustomize_base_make_the_same_objects() {
    let base = run(Command::new("kubectl").arg("kustomize").arg(deploy().join("base")));
    let helm = helm_template(&["--namespace", "nodemesh-system"]);
    assert!(helm.len() > 15, "{}", helm.len());
    assert_same(&helm, &without_namespace(objects(&base)));
}

#[test]
fn the_charts_values_do_what_the_flags_of_install_do() {
    let config = "meshConfig.accessLogFile=/dev/stdout";
    let helm = helm_template(&[
        "--namespace=mesh",
        "--set=image=registry.example/agent:7",
        "--set=trustDomain=corp.example",
        "--set=controllerReplicas=3",
        "--set=logLevel=debug",
        "--set",
        config,
    ]);
    let file = env::temp_dir().join(format!("nodemesh-mesh-config-{}.yaml", std::process::id()));
    std::fs::write(&file, "accessLogFile: /dev/stdout\n").unwrap();
    let install = install(&[
        "--namespace=mesh",
        "--image=registry.example/agent:7",
        "--trust-domain=corp.example",
        "--set=controller-replicas=3",
        "--set=log-level=debug",
        "--file",
        file.to_str().unwrap(),
    ]);
    std::fs::remove_file(&file).unwrap();
    assert_same(&helm, &without_namespace(install));
}

/// Without NetworkPolicies the rest is the same.
#[test]
fn network_policies_can_be_left_out_of_the_chart() {
    let all = helm_template(&["--namespace=nodemesh-system"]);
    let fewer = helm_template(&["--namespace=nodemesh-system", "--set=networkPolicy=false"]);
    let policies = |(kind, _, _): &(String, String, String)| kind == "NetworkPolicy";
    assert!(all.keys().any(policies) && !fewer.keys().any(policies));
    assert_eq!(all.len(), fewer.len() + all.keys().filter(|id| policies(id)).count());
}
