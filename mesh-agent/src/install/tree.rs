//! The generated files of `deploy/`: Kustomize base, Helm chart, CRDs. Called by `cli::install` for
//! `cargo xtask manifests`, and by the test that compares them with what is in the tree.

use super::template::{Form, fill};
use super::values::all;
use super::{DEFAULT_NAMESPACE, PIECES, Values, crds};

const HEAD: &str = "# Written by `cargo xtask manifests` from mesh-agent/src/install: change it there.\n";
const BASE: &str = "base";
const CHART: &str = "helm/nodemesh";
const CRDS: &str = "crds";

/// One file, by its path below `deploy/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    pub path: String,
    pub text: String,
}

impl File {
    fn new(path: String, text: &str) -> Self {
        Self { path, text: format!("{HEAD}{text}") }
    }
}

/// Every generated file.
pub fn tree() -> Result<Vec<File>, serde_json::Error> {
    let mut files = base();
    files.extend(chart());
    files.extend(crd_files()?);
    Ok(files)
}

fn base() -> Vec<File> {
    let values = Values::default();
    let form = Form::Plain(&values);
    let mut files: Vec<File> = PIECES
        .iter()
        .map(|piece| File::new(format!("{BASE}/{}", piece.file), &fill(piece.text, &form)))
        .collect();
    let names: Vec<&str> = PIECES.iter().map(|piece| piece.file).collect();
    files.push(kustomization(BASE, &names));
    files
}

fn kustomization(folder: &str, names: &[&str]) -> File {
    let mut text =
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources:\n".to_owned();
    for name in names {
        text.push_str(&format!("  - {name}\n"));
    }
    File::new(format!("{folder}/kustomization.yaml"), &text)
}

fn chart() -> Vec<File> {
    let version = env!("CARGO_PKG_VERSION");
    let about = format!(
        "apiVersion: v2\nname: nodemesh\ndescription: A service mesh with one agent per node, no sidecars and no \
         waypoints\ntype: application\nversion: {version}\nappVersion: {version}\nkubeVersion: \">=1.31.0-0\"\n"
    );
    let mut files = vec![
        File::new(format!("{CHART}/Chart.yaml"), &about),
        File::new(format!("{CHART}/values.yaml"), &values_file()),
        File::new(format!("{CHART}/templates/NOTES.txt"), "").notes(),
    ];
    for piece in PIECES.iter().filter(|piece| piece.in_chart) {
        let mut text = fill(piece.text, &Form::Helm);
        if let Some(switch) = piece.switch {
            text = format!("{{{{- if .Values.{switch} }}}}\n{text}{{{{- end }}}}\n");
        }
        files.push(File::new(format!("{CHART}/templates/{}", piece.file), &text));
    }
    files
}

impl File {
    fn notes(self) -> Self {
        let text = format!(
            "Nodemesh is installed in {{{{ .Release.Namespace }}}}.\n\n\
             Agents run in a namespace that admits privileged pods; where Pod Security is enforced:\n  \
             kubectl label namespace {{{{ .Release.Namespace }}}} pod-security.kubernetes.io/enforce=privileged\n\
             See that all is well (the default namespace is {DEFAULT_NAMESPACE}):\n  \
             mesh-agent check --cluster --mesh-namespace {{{{ .Release.Namespace }}}}\n\
             Put a namespace into the mesh:\n  \
             kubectl label namespace NAME nodemesh.io/mesh=enabled\n"
        );
        Self { text, ..self }
    }
}

fn values_file() -> String {
    let mut text = String::new();
    for known in all() {
        let Some(name) = known.chart else { continue };
        let bare = known.default.bytes().all(|byte| byte.is_ascii_digit());
        let value = if bare { known.default.to_owned() } else { format!("\"{}\"", known.default) };
        text.push_str(&format!("# {}.\n{name}: {value}\n", capital(known.help)));
    }
    text.push_str("# Whether NetworkPolicies for the controller are made.\nnetworkPolicy: true\n");
    text.push_str("# Istio's meshConfig; what it may hold is in the README.\nmeshConfig: {}\n");
    text
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// Once for `kubectl apply -k` and once where Helm looks: it installs them only where they are missing.
fn crd_files() -> Result<Vec<File>, serde_json::Error> {
    let mut files = Vec::new();
    let mut names = Vec::new();
    for crd in crds() {
        let name = format!("{}.yaml", crd.name());
        let text = crd.yaml()?;
        files.push(File::new(format!("{CHART}/crds/{name}"), &text));
        files.push(File::new(format!("{CRDS}/{name}"), &text));
        names.push(name);
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    files.push(kustomization(CRDS, &names));
    Ok(files)
}
