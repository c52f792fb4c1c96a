//! The verbs against a cluster: finds the agents through the API server and asks each as if it were here.
//! Owns: which cluster, which agents, which of them a question is for. Never: watches or writes an object, but for
//! `uninstall`. Called by `cli`.

mod answers;
mod exec;
mod fleet;
pub(super) mod health;
pub(super) mod remove;

use std::path::{Path, PathBuf};
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client as Kube, Config};

use super::CliError;
use crate::install::DEFAULT_NAMESPACE;

pub(super) use answers::answer;

/// How long the API server may take to be connected to.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);
/// How long it may take for one answer.
const READ_PATIENCE: Duration = Duration::from_secs(15);
/// As kubectl finds its plugins: `kubectl nodemesh` runs a program of this name.
const PLUGIN: &str = "kubectl-nodemesh";

/// Whom a verb asks. Without any of these: the agent of this machine, and where there is none, the cluster of the
/// current kubeconfig.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
#[command(next_help_heading = "Asking a cluster")]
pub(super) struct Target {
    /// Ask the cluster, even if an agent runs on this machine
    #[arg(long)]
    pub(super) cluster: bool,
    /// kubeconfig file [default: as kubectl]
    #[arg(long, value_name = "FILE")]
    pub(super) kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig file
    #[arg(long, value_name = "NAME")]
    pub(super) context: Option<String>,
    /// Ask only this node's agent
    #[arg(long, value_name = "NAME")]
    pub(super) node: Option<String>,
    /// Namespace that the mesh is installed in
    #[arg(long, value_name = "NAME", env = "NODEMESH_NAMESPACE", default_value = DEFAULT_NAMESPACE)]
    pub(super) mesh_namespace: String,
}

impl Target {
    /// Whether the cluster is meant. `socket`: the one named, if one was.
    pub(super) fn means_cluster(&self, socket: Option<&Path>, default_socket: &Path) -> bool {
        if self.says_cluster() || is_plugin() {
            return true;
        }
        socket.is_none() && !default_socket.exists() && has_kubeconfig()
    }

    /// Whether the words of the command line say so.
    pub(super) fn says_cluster(&self) -> bool {
        self.cluster || self.kubeconfig.is_some() || self.context.is_some() || self.node.is_some()
    }

    pub(super) async fn connect(&self) -> Result<Kube, CliError> {
        let unusable = |cause: String| CliError::Cluster {
            cause,
            remedy: "name a cluster with --kubeconfig and --context, or KUBECONFIG",
        };
        let options = KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        let mut config = match &self.kubeconfig {
            Some(path) => {
                let file = Kubeconfig::read_from(path).map_err(|error| unusable(chain(&error)))?;
                Config::from_custom_kubeconfig(file, &options)
                    .await
                    .map_err(|error| unusable(chain(&error)))?
            }
            None if self.context.is_some() => {
                Config::from_kubeconfig(&options).await.map_err(|error| unusable(chain(&error)))?
            }
            None => Config::infer().await.map_err(|error| unusable(chain(&error)))?,
        };
        config.connect_timeout = Some(CONNECT_PATIENCE);
        config.read_timeout = Some(READ_PATIENCE);
        Kube::try_from(config).map_err(|error| unusable(chain(&error)))
    }
}

/// Whether kubectl has started this program as its plugin.
pub(super) fn is_plugin() -> bool {
    program_name() == PLUGIN
}

/// The name the program was started by.
pub(super) fn program_name() -> String {
    let first = std::env::args_os().next().map(PathBuf::from).unwrap_or_default();
    first.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn has_kubeconfig() -> bool {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    std::env::var_os("KUBECONFIG").is_some()
        || home.is_some_and(|home| home.join(".kube/config").exists())
        || std::env::var_os("KUBERNETES_SERVICE_HOST").is_some()
}

/// The error with what caused it, once each: the cause is what tells an operator what to do.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        source = inner.source();
    }
    text
}

/// What the API server answered, as an error of the command.
pub(super) fn refused(what: &str, error: &kube::Error) -> CliError {
    let remedy = match error {
        kube::Error::Api(status) if status.code == 401 => "log in to the cluster again",
        kube::Error::Api(status) if status.code == 403 => "ask for a role that allows it",
        kube::Error::Api(status) if status.code == 404 => {
            "is the mesh installed? `mesh-agent install | kubectl apply -f -`, or name its --mesh-namespace"
        }
        _ => "is the API server running, and does kubectl reach it?",
    };
    CliError::Cluster { cause: format!("{what}: {}", chain(error)), remedy }
}

#[cfg(test)]
mod tests;
