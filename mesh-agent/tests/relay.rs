//! The CLI's way into an agent's container: the relay as a process, spoken to over its standard streams as the API
//! server would, and `install` as a user runs it.
#![expect(clippy::unwrap_used, reason = "a helper of a test may fail the test")]

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use mesh_agent::admin::{Client, ClientError, Dial, DialError, Dialling, Stream, Version};

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mesh-agent"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("NODEMESH_")) {
        command.env_remove(name);
    }
    command
}

/// Runs the relay as `pods/exec` does.
struct Relay {
    socket: PathBuf,
}

impl Dial for Relay {
    fn dial(&self) -> Dialling<'_> {
        let start = async {
            let mut command = tokio::process::Command::from(program());
            command.arg("admin-relay").arg("--admin-socket").arg(&self.socket).kill_on_drop(true);
            let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
            let (output, input) = (child.stdout.take().unwrap(), child.stdin.take().unwrap());
            tokio::spawn(async move { child.wait().await });
            Ok::<Box<dyn Stream>, DialError>(Box::new(tokio::io::join(output, input)))
        };
        Box::pin(start)
    }

    fn place(&self) -> String {
        "node a (pod b)".to_owned()
    }
}

/// Answers one question with these bytes, in one write and without closing.
fn scripted(socket: &Path, answer: &'static [u8]) -> std::thread::JoinHandle<()> {
    let listener = UnixListener::bind(socket).unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = [0; 4096];
        assert!(stream.read(&mut head).unwrap() > 0);
        stream.write_all(answer).unwrap();
        // The relay passes the caller's end on: without it this would wait for ever.
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
    })
}

/// An answer has no line's end; a relay that buffers lines would keep it back.
#[tokio::test]
async fn an_answer_comes_through_the_relay_at_once_and_the_end_reaches_the_agent() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("admin.sock");
    let agent = scripted(&socket, b"HTTP/1.1 200 OK\r\ncontent-length: 17\r\n\r\n{\"version\":\"9.9\"}");
    let version: Version = Client::through(Arc::new(Relay { socket })).get("version").await.unwrap();
    assert_eq!(version.version, "9.9");
    tokio::task::spawn_blocking(|| agent.join().unwrap()).await.unwrap();
}

#[tokio::test]
async fn a_container_whose_agent_does_not_answer_is_named_with_its_node() {
    let dir = tempfile::tempdir().unwrap();
    let client = Client::through(Arc::new(Relay { socket: dir.path().join("none.sock") }));
    let error = client.get::<Version>("version").await.unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("node a (pod b)") && text.contains("none.sock"), "{text}");
}

fn install(words: &[&str]) -> Output {
    program().arg("install").args(words).output().unwrap()
}

/// The tutorial's IstioOperator, as a user has it on disk.
#[test]
fn install_takes_an_istio_operator_and_says_what_has_no_effect() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("operator.yaml");
    let text = "apiVersion: install.istio.io/v1alpha1\nkind: IstioOperator\nmetadata: {name: control-plane}\nspec:\n  meshConfig:\n    \
                defaultProviders: {tracing: [zipkin]}\n    extensionProviders:\n    - name: zipkin\n      zipkin: {service: z.istio-system.svc, port: 9411}\n";
    std::fs::write(&file, text).unwrap();
    let output = install(&["-f", file.to_str().unwrap()]);
    let (printed, said) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.lines().count() == 2 && said.contains("spec.meshConfig.extensionProviders: "), "{said}");
    assert!(printed.contains("port: 9411") && !printed.contains("kind: CustomResourceDefinition"));
    let crds = install(&["--crds-only"]);
    assert!(String::from_utf8(crds.stdout).unwrap().contains("authorizationpolicies.security.istio.io"));
}

#[test]
fn install_refuses_what_it_cannot_use_with_usage() {
    for (words, part) in [
        (&["--set", "colour=red"][..], "there are namespace, image"),
        (&["--image", "a b"], "image: "),
        (&["-f", "/nowhere/file"], "/nowhere/file"),
    ] {
        let output = install(words);
        assert_eq!(output.status.code(), Some(2), "{words:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains(part), "{said}");
        assert!(output.stdout.is_empty(), "half an installation was printed");
    }
}

/// Called by kubectl, the program names itself as it was called; the cluster is meant even without a word about it.
#[test]
fn as_a_kubectl_plugin_it_asks_the_cluster() {
    let dir = tempfile::tempdir().unwrap();
    let plugin = dir.path().join("kubectl-nodemesh");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_mesh-agent"), &plugin).unwrap();
    let run = |words: &[&str]| {
        let mut command = Command::new(&plugin);
        // Nobody listens on port 1 of the loopback.
        let config = dir.path().join("config");
        let text = "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}]\n\
                    contexts: [{name: c, context: {cluster: c, user: u}}]\nusers: [{name: u, user: {}}]\n";
        std::fs::write(&config, text).unwrap();
        command.env("KUBECONFIG", config).env_remove("NODEMESH_ADMIN_SOCKET").args(words).output().unwrap()
    };
    let help = String::from_utf8(run(&["--help"]).stdout).unwrap();
    assert!(help.contains("Usage: kubectl nodemesh"), "{help}");
    let status = run(&["status"]);
    let said = String::from_utf8(status.stderr).unwrap();
    assert_eq!(status.status.code(), Some(3), "{said}");
    assert!(said.contains("cannot ask the cluster") && said.contains("kubectl reach it"), "{said}");
}
