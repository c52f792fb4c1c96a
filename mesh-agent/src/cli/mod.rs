//! The command line: one file per verb, each asking the admin API and printing what it answers.
//! Owns: flags, tables, exit codes. Never: reads the mesh by itself (but `check` probes the machine).
//! Called by `main`.
//!
//! Exit codes: 0 good, 1 the answer is no (a failed check, a denied explain, an agent that is not ready),
//! 2 wrong usage, 3 the agent cannot be reached.

mod analyze;
mod certs;
mod check;
mod cluster;
mod completion;
mod connections;
mod explain;
mod human;
mod install;
mod output;
mod policies;
mod probe;
pub mod relay;
mod routes;
mod services;
mod status;
mod table;
mod version;
mod workloads;

use std::path::{Path, PathBuf};

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::admin::{Client, ClientError};
use crate::config::{DEFAULT_ADMIN_SOCKET, RunArgs};
use crate::controller::ControllerArgs;
use output::{Format, Printer};

/// Nodemesh: a service mesh with one agent per node, no sidecars and no waypoints.
#[derive(Debug, Parser)]
#[command(name = "mesh-agent", version, propagate_version = true, disable_help_subcommand = true)]
#[command(
    after_help = "Exit codes: 0 good, 1 the answer is no, 2 wrong usage, 3 the agent cannot be reached.\n\
    Verbs that ask take the agent of this machine; where there is none, the agents of the kubeconfig's cluster."
)]
pub struct Cli {
    /// The agent's Unix socket [default: /run/nodemesh/admin.sock]
    #[arg(long, global = true, env = "NODEMESH_ADMIN_SOCKET", value_name = "PATH")]
    admin_socket: Option<PathBuf>,
    /// How to print what was asked for
    #[arg(short, long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the agent of this node
    Run(Box<RunArgs>),
    /// Run the cluster's controller: certificate authority, statuses of Istio's resources
    Controller(Box<ControllerArgs>),
    /// Keep an agent's listeners while it restarts (started by the agent)
    #[command(hide = true)]
    Hold(HoldArgs),
    /// The chained CNI plugin (called by the container runtime)
    #[command(hide = true)]
    Cni,
    /// Connect standard input and output to the admin socket (run by the CLI inside the agent's container)
    #[command(hide = true)]
    AdminRelay,
    /// What the kubelet asks an agent
    #[command(hide = true)]
    Probe(probe::ProbeArgs),
    #[command(flatten)]
    Installation(install::Installation),
    /// How the agent is, or every node's
    Status(Asked<Nothing>),
    /// Whether this machine and its agent, or the cluster, have all they need
    Check(Asked<check::CheckArgs>),
    /// Pods, their enrolment and identities
    #[command(visible_alias = "workload")]
    Workloads(Asked<NamespaceArgs>),
    /// Services with their endpoints
    #[command(visible_alias = "service")]
    Services(Asked<NamespaceArgs>),
    /// Policies in force and whom they speak of
    #[command(visible_alias = "policy")]
    Policies(Asked<NamespaceArgs>),
    /// Certificates and their lives
    #[command(visible_alias = "cert")]
    Certs(Asked<Nothing>),
    /// Live connections, relayed and bypassed
    #[command(visible_alias = "conn")]
    Connections(Asked<connections::ConnectionsArgs>),
    /// What happens when SRC connects to DST, and which rule decides
    Explain(Asked<Box<explain::ExplainArgs>>),
    /// The HTTP rules that SRC's requests to HOST meet, in order
    #[command(visible_alias = "route")]
    Routes(Asked<routes::RoutesArgs>),
    /// What is wrong with manifests, in a folder or where the agent reads them
    Analyze(Asked<analyze::AnalyzeArgs>),
    /// Version of this command and of the agent
    Version(Asked<version::VersionArgs>),
    /// Print a shell's completion script
    Completion(completion::CompletionArgs),
}

/// What the holder process is started with.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
pub struct HoldArgs {
    /// The Unix socket on which the holder and agents meet
    #[arg(long, value_name = "PATH")]
    pub socket: PathBuf,
}

/// A verb's own flags, and whom it asks.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Asked<T: clap::Args> {
    #[command(flatten)]
    args: T,
    #[command(flatten)]
    target: cluster::Target,
}

/// A verb without flags of its own.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Nothing {}

/// Narrows a list to one namespace.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct NamespaceArgs {
    /// Only this namespace
    #[arg(short, long, value_name = "NAME")]
    namespace: Option<String>,
}

impl NamespaceArgs {
    fn takes(&self, namespace: &str) -> bool {
        self.namespace.as_deref().is_none_or(|wanted| wanted == namespace)
    }
}

/// What `main` is to do.
#[derive(Debug)]
pub enum Action {
    Run(Box<RunArgs>),
    Controller(Box<ControllerArgs>),
    Hold(HoldArgs),
    /// With the agent's socket.
    Relay(PathBuf),
    Cni,
    Ask(Question),
}

/// A verb that asks an agent, or needs none.
#[derive(Debug)]
pub struct Question {
    /// None: it was not named.
    socket: Option<PathBuf>,
    output: Format,
    verb: Verb,
}

