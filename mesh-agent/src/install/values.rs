//! The values of the templates: names, defaults, checks. Called by `install::template` and `cli::install`.

use super::DEFAULT_NAMESPACE;

/// Longest value on the command line, bytes.
const VALUE_MAX_BYTES: usize = 253;

/// One value: its name in the templates, in the chart, and what it is unless it is set.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    pub(super) key: &'static str,
    /// In `values.yaml`; none where Helm has a word of its own for it.
    pub(super) chart: Option<&'static str>,
    pub(super) default: &'static str,
    pub(super) help: &'static str,
    number: bool,
}

const fn known(
    key: &'static str,
    chart: Option<&'static str>,
    default: &'static str,
    help: &'static str,
) -> Known {
    Known { key, chart, default, help, number: false }
}

/// `mesh-config` is text of many lines and stands apart.
pub(super) const MESH_CONFIG: &str = "mesh-config";

/// Both the program and its image carry the workspace's version.
const IMAGE: &str = concat!("nodemesh.io/mesh-agent:", env!("CARGO_PKG_VERSION"));

pub(super) const KNOWN: [Known; 15] = [
    known("namespace", None, DEFAULT_NAMESPACE, "where the mesh lives"),
    known("image", Some("image"), IMAGE, "image of agent, holder and controller"),
    known("trust-domain", Some("trustDomain"), "cluster.local", "first part of every identity"),
    known(
        "root-namespace",
        Some("rootNamespace"),
        "istio-system",
        "namespace whose policies hold for the whole mesh",
    ),
    known("cluster-domain", Some("clusterDomain"), "cluster.local", "DNS domain of the cluster's Services"),
    known("cluster-id", Some("clusterId"), "Kubernetes", "the cluster's name towards the CA"),
    Known {
        number: true,
        ..known("controller-replicas", Some("controllerReplicas"), "2", "controllers; any of them signs")
    },
    known("controller-cpu", Some("controllerCpu"), "20m", "CPU asked for by a controller"),
    known("controller-memory", Some("controllerMemory"), "64Mi", "memory asked for by a controller"),
    known("agent-cpu", Some("agentCpu"), "50m", "CPU asked for by an agent"),
    known(
        "agent-memory",
        Some("agentMemory"),
        "128Mi",
        "memory asked for by an agent; there is no limit, because a killed agent is worse than a large one",
    ),
    known("metrics-address", Some("metricsAddress"), "0.0.0.0:15020", "where agents show their metrics"),
    known("log-level", Some("logLevel"), "info", "log filter of agents and controllers"),
    known("cni-conf-dir", Some("cniConfDir"), "/etc/cni/net.d", "the nodes' folder of CNI configurations"),
    known("cni-bin-dir", Some("cniBinDir"), "/opt/cni/bin", "the nodes' folder of CNI plugins"),
];

/// The addresses of the nodes, for the controller's NetworkPolicy.
pub(super) const NODE_CIDR: Known = known(
    "node-cidr",
    Some("nodeCidr"),
    "0.0.0.0/0",
    "addresses of the nodes, which alone may ask the controller for certificates",
);

/// Why a value cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    #[error("--set {key}: there is no such value; there are {known}")]
    Unknown { key: String, known: String },
    #[error("--set {text}: write KEY=VALUE")]
    Form { text: String },
    #[error("{key}: `{value}` {problem}")]
    Bad { key: &'static str, value: String, problem: &'static str },
}

/// A value for every name in the templates.
#[derive(Clone, Debug)]
pub struct Values {
    set: Vec<(&'static str, String)>,
    mesh_config: String,
}

impl Default for Values {
    fn default() -> Self {
        let set = all().map(|known| (known.key, known.default.to_owned())).collect();
        Self { set, mesh_config: "{}\n".to_owned() }
    }
}

pub(super) fn all() -> impl Iterator<Item = &'static Known> {
    KNOWN.iter().chain([&NODE_CIDR])
}

impl Values {
    /// Sets a value by its name in the templates.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), ValueError> {
        let Some(known) = all().find(|known| known.key == key) else {
            let known = all().map(|known| known.key).collect::<Vec<_>>().join(", ");
            return Err(ValueError::Unknown { key: key.to_owned(), known });
        };
        check(known, value)?;
        for (name, current) in &mut self.set {
            if *name == known.key {
                value.clone_into(current);
            }
        }
        Ok(())
    }

    /// Sets a value from `KEY=VALUE`.
    pub fn set_text(&mut self, text: &str) -> Result<(), ValueError> {
        let (key, value) = text.split_once('=').ok_or_else(|| ValueError::Form { text: text.to_owned() })?;
        self.set(key, value)
    }

    /// The YAML that becomes the key `mesh` of the ConfigMap.
    pub fn set_mesh_config(&mut self, yaml: String) {
        self.mesh_config = yaml;
    }

    pub fn get(&self, key: &str) -> &str {
        if key == MESH_CONFIG {
            return &self.mesh_config;
        }
        self.set.iter().find(|(name, _)| *name == key).map_or("", |(_, value)| value)
    }
}

/// Values stand in YAML as they are, quoted at most: nothing may end the scalar or begin another.
fn check(known: &Known, value: &str) -> Result<(), ValueError> {
    let bad = |problem| Err(ValueError::Bad { key: known.key, value: value.to_owned(), problem });
    if value.is_empty() || value.len() > VALUE_MAX_BYTES {
        return bad("must have 1 to 253 bytes");
    }
    if known.number && value.parse::<u32>().is_err() {
        return bad("is no number");
    }
    let fit = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/:@=,+[]".contains(&byte);
    if !value.bytes().all(fit) {
        return bad("has a character that does not belong in it");
    }
    if known.key == "namespace"
        && !value.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    {
        return bad("is no namespace: a-z, 0-9 and '-'");
    }
    if known.key.ends_with("-dir") && !value.starts_with('/') {
        return bad("is not absolute");
    }
    Ok(())
}
