//! The command line: one file per verb, each asking the admin API and printing what it answers.
//! Owns: flags, tables, exit codes. Never: reads the mesh by itself (but `check` probes the machine).
//! Called by `main`.
//!
//! Exit codes: 0 good, 1 the answer is no (a failed check, a denied explain, an agent that is not ready),
//! 2 wrong usage, 3 the agent cannot be reached.

mod certs;
mod check;
mod completion;
mod connections;
mod explain;
mod human;
mod output;
mod policies;
mod services;
mod status;
mod table;
mod version;
mod workloads;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::admin::{Client, ClientError};
use crate::config::{DEFAULT_ADMIN_SOCKET, RunArgs};
use output::{Format, Printer};

/// Nodemesh: a service mesh with one agent per node, no sidecars and no waypoints.
#[derive(Debug, Parser)]
#[command(name = "mesh-agent", version, propagate_version = true, disable_help_subcommand = true)]
#[command(
    after_help = "Exit codes: 0 good, 1 the answer is no, 2 wrong usage, 3 the agent cannot be reached."
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
    /// Keep an agent's listeners while it restarts (started by the agent)
    #[command(hide = true)]
    Hold(HoldArgs),
    /// The chained CNI plugin (called by the container runtime)
    #[command(hide = true)]
    Cni,
    /// How the agent is
    Status,
    /// Whether this machine and its agent have all they need
    Check(check::CheckArgs),
    /// Pods, their enrolment and identities
    #[command(visible_alias = "workload")]
    Workloads(NamespaceArgs),
    /// Services with their endpoints
    #[command(visible_alias = "service")]
    Services(NamespaceArgs),
    /// Policies in force and whom they speak of
    #[command(visible_alias = "policy")]
    Policies(NamespaceArgs),
    /// Certificates and their lives
    #[command(visible_alias = "cert")]
    Certs,
    /// Live connections, relayed and bypassed
    #[command(visible_alias = "conn")]
    Connections(connections::ConnectionsArgs),
    /// What happens when SRC connects to DST, and which rule decides
    Explain(explain::ExplainArgs),
    /// Version of this command and of the agent
    Version(version::VersionArgs),
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
    Hold(HoldArgs),
    Cni,
    Ask(Question),
}

/// A verb that asks an agent, or needs none.
#[derive(Debug)]
pub struct Question {
    socket: PathBuf,
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
}

impl CliError {
    fn exit(&self) -> Exit {
        match self {
            Self::Client(ClientError::Unreachable { .. } | ClientError::Answer { .. }) => Exit::Unreachable,
            Self::Client(ClientError::Refused(_)) | Self::Query(_) => Exit::Usage,
            Self::Client(ClientError::NotFound(_)) | Self::Format { .. } => Exit::No,
            // `mesh-agent ... | head` is no failure.
            Self::Write(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Exit::Good,
            Self::Write(_) => Exit::No,
        }
    }
}

impl Cli {
    /// What the parsed words ask for.
    pub fn action(self) -> Action {
        match self.verb {
            Verb::Run(mut args) => {
                args.admin_socket = self.admin_socket;
                Action::Run(args)
            }
            Verb::Hold(args) => Action::Hold(args),
            Verb::Cni => Action::Cni,
            verb => Action::Ask(Question {
                socket: self.admin_socket.unwrap_or_else(|| DEFAULT_ADMIN_SOCKET.into()),
                output: self.output,
                verb,
            }),
        }
    }
}

impl Question {
    /// Asks, prints, and says how it ended.
    pub async fn answer(self) -> Exit {
        let printer = Printer::stdout(self.output);
        match self.verb.answer(&Client::new(&self.socket), printer).await {
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
    async fn answer(self, client: &Client, printer: Printer) -> Result<Exit, CliError> {
        match self {
            // `Cli::action` keeps these.
            Self::Run(_) | Self::Hold(_) | Self::Cni => Ok(Exit::Usage),
            Self::Status => status::run(client, printer).await,
            Self::Check(args) => check::run(client, printer, &args).await,
            Self::Workloads(args) => workloads::run(client, printer, &args).await,
            Self::Services(args) => services::run(client, printer, &args).await,
            Self::Policies(args) => policies::run(client, printer, &args).await,
            Self::Certs => certs::run(client, printer).await,
            Self::Connections(args) => connections::run(client, printer, &args).await,
            Self::Explain(args) => explain::run(client, printer, &args).await,
            Self::Version(args) => version::run(client, printer, &args).await,
            Self::Completion(args) => completion::run(&args),
        }
    }
}

#[cfg(test)]
mod tests;