/// How a command ended; the process's exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    Good = 0,
    No = 1,
    Usage = 2,
    Unreachable = 3,
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command printed nothing, or not all.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    #[error("{0}")]
    Client(#[from] ClientError),
    #[error("{0}")]
    Query(#[from] crate::admin::query::QueryError),
    #[error("the answer cannot be written as {format}: {message}")]
    Format { format: &'static str, message: String },
    #[error("cannot write: {0}")]
    Write(#[from] std::io::Error),
    #[error("cannot ask the cluster: {cause}; {remedy}")]
    Cluster { cause: String, remedy: &'static str },
    #[error("{0}")]
    Value(#[from] crate::install::ValueError),
    #[error("{file}: {source}")]
    MeshConfig { file: PathBuf, source: crate::install::MeshConfigError },
    #[error("cannot read {file}: {source}; check the path and its permissions")]
    Read { file: PathBuf, source: std::io::Error },
    #[error("{0}")]
    Directory(#[from] crate::source::dir::DirError),
    #[error("the CRDs cannot be written: {0}")]
    Definitions(#[from] serde_json::Error),
}

impl CliError {
    fn exit(&self) -> Exit {
        match self {
            Self::Client(ClientError::Unreachable { .. } | ClientError::Answer { .. }) => Exit::Unreachable,
            Self::Cluster { .. } => Exit::Unreachable,
            Self::Client(ClientError::Refused(_)) | Self::Query(_) | Self::Value(_) => Exit::Usage,
            Self::MeshConfig { .. } | Self::Read { .. } | Self::Directory(_) => Exit::Usage,
            Self::Client(ClientError::NotFound(_)) | Self::Format { .. } | Self::Definitions(_) => Exit::No,
            // `mesh-agent ... | head` is no failure.
            Self::Write(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Exit::Good,
            Self::Write(_) => Exit::No,
        }
    }
}

impl Cli {
    /// Parses the command line; help texts name the program as it was called, which may be through kubectl.
    pub fn parse_as_started() -> Self {
        let command = if cluster::is_plugin() {
            Self::command().name("kubectl-nodemesh").bin_name("kubectl nodemesh")
        } else {
            Self::command()
        };
        Self::from_arg_matches(&command.get_matches()).unwrap_or_else(|error| error.exit())
    }

    /// What the parsed words ask for.
    pub fn action(self) -> Action {
        match self.verb {
            Verb::Run(mut args) => {
                args.admin_socket = self.admin_socket;
                Action::Run(args)
            }
            Verb::Controller(args) => Action::Controller(args),
            Verb::Hold(args) => Action::Hold(args),
            Verb::Cni => Action::Cni,
            Verb::AdminRelay => {
                Action::Relay(self.admin_socket.unwrap_or_else(|| DEFAULT_ADMIN_SOCKET.into()))
            }
            verb => Action::Ask(Question { socket: self.admin_socket, output: self.output, verb }),
        }
    }
}

impl Question {
    /// Asks, prints, and says how it ended.
    pub async fn answer(self) -> Exit {
        let printer = Printer::stdout(self.output);
        let default = Path::new(DEFAULT_ADMIN_SOCKET);
        let socket = self.socket.as_deref();
        let asks_cluster =
            self.verb.target().is_some_and(|target| self.verb.may_ask_cluster(target, socket, default));
        let answered = if asks_cluster {
            cluster::answer(self.verb, printer).await
        } else {
            self.verb.answer(&Client::new(socket.unwrap_or(default)), printer).await
        };
        match answered {
            Ok(exit) => exit,
            Err(error) => {
                let exit = error.exit();
                if exit != Exit::Good {
                    eprintln!("mesh-agent: {error}");
                }
                exit
            }
        }
    }
}

impl Verb {
    /// Whom it asks; none for a verb that asks nobody.
    fn target(&self) -> Option<&cluster::Target> {
        match self {
            Self::Status(asked) | Self::Certs(asked) => Some(&asked.target),
            Self::Workloads(asked) | Self::Services(asked) | Self::Policies(asked) => Some(&asked.target),
            Self::Check(asked) => Some(&asked.target),
            Self::Connections(asked) => Some(&asked.target),
            Self::Explain(asked) => Some(&asked.target),
            Self::Routes(asked) => Some(&asked.target),
            Self::Analyze(asked) => Some(&asked.target),
            Self::Version(asked) => Some(&asked.target),
            _ => None,
        }
    }

    /// What is about this machine, or about this command, is so unless the cluster is named.
    fn may_ask_cluster(&self, target: &cluster::Target, socket: Option<&Path>, default: &Path) -> bool {
        match self {
            Self::Check(asked) if asked.args.before() => target.says_cluster() || cluster::is_plugin(),
            Self::Version(asked) if asked.args.client() => false,
            Self::Analyze(asked) if asked.args.asks_nobody() => false,
            _ => target.means_cluster(socket, default),
        }
    }

    async fn answer(self, client: &Client, printer: Printer) -> Result<Exit, CliError> {
        match self {
            // `Cli::action` keeps these.
            Self::Run(_) | Self::Controller(_) | Self::Hold(_) | Self::Cni | Self::AdminRelay => {
                Ok(Exit::Usage)
            }
            Self::Probe(args) => probe::run(client, &args).await,
            Self::Installation(verb) => verb.run().await,
            Self::Status(_) => status::run(client, printer).await,
            Self::Check(asked) => check::run(client, printer, &asked.args).await,
            Self::Workloads(asked) => workloads::run(client, printer, &asked.args).await,
            Self::Services(asked) => services::run(client, printer, &asked.args).await,
            Self::Policies(asked) => policies::run(client, printer, &asked.args).await,
            Self::Certs(_) => certs::run(client, printer).await,
            Self::Connections(asked) => connections::run(client, printer, &asked.args).await,
            Self::Explain(asked) => explain::run(client, printer, &asked.args).await,
            Self::Routes(asked) => routes::run(client, printer, &asked.args).await,
            Self::Analyze(asked) => analyze::run(client, printer, &asked.args).await,
            Self::Version(asked) => version::run(client, printer, &asked.args).await,
            Self::Completion(args) => completion::run(&args),
        }
    }
}

#[cfg(test)]
mod tests;
