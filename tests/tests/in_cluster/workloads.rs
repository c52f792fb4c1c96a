//! What pods do besides running: probes of every kind, Jobs that end, containers that run before the others, and those
//! that end and are started again. All pods are STRICT.
use anyhow::{Context, Result, ensure};
use mesh_tests::cluster::TEST_APP;
use serde_json::Value;

use crate::mesh::{Mesh, PodOf, SOON, namespace};

const NS: &str = "work";

fn manifests() -> String {
    let pod = PodOf { namespace: NS, node: "node-b", ..PodOf::default() };
    let times = "periodSeconds: 1, timeoutSeconds: 2, failureThreshold";
    let probe = |what: &str| {
        format!("readinessProbe: {{{what}, {times}: 2}}, livenessProbe: {{{what}, {times}: 5}},")
    };
    let probed = |name: &str, args: &str, what: &str| {
        PodOf {
            name,
            args,
            labels: &format!("app: {name}, probed: 'yes'"),
            of_container: &probe(what),
            ..pod
        }
        .yaml()
    };
    let service = |name: &str, spec: &str| {
        format!(
            "---\n{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: {NS}}}, spec: {{selector: \
             {{app: {name}}}, {spec}}}}}\n"
        )
    };
    [
        namespace(NS, true, &["app"]),
        format!(
            "---\n{{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {{name: default, \
             namespace: {NS}}}, spec: {{mtls: {{mode: STRICT}}}}}}\n"
        ),
        probed("http", "[serve]", "httpGet: {path: /healthz, port: 8080}"),
        probed("tcp", "[echo]", "tcpSocket: {port: 8080}"),
        probed("grpc", "[grpc, '9090']", "grpc: {port: 9090}"),
        // By its own address: a connection that the mesh captures, of a process that is none of the application's.
        probed("exec", "[serve]", "exec: {command: [nodemesh-test-app, get, 'http://exec:8080/healthz']}"),
        service("http", "ports: [{port: 80, targetPort: 8080}]"),
        // Known before the pod is ready, which it is by this very name.
        service("exec", "clusterIP: None, publishNotReadyAddresses: true, ports: [{port: 8080}]"),
    ]
    .concat()
}

/// Every probed pod becomes ready and stays so; its liveness probe restarts none.
pub(crate) fn probes(mesh: &Mesh) -> Result<()> {
    mesh.cluster.apply(&manifests())?;
    mesh.cluster.wait_ready(NS, "probed=yes", 4)?;
    mesh.wait_captured(NS, &["exec", "grpc", "http", "tcp"])?;
    // More than five liveness probes that fail would take.
    std::thread::sleep(std::time::Duration::from_secs(6));
    mesh.cluster.wait_ready(NS, "probed=yes", 4)?;
    for pod in mesh.cluster.pods(NS, "probed=yes")? {
        ensure!(restarts(&pod) == 0, "{} was restarted by its liveness probe", pod["metadata"]["name"]);
    }
    let log = mesh.kubectl("logs -n work grpc")?;
    ensure!(log.contains("health asked"), "nobody asked for the health by gRPC: {log}");
    Ok(())
}

fn restarts(pod: &Value) -> u64 {
    pod["status"]["containerStatuses"][0]["restartCount"].as_u64().unwrap_or(u64::MAX)
}

/// A Job's pod asks a STRICT pod of the other node, ends, and the Job is complete; nothing of the pod stays captured.
pub(crate) fn job(mesh: &Mesh) -> Result<()> {
    mesh.cluster.apply(&format!(
        "{{apiVersion: batch/v1, kind: Job, metadata: {{name: once, namespace: {NS}}}, spec: {{completions: 2, \
         parallelism: 2, backoffLimit: 0, template: {{spec: {{serviceAccountName: app, nodeName: node-a, \
         restartPolicy: Never, containers: [{{name: app, image: '{TEST_APP}', imagePullPolicy: Never, args: \
         [get, 'http://http/job']}}]}}}}}}}}"
    ))?;
    mesh.cluster.wait("the Job to be complete", SOON, || {
        let job =
            mesh.cluster.object(&format!("/apis/batch/v1/namespaces/{NS}/jobs/once"))?.context("no Job")?;
        ensure!(job["status"]["failed"].as_u64().unwrap_or(0) == 0, "a pod of the Job failed");
        Ok(job["status"]["succeeded"] == 2)
    })?;
    mesh.wait_captured(NS, &["exec", "grpc", "http", "tcp"])
}

/// A container that runs before the others, and one that stays beside them, ask a STRICT pod before the app starts.
pub(crate) fn init_containers(mesh: &Mesh) -> Result<()> {
    let container = |name: &str, more: &str, args: &str| {
        format!("{{name: {name}, image: '{TEST_APP}', imagePullPolicy: Never, {more} args: {args}}}")
    };
    let init = format!(
        "restartPolicy: Never, initContainers: [{}, {}, {}],",
        container("first", "", "[get, 'http://http/init']"),
        container("beside", "restartPolicy: Always,", "[echo, '7070']"),
        container("second", "", "[get, 'http://http/after-the-one-beside']"),
    );
    let pod = PodOf {
        namespace: NS,
        name: "with-init",
        node: "node-a",
        args: "[get, 'http://http/main']",
        more: &init,
        ..PodOf::default()
    };
    mesh.by_tunnel(&mesh.ip(NS, "http")?, 8080, || {
        mesh.cluster.apply(&pod.yaml())?;
        let path = format!("/api/v1/namespaces/{NS}/pods/with-init");
        mesh.cluster.wait("the pod with init containers to end", SOON, || {
            let pod = mesh.cluster.object(&path)?.context("no such pod")?;
            ensure!(pod["status"]["phase"] != "Failed", "it failed: {}", pod["status"]);
            Ok(pod["status"]["phase"] == "Succeeded")
        })?;
        Ok(())
    })
}

/// A container ends and starts again in the same sandbox: asked, asking and probed as before, still STRICT.
pub(crate) fn restart_in_place(mesh: &Mesh) -> Result<()> {
    let pod = || mesh.cluster.object(&format!("/api/v1/namespaces/{NS}/pods/http"))?.context("no such pod");
    let before = pod()?;
    mesh.app(NS, "exec", &["get", "http://http/quit"])?;
    mesh.cluster.wait("the container to be started again", SOON, || Ok(restarts(&pod()?) == 1))?;
    mesh.cluster.wait_ready(NS, "app=http", 1)?;
    ensure!(pod()?["status"]["podIP"] == before["status"]["podIP"], "the pod has another address");
    let client = PodOf {
        namespace: NS,
        name: "asks",
        node: "node-a",
        args: "[get, 'http://http/again']",
        more: "restartPolicy: Never,",
        ..PodOf::default()
    };
    mesh.by_tunnel(&mesh.ip(NS, "http")?, 8080, || {
        mesh.cluster.apply(&client.yaml())?;
        mesh.ended(NS, "asks").map(drop)
    })?;
    mesh.app(NS, "http", &["get", &format!("http://{}:8080/", mesh.ip(NS, "exec")?)])?;
    Ok(())
}
