//! The built binary, as scripts use it: exit codes, output formats, settings. The agent behind the socket is
//! scripted; the socket, the HTTP on it and the process are real.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a helper of a test may fail the test")]

use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use mesh_agent::admin::{
    AdminServer, AdminSource, CertView, Check, ConnView, ExplainError, ExplainQuery, Explanation, PolicyView,
    RoutesView, ServiceView, State, Status, Takeover, WorkloadView,
};
use mesh_agent::observe::Metrics;
use serde::Deserialize;

#[derive(Clone, Deserialize)]
struct Scripted {
    status: Status,
    checks: Vec<Check>,
    workloads: Vec<WorkloadView>,
    services: Vec<ServiceView>,
    policies: Vec<PolicyView>,
    certificates: Vec<CertView>,
    connections: Vec<ConnView>,
    denied: Explanation,
    allowed: Explanation,
    routes: RoutesView,
}

impl AdminSource for Scripted {
    fn status(&self) -> Status {
        self.status.clone()
    }

    fn checks(&self) -> Vec<Check> {
        self.checks.clone()
    }

    fn workloads(&self) -> Vec<WorkloadView> {
        self.workloads.clone()
    }

    fn services(&self) -> Vec<ServiceView> {
        self.services.clone()
    }

    fn policies(&self) -> Vec<PolicyView> {
        self.policies.clone()
    }

    fn certificates(&self) -> Vec<CertView> {
        self.certificates.clone()
    }

    fn connections(&self) -> Vec<ConnView> {
        self.connections.clone()
    }

    fn explain(&self, query: &ExplainQuery) -> Result<Explanation, ExplainError> {
        match query.source.as_str() {
            "shop/frontend-0" => Ok(self.denied.clone()),
            "192.0.2.7" => Ok(self.allowed.clone()),
            other => Err(ExplainError::UnknownSource(other.to_owned())),
        }
    }

    fn routes(&self, query: &ExplainQuery) -> Result<RoutesView, ExplainError> {
        match query.source.as_str() {
            "shop/frontend-0" => Ok(self.routes.clone()),
            other => Err(ExplainError::UnknownSource(other.to_owned())),
        }
    }

    fn missing(&self) -> Vec<String> {
        Vec::new()
    }
}

fn views() -> Scripted {
    serde_json::from_str(include_str!("data/views.json")).unwrap()
}

/// An agent that answers until dropped.
struct Agent {
    dir: tempfile::TempDir,
    end: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Agent {
    fn start(source: Scripted) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("admin.sock");
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let (bound, ready) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let server =
                    AdminServer::bind(&socket, Takeover::Never, Arc::new(source), Metrics::new()).unwrap();
                bound.send(()).unwrap();
                tokio::select! {
                    _never = server.run() => {}
                    _dropped = ended => {}
                }
            });
        });
        ready.recv().unwrap();
        Self { dir, end: Some(end), thread: Some(thread) }
    }

    fn run(&self, words: &[&str]) -> Output {
        mesh_agent(&self.dir.path().join("admin.sock"), words)
    }

    fn code(&self, words: &[&str]) -> i32 {
        let output = self.run(words);
        output.status.code().unwrap_or_else(|| panic!("{words:?}: {output:?}"))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.end.take());
        self.thread.take().map(std::thread::JoinHandle::join);
    }
}

fn clean() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mesh-agent"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("NODEMESH_")) {
        command.env_remove(name);
    }
    command
}

