//! The suite as `cargo xtask setup` builds it from its Go module, and how it is called.
use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use mesh_tests::Cluster;

use crate::Options;

const PINS: &str = include_str!("../../../kube/conformance/go.mod");
const MODULE: &str = "sigs.k8s.io/gateway-api/conformance";

/// Where no mesh is, nothing becomes right by waiting; the suite would take half an hour.
const NO_PATIENCE: &str = "--timeout-config-overrides=MaxTimeToConsistency:3";

/// What the mesh claims. The suite runs the tests of these and fails where one does not hold.
const FEATURES: [&str; 17] = [
    "Mesh",
    "HTTPRoute",
    "GRPCRoute",
    // Every extended feature of a mesh.
    "MeshClusterIPMatching",
    "MeshConsumerRoute",
    "MeshHTTPRouteRewritePath",
    "MeshHTTPRouteSchemeRedirect",
    "MeshHTTPRouteRedirectPort",
    "MeshHTTPRouteRedirectPath",
    "MeshHTTPRouteBackendRequestHeaderModification",
    "MeshHTTPRouteQueryParamMatching",
    "MeshHTTPRouteNamedRouteRule",
    // Of HTTPRoutes, what the suite's tests of a mesh ask for beside.
    "HTTPRouteResponseHeaderModification",
    "HTTPRouteParentRefPort",
    "HTTPRoute303RedirectStatusCode",
    "HTTPRoute307RedirectStatusCode",
    "HTTPRoute308RedirectStatusCode",
];

pub(crate) struct Suite {
    folder: PathBuf,
    version: &'static str,
}

impl Suite {
    pub(crate) fn find() -> Result<Self> {
        Ok(Self { folder: component(PINS, MODULE, "conformance")?, version: pinned(PINS, MODULE)? })
    }

    pub(crate) fn version(&self) -> &'static str {
        self.version
    }

    /// The standard channel's CRDs, of the suite's own release.
    pub(crate) fn crds(&self) -> Result<String> {
        let folder = self.folder.join("crds");
        let mut files: Vec<PathBuf> = fs::read_dir(&folder)
            .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
            .with_context(|| format!("cannot list {}", folder.display()))?;
        files.sort();
        let mut text = String::new();
        for file in files {
            text.push_str("---\n");
            text.push_str(
                &fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?,
            );
        }
        Ok(text)
    }

    /// Runs it, repeats what it says of tests that ran, and fails unless every test of it passed.
    pub(crate) fn run(&self, cluster: &Cluster, options: &Options) -> Result<()> {
        let mut command = Command::new(self.folder.join("conformance.test"));
        command.env("KUBECONFIG", cluster.admin_kubeconfig()).current_dir(cluster.dir());
        command.args(["-test.run", "TestConformance$", "-test.v", "-test.timeout", "40m"]);
        command.arg("--conformance-profiles=MESH-HTTP,MESH-GRPC");
        command.arg(format!("--supported-features={}", FEATURES.join(",")));
        command.args(["--mesh-name=nodemesh", "--namespace-labels=nodemesh.io/mesh=enabled"]);
        command.args(["--organization=nodemesh", "--project=nodemesh", "--url=https://nodemesh.io"]);
        command.arg(format!("--version={}", env!("CARGO_PKG_VERSION"))).arg("--contact=https://nodemesh.io");
        command.args(options.run.as_ref().map(|test| format!("--run-test={test}")));
        command.args((!options.mesh).then_some(NO_PATIENCE));
        if let Some(report) = &options.report {
            let report = env::current_dir().context("no current folder")?.join(report);
            if let Some(parent) = report.parent() {
                fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
            }
            command.arg(format!("--report-output={}", report.display()));
        }
        let mut child = command.stdout(Stdio::piped()).spawn().context("cannot start the suite")?;
        let mut count = Count::default();
        if let Some(stdout) = child.stdout.take() {
            for line in BufReader::new(stdout).lines() {
                let line = line.context("reading what the suite says")?;
                count.add(&line);
                // Those of features that a mesh does not have; over a hundred, after all that tells something.
                if !line.contains("--- SKIP: ") {
                    println!("{line}");
                }
            }
        }
        let status = child.wait().context("waiting for the suite")?;
        println!(
            "{} of {} tests passed{}",
            count.passed.len(),
            count.passed.len() + count.failed.len(),
            if count.failed.is_empty() {
                String::new()
            } else {
                format!("; failed: {}", count.failed.join(", "))
            }
        );
        ensure!(status.success(), "the suite ended with {status}");
        ensure!(!count.passed.is_empty(), "the suite ran no test");
        Ok(())
    }
}

/// The suite's tests, each a subtest of the one function of its program.
#[derive(Default)]
struct Count {
    passed: Vec<String>,
    failed: Vec<String>,
}

impl Count {
    fn add(&mut self, line: &str) {
        let name = |prefix: &str| {
            let rest = line.trim_start().strip_prefix(prefix)?.strip_prefix("TestConformance/")?;
            let name = rest.split(' ').next()?;
            (!name.contains('/')).then(|| name.to_owned())
        };
        self.passed.extend(name("--- PASS: "));
        self.failed.extend(name("--- FAIL: "));
    }
}

/// Where `cargo xtask conformance` leaves what it builds from a module.
pub(crate) fn component(pins: &'static str, module: &str, name: &str) -> Result<PathBuf> {
    let home = env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let cache = env::var_os("NODEMESH_KUBE").map(PathBuf::from).unwrap_or_else(|| {
        env::var_os("XDG_CACHE_HOME").map_or_else(|| home.join(".cache"), PathBuf::from).join("nodemesh/kube")
    });
    let folder = cache.join(format!("{name}-{}", pinned(pins, module)?));
    if !folder.is_dir() {
        bail!("{} is missing; run `cargo xtask conformance`, which builds it", folder.display());
    }
    Ok(folder)
}

fn pinned(pins: &'static str, module: &str) -> Result<&'static str> {
    let words: Vec<&str> = pins.split_whitespace().collect();
    let found = words.windows(2).find(|pair| pair[0] == module && pair[1].starts_with('v'));
    found.map(|pair| pair[1]).with_context(|| format!("{module} is pinned nowhere"))
}

#[cfg(test)]
mod tests;
