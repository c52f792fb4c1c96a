//! The components of the test cluster that no distribution carries: built once from their Go modules, pinned with
//! checksums under `tests/kube/`, into a folder outside the clone that is named after the version.
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::go;
use crate::{command, paths};

/// What one module gives.
struct Module {
    /// Below `tests/kube`.
    dir: &'static str,
    path: &'static str,
    programs: &'static [&'static str],
    /// Where the programs' packages are below the module, each named as its program; empty = the module is the program.
    packages: &'static str,
    /// Where it goes, below the folder of components; `{}` is the version.
    folder: &'static str,
    /// The module of the programs' packages is a test that is kept as a program, and of this module the CRDs go with it.
    crds: Option<&'static str>,
    why: &'static str,
    takes: &'static str,
}

const MODULES: [Module; 3] = [
    Module {
        dir: "kubernetes",
        path: "k8s.io/kubernetes",
        programs: &[
            "kube-apiserver",
            "kube-controller-manager",
            "kube-proxy",
            "kube-scheduler",
            "kubectl",
            "kubelet",
        ],
        packages: "/cmd/",
        folder: "{}",
        crds: None,
        why: "the test cluster runs it",
        takes: "about eight minutes on two processors, once",
    },
    Module {
        dir: "coredns",
        path: "github.com/coredns/coredns",
        programs: &["coredns"],
        packages: "",
        folder: "coredns-{}",
        crds: None,
        why: "the test cluster's DNS",
        takes: "about two minutes",
    },
    Module {
        dir: "helm",
        path: "helm.sh/helm/v3",
        programs: &["helm"],
        packages: "/cmd/",
        folder: "helm-{}",
        crds: None,
        why: "a test compares the chart with the Kustomize base",
        takes: "about two minutes",
    },
];

/// What `conformance` needs beside: nothing else is slower for it.
const CONFORMANCE: [Module; 2] = [
    Module {
        dir: "conformance",
        path: "sigs.k8s.io/gateway-api/conformance",
        programs: &["conformance.test"],
        packages: "",
        folder: "conformance-{}",
        crds: Some("sigs.k8s.io/gateway-api"),
        why: "Gateway API's own tests of a mesh",
        takes: "about two minutes",
    },
    Module {
        dir: "echo",
        path: "istio.io/istio",
        programs: &["client", "server"],
        packages: "/pkg/test/echo/cmd/",
        folder: "echo-{}",
        crds: None,
        why: "what the pods of those tests run",
        takes: "about a minute",
    },
];

/// Builds what is not there of the test cluster.
pub(crate) fn ensure() -> Result<()> {
    ensure_all(&MODULES)
}

/// Builds what is not there of the conformance suite.
pub(crate) fn ensure_conformance() -> Result<()> {
    ensure_all(&CONFORMANCE)
}

fn ensure_all(modules: &[Module]) -> Result<()> {
    for module in modules {
        let version = module.version()?;
        let dir = components().join(module.folder.replace("{}", &version));
        if module.programs.iter().all(|program| dir.join(program).is_file() || assets_have(program)) {
            continue;
        }
        let go = go::ensure()?;
        eprintln!("setup: building {} {version}: {} ({})", module.path, module.why, module.takes);
        module.build(&go, &version, &dir)?;
    }
    Ok(())
}

/// As the fixture in `tests/` looks for them.
pub(crate) fn components() -> PathBuf {
    if let Some(dir) = env::var_os("NODEMESH_KUBE") {
        return PathBuf::from(dir);
    }
    paths::cache().join("kube")
}

/// `KUBEBUILDER_ASSETS` is where users of controller-runtime keep them; the fixture checks the version.
fn assets_have(program: &str) -> bool {
    env::var_os("KUBEBUILDER_ASSETS").is_some_and(|dir| Path::new(&dir).join(program).is_file())
}

impl Module {
    fn source(&self) -> PathBuf {
        paths::root().join("tests/kube").join(self.dir)
    }

