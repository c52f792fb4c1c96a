//! Where pods are by their own word (`istio-locality`), and what the mesh's settings make of it.
use std::collections::BTreeMap;

use anyhow::Result;
use mesh_tests::client::Session;
use mesh_tests::manifests::ServicePort;
use mesh_tests::{Agent, App, Lab, Pod, PodSpec, ServiceSpec, eventually};

use crate::shop::{PORT, SOON, TARGET};

const RULE: &str = "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web, namespace: default}
spec: {host: web, trafficPolicy: {outlierDetection: {}, loadBalancer: {simple: ROUND_ROBIN}}}
";

fn mesh(line: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: nodemesh, namespace: nodemesh-system}}\ndata:\n  mesh: |\n    {line}\n"
    )
}

/// A near endpoint on the other node and a far one on the client's own: labels count, not nodes. Failover, shares and
/// neither, by the mesh's settings alone.
#[test]
fn the_mesh_s_settings_and_a_pod_s_label_say_what_is_near() -> Result<()> {
    let lab = Lab::two_nodes("locality")?;
    lab.manifests().namespace("default", true)?;
    let place = |name: &str, node: &str, place: &str| {
        let spec = PodSpec::new("default", name, node).label("app", "web").label("istio-locality", place);
        lab.pod(spec)
    };
    let client = lab.pod(PodSpec::new("default", "client", "node-a").label("istio-locality", "eu.a"))?;
    let mut servers: Vec<(App, Pod)> = Vec::new();
    for (name, node, locality) in [("near", "node-b", "eu.a"), ("far", "node-a", "us.b")] {
        let pod = place(name, node, locality)?;
        servers.push((App::http(&pod, TARGET)?, pod));
    }
    let agents = lab.agents()?;
    let vips = lab.vips();
    lab.manifests().service(&ServiceSpec {
        namespace: "default",
        name: "web",
        vips: vips.to_vec(),
        ports: vec![ServicePort { name: "p", port: PORT, target: TARGET, app_protocol: Some("http") }],
        pods: servers.iter().map(|(_, pod)| pod).collect(),
    })?;
    let captured = |agent: &Agent, count: usize| -> Result<bool> {
        let all = agent.ask(&["workloads"])?;
        let all = all.as_array().map(Vec::as_slice).unwrap_or_default();
        Ok(all.iter().filter(|one| one["enrolment"] == "captured").count() == count)
    };
    eventually("the pods to be captured", SOON, || Ok(captured(&agents[0], 2)? && captured(&agents[1], 1)?))?;
    let spread = || -> Result<BTreeMap<String, usize>> {
        let mut session = Session::new(client.connect((vips[0], PORT).into())?, "web")?;
        let mut found = BTreeMap::new();
        for _ in 0..20 {
            let pod = session.get("/")?.json()?["pod"].as_str().unwrap_or_default().to_owned();
            *found.entry(pod).or_default() += 1;
        }
        Ok(found)
    };
    let counts = |near: usize, far: usize| -> BTreeMap<String, usize> {
        [("near", near), ("far", far)]
            .into_iter()
            .filter(|(_, count)| *count > 0)
            .map(|(name, count)| (name.to_owned(), count))
            .collect()
    };
    // Without a rule nothing says which endpoints are ill, and both are used.
    eventually("the Service to be known", SOON, || Ok(spread().is_ok_and(|found| found.len() == 2)))?;
    for (name, text, expected) in [
        ("rule", RULE.to_owned(), counts(20, 0)),
        ("mesh", mesh("localityLbSetting: {enabled: false}"), counts(10, 10)),
        ("mesh", mesh("localityLbSetting: {distribute: [{from: eu/*, to: {us/b: 100}}]}"), counts(0, 20)),
        ("mesh", mesh("pathNormalization: {normalization: BASE}"), counts(20, 0)),
    ] {
        lab.manifests().put_text(name, &text)?;
        eventually(&format!("{expected:?} after {text}"), SOON, || Ok(spread()? == expected))?;
    }
    Ok(())
}
