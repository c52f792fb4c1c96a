//! PeerAuthentication: modes, their inheritance and ports, observed by who gets in and how bytes travel.
use anyhow::{Context, Result, ensure};
use mesh_tests::client;
use serde_json::{Value, json};

use crate::mesh::{Fate, OTHER_PORT, PORT};
use crate::steps::{Steps, policy};

/// What the modes at three levels and of one port come to, for the pod `far` and its ports 8080 and 8081, and for
/// the pod `near`, which no selector names.
struct Case {
    mesh: Option<&'static str>,
    namespace: Option<&'static str>,
    workload: Option<&'static str>,
    port_8081: Option<&'static str>,
    far: &'static str,
    far_8081: &'static str,
    near: &'static str,
}

fn objects(case: &Case) -> Vec<Value> {
    let mtls = |mode: &str| json!({"mtls": {"mode": mode}});
    let mut all = Vec::new();
    if let Some(mode) = case.mesh {
        all.push(policy("PeerAuthentication", "istio-system", "default", mtls(mode)));
    }
    if let Some(mode) = case.namespace {
        all.push(policy("PeerAuthentication", "shop", "default", mtls(mode)));
    }
    if case.workload.is_some() || case.port_8081.is_some() {
        let mut spec = json!({"selector": {"matchLabels": {"app": "far"}}});
        if let Some(mode) = case.workload {
            spec["mtls"] = json!({"mode": mode});
        }
        if let Some(mode) = case.port_8081 {
            spec["portLevelMtls"] = json!({"8081": {"mode": mode}});
        }
        all.push(policy("PeerAuthentication", "shop", "far", spec));
    }
    all
}

fn check(steps: &Steps, name: &str, case: &Case) -> Result<()> {
    let mesh = &steps.mesh;
    for (server, port, mode) in
        [(&mesh.far, PORT, case.far), (&mesh.far, OTHER_PORT, case.far_8081), (&mesh.near, PORT, case.near)]
    {
        let what = || format!("{name}: {}:{port} is {mode}", server.id());
        let plain = if mode == "STRICT" { Fate::Cut } else { Fate::Echoed };
        for to in server.both(port) {
            mesh.wait_fate(&mesh.stranger, to, plain).with_context(what)?;
            mesh.wait_fate(&mesh.client, to, Fate::Echoed).with_context(what)?;
        }
        if server.node() == mesh.client.node() {
            continue;
        }
        let mut stream = mesh.client.connect(server.v6(port))?;
        client::echo(&mut stream, b"path")?;
        let wanted = if mode == "DISABLE" { "plain" } else { "hbone" };
        let path = mesh.path_of(&stream, "node-a")?;
        ensure!(path.as_deref() == Some(wanted), "{}: the path is {path:?}", what());
    }
    Ok(())
}

const NONE: Case = Case {
    mesh: None,
    namespace: None,
    workload: None,
    port_8081: None,
    far: "PERMISSIVE",
    far_8081: "PERMISSIVE",
    near: "PERMISSIVE",
};

/// The narrowest level that says something counts, UNSET says nothing, and a port's own mode counts most.
#[test]
fn modes_are_inherited() -> Result<()> {
    let steps = Steps::new("PeerAuthentication")?;
    let (strict, permissive, disable, unset) =
        (Some("STRICT"), Some("PERMISSIVE"), Some("DISABLE"), Some("UNSET"));
    let all = |mode| Case { far: mode, far_8081: mode, near: mode, ..NONE };
    let cases = [
        ("nothing", NONE),
        ("the mesh", Case { mesh: strict, ..all("STRICT") }),
        ("the namespace over the mesh", Case { mesh: strict, namespace: permissive, ..NONE }),
        ("UNSET in the namespace", Case { mesh: strict, namespace: unset, ..all("STRICT") }),
        ("UNSET in the mesh", Case { mesh: unset, ..NONE }),
        (
            "the workload over the namespace",
            Case {
                namespace: strict,
                workload: disable,
                far: "DISABLE",
                far_8081: "DISABLE",
                near: "STRICT",
                ..NONE
            },
        ),
        ("UNSET at the workload", Case { namespace: strict, workload: unset, ..all("STRICT") }),
        ("a port over the workload", Case { workload: strict, port_8081: permissive, far: "STRICT", ..NONE }),
        ("a port alone", Case { port_8081: strict, far_8081: "STRICT", ..NONE }),
        (
            "a port over what is inherited",
            Case { mesh: strict, workload: unset, port_8081: disable, far_8081: "DISABLE", ..all("STRICT") },
        ),
        (
            "UNSET at a port",
            Case {
                namespace: permissive,
                workload: strict,
                port_8081: unset,
                far: "STRICT",
                far_8081: "STRICT",
                ..NONE
            },
        ),
    ];
    for (name, case) in &cases {
        steps.apply(&objects(case))?;
        check(&steps, name, case)?;
    }
    Ok(())
}
