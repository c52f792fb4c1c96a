//! `mesh-conformance`: what `cargo xtask conformance` becomes. Gateway API's own conformance suite, unchanged, against the
//! mesh as it is shipped, on a real cluster.
//!
//! Owns: what is installed on the cluster for a run, what the suite is told that the mesh supports, and where its report
//! goes. Never: knows a test of the suite, or helps one to pass. Called by people and by CI.
mod image;
mod suite;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};
use mesh_tests::{Cluster, agent};

use crate::suite::Suite;

const SYSTEM: &str = "nodemesh-system";
const NODES: usize = 2;

const USAGE: &str = "usage: mesh-conformance [--run TEST] [--report FILE] [--stay] [--without-mesh]

  --run TEST       one test of the suite, by its name; no report is written unless a file is named
  --report FILE    where the suite's report goes
  --stay           leave the cluster up after the suite until Enter
  --without-mesh   the same without a mesh: what the suite can tell apart";

pub(crate) struct Options {
    run: Option<String>,
    report: Option<PathBuf>,
    stay: bool,
    mesh: bool,
}

fn main() -> ExitCode {
    match options(env::args().skip(1)).and_then(|options| run(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mesh-conformance: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn options(mut words: impl Iterator<Item = String>) -> Result<Options> {
    let mut options = Options { run: None, report: None, stay: false, mesh: true };
    while let Some(word) = words.next() {
        match word.as_str() {
            "--run" => options.run = Some(words.next().context("--run wants a test's name")?),
            "--report" => {
                options.report = Some(words.next().context("--report wants a file")?.into());
            }
            "--stay" => options.stay = true,
            "--without-mesh" => options.mesh = false,
            other => bail!("`{other}` is not known\n{USAGE}"),
        }
    }
    Ok(options)
}

fn run(options: &Options) -> Result<()> {
    let suite = Suite::find()?;
    let cluster = Cluster::start_telling(&mut |what| println!("cluster: {what}"))?.quiet();
    println!("cluster: Gateway API {}", suite.version());
    cluster.apply(&suite.crds()?)?;
    cluster.load_image(&image::echo()?)?;
    if options.mesh {
        println!("cluster: the mesh");
        install(&cluster)?;
    }
    let done = suite.run(&cluster, options);
    if done.is_err() && options.mesh {
        eprintln!("{}", last_words(&cluster));
    }
    if options.stay {
        println!("export KUBECONFIG={}\nEnter takes the cluster down", cluster.admin_kubeconfig().display());
        std::io::stdin().read_line(&mut String::new()).context("cannot wait for Enter")?;
    }
    done
}

/// As a user does it: the image on the nodes, then what `mesh-agent install` prints.
fn install(cluster: &Cluster) -> Result<()> {
    let program = agent::binary()?;
    let target = program.parent().and_then(Path::parent).unwrap_or(Path::new("target"));
    let archive = target.join(format!("image/mesh-agent-{}-dev.tar", env!("CARGO_PKG_VERSION")));
    cluster.load_image(&fs::read(&archive).with_context(|| {
        format!("no image at {}; `cargo xtask image --dev` packs it", archive.display())
    })?)?;
    let out = Command::new(&program)
        .args(["install", "--crds"])
        .env("KUBECONFIG", cluster.admin_kubeconfig())
        .output()
        .context("cannot start mesh-agent")?;
    ensure!(out.status.success(), "mesh-agent install: {}", String::from_utf8_lossy(&out.stderr));
    cluster.apply(&String::from_utf8_lossy(&out.stdout))?;
    cluster.wait_ready(SYSTEM, "app=nodemesh-controller", 2)?;
    cluster.wait_ready(SYSTEM, "app=nodemesh-agent", NODES)
}

/// What agents and controllers said last.
fn last_words(cluster: &Cluster) -> String {
    ["app=nodemesh-agent", "app=nodemesh-controller"]
        .map(|label| {
            let said = cluster.kubectl(&["logs", "-n", SYSTEM, "-l", label, "--prefix", "--tail=30"]);
            format!("---- {label}\n{}", said.unwrap_or_else(|error| format!("{error:#}")))
        })
        .join("\n")
}