fn mesh_agent(socket: &Path, words: &[&str]) -> Output {
    clean().env("NODEMESH_ADMIN_SOCKET", socket).args(words).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

const LISTS: [&str; 5] = ["workloads", "services", "policies", "certs", "connections"];

#[test]
fn good_answers_end_with_0_in_every_format() {
    let agent = Agent::start(views());
    for verb in ["status", "version"].iter().chain(&LISTS) {
        for format in ["table", "wide", "json", "yaml"] {
            let output = agent.run(&[verb, "-o", format]);
            assert_eq!(output.status.code(), Some(0), "{verb} -o {format}: {}", text(&output.stderr));
            assert!(!output.stdout.is_empty() && output.stderr.is_empty(), "{verb} -o {format}");
            assert!(!output.stdout.contains(&0x1b), "colour without a terminal: {verb} -o {format}");
        }
    }
    let json = agent.run(&["workloads", "-o", "json"]);
    assert_eq!(serde_json::from_slice::<Vec<WorkloadView>>(&json.stdout).unwrap(), views().workloads);
    let yaml = agent.run(&["services", "-o", "yaml"]);
    assert_eq!(serde_saphyr::from_str::<Vec<ServiceView>>(&text(&yaml.stdout)).unwrap(), views().services);
}

#[test]
fn lists_can_be_narrowed() {
    let agent = Agent::start(views());
    let table = text(&agent.run(&["workloads", "-n", "legacy"]).stdout);
    assert!(table.contains("batch-0") && !table.contains("frontend-0"), "{table}");
    let table = text(&agent.run(&["connections", "--workload", "shop/backend-0"]).stdout);
    assert_eq!(table.lines().count(), 2, "{table}");
    let table = text(&agent.run(&["connections", "-w", "2001:db8::7"]).stdout);
    assert_eq!(table.lines().count(), 2, "{table}");
}

#[test]
fn explain_ends_with_0_for_yes_and_1_for_no() {
    let agent = Agent::start(views());
    let denied = agent.run(&["explain", "shop/frontend-0", "shop/reviews:9080"]);
    assert_eq!(denied.status.code(), Some(1));
    let story = text(&denied.stdout);
    assert!(story.contains("DENIED by AuthorizationPolicy shop/deny-frontend, rule 0"), "{story}");
    assert_eq!(agent.code(&["explain", "192.0.2.7", "10.1.0.3:5432"]), 0);
    let unknown = agent.run(&["explain", "shop/nobody", "shop/reviews:9080"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(text(&unknown.stderr).contains("no workload `shop/nobody`"));
}

#[test]
fn an_agent_that_is_not_ready_is_a_no() {
    let mut source = views();
    source.status.state = State::Starting;
    source.status.missing = vec!["capture is not attached".to_owned()];
    let agent = Agent::start(source);
    let output = agent.run(&["status"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains("capture is not attached"));
}

#[test]
fn a_failed_check_of_the_agent_is_a_no() {
    let mut source = views();
    source.checks.push(Check::fail("agent", "source", "stale for 5 min", "look at the manifests"));
    let agent = Agent::start(source);
    let output = agent.run(&["check"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stdout));
    assert!(text(&output.stdout).contains("-> look at the manifests"));
    let checks: Vec<Check> = serde_json::from_slice(&agent.run(&["check", "-o", "json"]).stdout).unwrap();
    assert!(
        checks.iter().any(|check| check.group == "machine")
            && checks.iter().any(|check| check.name == "source")
    );
}

#[test]
fn wrong_usage_ends_with_2() {
    let agent = Agent::start(views());
    for words in [
        &["frobnicate"][..],
        &[],
        &["status", "--nope"],
        &["status", "-o", "xml"],
        &["explain", "only-one"],
        &["explain", "a", "b:0"],
        &["explain", "a b", "c"],
        &["explain", "", "c"],
        &["run", "--workers", "many"],
        &["run", "--metrics", "15020"],
        &["completion", "tcsh"],
    ] {
        let output = agent.run(words);
        assert_eq!(output.status.code(), Some(2), "{words:?}: {}", text(&output.stderr));
        assert!(!output.stderr.is_empty(), "{words:?} says nothing");
    }
}

#[test]
fn an_agent_that_cannot_be_reached_ends_with_3_and_one_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let absent = dir.path().join("none.sock");
    let dead = dir.path().join("dead.sock");
    drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
    for (socket, remedy) in [(&absent, "--admin-socket"), (&dead, "start it again")] {
        for verb in ["status"].iter().chain(&LISTS) {
            let output = mesh_agent(socket, &[verb]);
            assert_eq!(output.status.code(), Some(3), "{verb}");
            let error = text(&output.stderr);
            assert_eq!(error.lines().count(), 1, "{error}");
            assert!(error.contains(remedy) && error.contains(&*socket.to_string_lossy()), "{error}");
            assert!(output.stdout.is_empty());
        }
        assert_eq!(mesh_agent(socket, &["explain", "a", "b:80"]).status.code(), Some(3));
        let version = mesh_agent(socket, &["version"]);
        assert_eq!(version.status.code(), Some(3));
        assert!(text(&version.stdout).contains(env!("CARGO_PKG_VERSION")), "its own version is known");
    }
}

#[test]
fn what_needs_no_agent_works_without_one() {
    let nowhere = Path::new("/nonexistent/admin.sock");
    assert_eq!(mesh_agent(nowhere, &["version", "--client"]).status.code(), Some(0));
    assert_eq!(mesh_agent(nowhere, &["--help"]).status.code(), Some(0));
    for shell in ["bash", "zsh", "fish"] {
        let output = mesh_agent(nowhere, &["completion", shell]);
        assert_eq!(output.status.code(), Some(0));
        assert!(text(&output.stdout).contains("connections"), "{shell}");
    }
    let checks = mesh_agent(nowhere, &["check", "--pre", "-o", "json"]);
    let checks: Vec<Check> = serde_json::from_slice(&checks.stdout).unwrap();
    assert!(checks.iter().all(|check| check.group == "machine") && checks.len() >= 7);
}

#[test]
fn a_flag_beats_the_environment_and_the_environment_beats_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("agent.yaml");
    // The only setting that `run` checks against what it finds, so its error shows which source won.
    std::fs::write(&file, "node: a\nca-dir: /ca\nmanifests: /from-file\n").unwrap();
    let run = |env: Option<&str>, flag: Option<&str>| {
        let mut command = clean();
        command.args(["run", "--config"]).arg(&file);
        command.envs(env.map(|value| ("NODEMESH_MANIFESTS", value)));
        command.args(flag.into_iter().flat_map(|value| ["--manifests", value]));
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        text(&output.stderr)
    };
    assert!(run(None, None).contains("manifests: /from-file is not a directory"));
    assert!(run(Some("/from-env"), None).contains("manifests: /from-env is not a directory"));
    assert!(run(Some("/from-env"), Some("/from-flag")).contains("manifests: /from-flag is not a directory"));
    let config = clean().env("NODEMESH_CONFIG", &file).arg("run").output().unwrap();
    assert!(text(&config.stderr).contains("/from-file"), "the file itself can be named by the environment");
}

#[test]
fn run_names_the_setting_that_is_missing_and_the_key_that_is_unknown() {
    let output = clean().arg("run").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let error = text(&output.stderr);
    assert!(error.contains("node: not set") && error.contains("NODEMESH_NODE"), "{error}");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("agent.yaml");
    std::fs::write(&file, "nodes: a\n").unwrap();
    let output = clean().args(["run", "--config"]).arg(&file).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("nodes"), "{}", text(&output.stderr));
}

#[test]
fn routes_are_listed_in_order_and_a_folder_is_analyzed_without_an_agent() {
    let agent = Agent::start(views());
    let told = agent.run(&["routes", "shop/frontend-0", "shop/reviews:9080"]);
    assert!(told.status.success());
    let story = text(&told.stdout);
    let first = story.find("VirtualService shop/reviews http[0]").unwrap();
    assert!(first < story.find("VirtualService shop/reviews http[1]").unwrap(), "{story}");

    let folder = tempfile::tempdir().unwrap();
    let write = |text: &str| std::fs::write(folder.path().join("a.yaml"), text).unwrap();
    let ask = || agent.run(&["analyze", folder.path().to_str().unwrap()]);
    write("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n");
    let good = ask();
    assert_eq!((good.status.code(), text(&good.stdout).starts_with("No findings")), (Some(0), true));
    write(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: a, namespace: shop}\nspec: {hosts: [b], http: [{timeout: soon}]}\n",
    );
    let bad = ask();
    assert_eq!(bad.status.code(), Some(1));
    let story = text(&bad.stdout);
    assert!(story.contains("spec.http[0].timeout") && story.contains("VirtualService shop/a"), "{story}");
}
