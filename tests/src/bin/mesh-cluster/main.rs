//! `mesh-cluster`: what `cargo xtask cluster` becomes. Brings up the cluster that the tests use and leaves it up.
//!
//! Owns: the life of a cluster over commands. One process in the background (`hold`) is the owner of everything, as a
//! test is of its cluster: when it is asked to end it removes every trace, and when it was killed the next command does.
//! Never: knows what a cluster is made of. Also the first process of each node (`node-init`).
mod held;

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::held::Held;

const USAGE: &str = "usage: mesh-cluster [--name NAME] VERB

  up             bring up a cluster of two nodes and leave it up; nothing happens when it is up already
  down           take it down and remove every trace
  kubectl ...    kubectl of the cluster's version, as its admin

  --name NAME    one of several clusters (default: default)";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mesh-cluster: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[String]) -> Result<()> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (name, words) = match &words[..] {
        ["--name", name, rest @ ..] => (*name, rest),
        rest => ("default", rest),
    };
    if name.is_empty() || !name.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '-') {
        bail!("a cluster's name is made of letters, digits and dashes, not {name:?}");
    }
    let held = Held::new(name);
    match words {
        ["up"] => up(&held),
        ["down"] => held.end(),
        ["kubectl", arguments @ ..] => kubectl(&held, arguments),
        ["hold"] => held.hold(),
        ["node-init", node, state] => mesh_tests::cluster::node_init(node, Path::new(state)),
        [] | ["-h" | "--help"] => {
            println!("{USAGE}");
            Ok(())
        }
        other => bail!("`{}` is not known\n{USAGE}", other.join(" ")),
    }
}

fn up(held: &Held) -> Result<()> {
    if !held.is_up() {
        held.start()?;
    }
    let kubeconfig = held.kubeconfig();
    let option = held.option();
    println!(
        "\nKubernetes {} is up: two nodes, CoreDNS, nothing else.\n\n  \
         export KUBECONFIG={}\n  \
         cargo xtask cluster {option}kubectl get pods -A -o wide\n  \
         cargo xtask cluster {option}down\n\n\
         Image for pods of your own tests: {} (imagePullPolicy: Never; verbs: serve, echo, get, hold, resolve, sleep).\n\
         Logs of the control plane and of the nodes: {}",
        mesh_tests::cluster::version(),
        kubeconfig.display(),
        mesh_tests::cluster::TEST_APP,
        held.logs()?
    );
    Ok(())
}

fn kubectl(held: &Held, arguments: &[&str]) -> Result<()> {
    if !held.is_up() {
        bail!("no such cluster is up; run `cargo xtask cluster {}up`", held.option());
    }
    let mut kubectl = Command::new(mesh_tests::cluster::program("kubectl")?);
    kubectl.arg(format!("--kubeconfig={}", held.kubeconfig().display())).args(arguments);
    Err(kubectl.exec()).context("cannot start kubectl")
}
