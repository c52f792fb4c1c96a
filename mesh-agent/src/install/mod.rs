//! What is put into a cluster: one set of templates, from which `mesh-agent install` prints objects, the Kustomize base
//! and the Helm chart are written, and tests know what belongs to an installation.
//! Owns: the templates, their values, the CRDs as printed. Never: talks to a cluster or writes a file.
//! Called by `cli::install`, and through it by `cargo xtask manifests`.

mod crds;
pub mod mesh_config;
mod template;
mod tree;
mod values;

pub use crds::crds;
pub use mesh_config::{MeshConfig, MeshConfigError};
pub use tree::{File, tree};
pub use values::{ValueError, Values};

use template::{Form, fill};

/// Where an installation lives unless told otherwise.
pub const DEFAULT_NAMESPACE: &str = "nodemesh-system";
pub const AGENT: &str = "nodemesh-agent";
pub const AGENT_CONTAINER: &str = "agent";
pub const HOLDER: &str = "nodemesh-holder";
pub const CONTROLLER: &str = "nodemesh-controller";
/// On everything that `install` makes.
pub const PART_OF_LABEL: &str = "app.kubernetes.io/part-of";
pub const PART_OF: &str = "nodemesh";
/// The program inside the image.
pub const PROGRAM: &str = "/mesh-agent";

/// One template, which is one file of the base and of the chart.
#[derive(Clone, Copy, Debug)]
struct Piece {
    file: &'static str,
    text: &'static str,
    /// Helm makes the namespace itself.
    in_chart: bool,
    /// A value of the chart that leaves the file out.
    switch: Option<&'static str>,
}

impl Piece {
    const fn new(file: &'static str, text: &'static str) -> Self {
        Self { file, text, in_chart: true, switch: None }
    }
}

/// In the order in which they are applied: what is referred to comes first.
const PIECES: [Piece; 8] = [
    Piece { in_chart: false, ..Piece::new("namespace.yaml", include_str!("templates/namespace.yaml")) },
    Piece::new("mesh-config.yaml", include_str!("templates/mesh-config.yaml")),
    Piece::new("controller-rbac.yaml", include_str!("templates/controller-rbac.yaml")),
    Piece::new("agent-rbac.yaml", include_str!("templates/agent-rbac.yaml")),
    Piece {
        switch: Some("networkPolicy"),
        ..Piece::new("network-policy.yaml", include_str!("templates/network-policy.yaml"))
    },
    Piece::new("controller.yaml", include_str!("templates/controller.yaml")),
    Piece::new("holder.yaml", include_str!("templates/holder.yaml")),
    Piece::new("agent.yaml", include_str!("templates/agent.yaml")),
];

/// Everything that an installation consists of but the CRDs, as one stream of YAML documents.
pub fn render(values: &Values) -> String {
    let mut out = String::new();
    for piece in &PIECES {
        out.push_str("---\n");
        out.push_str(&fill(piece.text, &Form::Plain(values)));
    }
    out
}

/// The CRDs as a stream of YAML documents.
pub fn render_crds() -> Result<String, serde_json::Error> {
    let mut out = String::new();
    for crd in crds() {
        out.push_str("---\n");
        out.push_str(&crd.yaml()?);
    }
    Ok(out)
}

#[cfg(test)]
mod tests;
