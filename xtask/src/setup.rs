//! `setup`: finds what the verbs need and installs what is missing, saying what and why.
//!
//! Two ways lead to a working machine. Where a toolchain already has the core library's source and a `bpf-linker`
//! that reads its bitcode, nothing is installed. On Debian 12 as root the rest comes from Debian's own packages, and
//! the two Rust tools that Debian lacks are built once, pinned, into a folder outside the clone. So are the parts of
//! the test cluster, from their Go modules.
//! Running it again changes nothing. It never starts a service and never touches a toolchain of the user's.
mod apt;
pub(crate) mod envoy;
mod go;
mod kernel;
mod kube;
mod machine;
mod pip;
mod tool;

use anyhow::{Context, Result};

pub(crate) use self::kernel::KernelToolchain;
use crate::{command, paths};

/// How much of the machine a verb needs; each level includes those before it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Need {
    /// Compile the kernel programs.
    Build,
    /// Run nodes and pods: root, a fit kernel, and the programs that the lab starts.
    Lab,
    /// Run a Kubernetes cluster: its components, built where they are missing.
    Cluster,
    /// Lint: formatter, clippy, cargo-deny.
    Checks,
}

/// What setup found.
pub(crate) struct Tools {
    pub(crate) kernel: KernelToolchain,
}

/// The verb `setup`: everything, said aloud.
pub(crate) fn run() -> Result<()> {
    let tools = ensure(Need::Checks)?;
    println!("kernel programs: {}", tools.kernel.describe());
    println!("own tools:       {}", paths::tools().display());
    println!("kubernetes:      {}", kube::components().display());
    println!("ready: `cargo xtask test`");
    Ok(())
}

/// Makes sure of `need`; silent where nothing is missing.
pub(crate) fn ensure(need: Need) -> Result<Tools> {
    let _lock = lock()?;
    if need >= Need::Lab {
        machine::check()?;
    }
    apt::install_missing(&lab_packages(need))?;
    let kernel = kernel::ensure()?;
    if need >= Need::Cluster {
        kube::ensure()?;
    }
    if need >= Need::Checks {
        components()?;
        tool::ensure(&tool::DENY, &kernel)?;
    }
    Ok(Tools { kernel })
}

/// The same for `conformance`.
pub(crate) fn ensure_conformance() -> Result<Tools> {
    let tools = ensure(Need::Cluster)?;
    let _lock = lock()?;
    kube::ensure_conformance()?;
    Ok(tools)
}

/// What `bench http` measures beside the mesh and Debian has; Envoy is [`envoy`]'s.
pub(crate) fn ensure_proxies() -> Result<()> {
    let _lock = lock()?;
    let wanted = [
        ("haproxy", "haproxy", "the benchmark runs it beside the mesh"),
        ("perf", "linux-perf", "the benchmark counts the agents' system calls with it"),
    ];
    apt::install_missing(&missing(&wanted))
}

/// One setup at a time on a machine: two clones share the tools folder.
fn lock() -> Result<std::fs::File> {
    let dir = paths::tools();
    std::fs::create_dir_all(&dir).with_context(|| {
        format!("cannot create {}; set NODEMESH_TOOLS to a folder you may write", dir.display())
    })?;
    let file =
        std::fs::File::create(dir.join(".lock")).context("cannot create the lock of the tools folder")?;
    if file.try_lock().is_err() {
        println!("setup: waiting for another setup on this machine");
    }
    file.lock().context("cannot lock the tools folder")?;
    Ok(file)
}

fn lab_packages(need: Need) -> Vec<apt::Package> {
    if need < Need::Lab {
        return Vec::new();
    }
    let lab = [
        ("ip", "iproute2", "the lab builds its networks with it"),
        ("nginx", "nginx", "a real web server in a pod of the lab"),
        ("dnsmasq", "dnsmasq-base", "a real name server in a pod of the lab"),
        ("curl", "curl", "the demo's client, and yours while it is up"),
        ("h2load", "nghttp2-client", "HTTP/2 clients that nobody here wrote, for the tests of requests"),
        ("tcpdump", "tcpdump", "shows what crosses the link between two nodes"),
    ];
    let cluster = [
        ("etcd", "etcd-server", "the test cluster's API server keeps its objects there"),
        ("containerd", "containerd", "the container runtime of the test cluster's nodes"),
        ("runc", "runc", "it starts the containers"),
        ("/usr/lib/cni/ptp", "containernetworking-plugins", "it gives pods their network"),
        ("nft", "nftables", "kube-proxy writes its rules with it"),
        ("conntrack", "conntrack", "kube-proxy forgets stale connections with it"),
    ];
    let mut packages = missing(&lab);
    if need >= Need::Cluster {
        packages.extend(missing(&cluster));
    }
    packages
}

/// The packages whose program is not there. A path that is absolute stands for itself.
fn missing(all: &[(&str, &'static str, &'static str)]) -> Vec<apt::Package> {
    all.iter()
        .filter(|(program, _, _)| paths::find_program(program).is_none())
        .map(|(_, name, why)| apt::Package { name, why })
        .collect()
}

/// The formatter and the linter of the compiler that builds the workspace.
fn components() -> Result<()> {
    for (verb, component, package) in
        [("fmt", "rustfmt", "rustfmt-web"), ("clippy", "clippy", "rust-web-clippy")]
    {
        if command::output(command::cargo().args([verb, "--version"])).is_ok() {
            continue;
        }
        if paths::find_program("rustup").is_some() {
            println!("setup: adding {component} to the toolchain, for `cargo {verb}`");
            command::run(std::process::Command::new("rustup").args(["component", "add", component]))
                .with_context(|| {
                    format!("`cargo {verb}` is missing; run `rustup component add {component}`")
                })?;
        } else {
            apt::install_missing(&[apt::Package { name: package, why: "the workspace is linted" }])?;
        }
    }
    Ok(())
}