    /// What its go.mod pins.
    fn version(&self) -> Result<String> {
        let path = self.source().join("go.mod");
        let pins = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let version = pinned(&pins, self.path);
        version.map(str::to_owned).with_context(|| format!("{} does not pin {}", path.display(), self.path))
    }

    /// Into a folder of another name first: one that has the right name is whole.
    fn build(&self, go: &Path, version: &str, dir: &Path) -> Result<()> {
        let partial = dir.with_extension("partial");
        fs::create_dir_all(&partial).with_context(|| format!("cannot create {}", partial.display()))?;
        for (number, program) in (1..).zip(self.programs) {
            eprintln!("setup:   {program} ({number} of {})", self.programs.len());
            let mut build = Command::new(go);
            build.current_dir(self.source()).env("CGO_ENABLED", "0").env("GOTOOLCHAIN", "local");
            // Not a user's workspace or flags: what is built is what the pins say.
            build.env("GOWORK", "off").env("GOFLAGS", "");
            let verb: &[&str] = if self.crds.is_some() { &["test", "-c"] } else { &["build"] };
            build.args(verb).args(["-trimpath", "-buildvcs=false", "-mod=readonly", "-ldflags"]);
            build.arg(link_flags(version)).arg("-o").arg(partial.join(program));
            build.arg(self.package(program));
            command::run(&mut build).with_context(|| {
                format!(
                    "cannot build {program}; it needs about 4 GiB of disk and the Go module proxy (GOPROXY)"
                )
            })?;
        }
        if let Some(module) = self.crds {
            self.copy_crds(go, module, &partial.join("crds"))?;
        }
        if dir.exists() {
            fs::remove_dir_all(dir).with_context(|| format!("cannot replace {}", dir.display()))?;
        }
        fs::rename(&partial, dir).with_context(|| format!("cannot move components to {}", dir.display()))?;
        if !dir.join(self.programs[0]).is_file() {
            bail!("the build of {} left nothing in {}", self.path, dir.display());
        }
        Ok(())
    }

    /// The standard channel's, as they lie in the module's source.
    fn copy_crds(&self, go: &Path, module: &str, to: &Path) -> Result<()> {
        let mut list = Command::new(go);
        list.current_dir(self.source()).env("GOTOOLCHAIN", "local").env("GOWORK", "off").env("GOFLAGS", "");
        list.args(["list", "-mod=readonly", "-m", "-f", "{{.Dir}}", module]);
        let from = Path::new(command::output(&mut list)?.trim()).join("config/crd/standard");
        fs::create_dir_all(to).with_context(|| format!("cannot create {}", to.display()))?;
        let entries = fs::read_dir(&from).with_context(|| format!("cannot list {}", from.display()))?;
        for entry in entries {
            let path = entry.with_context(|| format!("cannot list {}", from.display()))?.path();
            let yaml = path.extension().is_some_and(|extension| extension == "yaml");
            // Not `fs::copy`: a module's files are read-only, and their copies should go as they came.
            if let (true, Some(name)) = (yaml, path.file_name()) {
                let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
                fs::write(to.join(name), text).context("cannot keep a CRD")?;
            }
        }
        Ok(())
    }

    fn package(&self, program: &str) -> String {
        if self.packages.is_empty() {
            return self.path.to_owned();
        }
        format!("{}{}{program}", self.path, self.packages)
    }
}

/// Kubernetes' programs refuse each other, or say v0.0.0, without a version stamped in.
fn link_flags(version: &str) -> String {
    let mut parts = version.trim_start_matches('v').split('.');
    let (major, minor) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let stamp = |name: &str, value: &str| format!(" -X k8s.io/component-base/version.{name}={value}");
    format!("-s -w{}{}{}", stamp("gitVersion", version), stamp("gitMajor", major), stamp("gitMinor", minor))
}

fn pinned<'a>(pins: &'a str, module: &str) -> Option<&'a str> {
    let words: Vec<&str> = pins.split_whitespace().collect();
    let pairs = words.windows(2);
    pairs.filter(|pair| pair[0] == module).map(|pair| pair[1]).find(|next| next.starts_with('v'))
}

#[cfg(test)]
mod tests;
