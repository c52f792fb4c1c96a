//! `mesh-agent version`: this command's and the agent's.

use serde::Serialize;

use super::output::{Printer, Style};
use super::table::{Cell, Table};
use super::{CliError, Exit};
use crate::admin::{Client, ClientError, Version};

#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct VersionArgs {
    /// Do not ask the agent
    #[arg(long)]
    client: bool,
}

impl VersionArgs {
    pub(super) fn client(&self) -> bool {
        self.client
    }
}

/// Both versions.
#[derive(Debug, Serialize)]
pub(super) struct Versions {
    pub(super) client: Version,
    /// None when it was not asked.
    pub(super) agent: Option<Version>,
}

pub(super) async fn run(client: &Client, printer: Printer, args: &VersionArgs) -> Result<Exit, CliError> {
    let own = Version::own();
    let answer = if args.client { None } else { Some(client.get::<Version>("version").await) };
    match answer {
        None => printer.show(&Versions { client: own, agent: None }, draw),
        Some(Ok(agent)) => printer.show(&Versions { client: own, agent: Some(agent) }, draw),
        // The own version is known, whatever became of the agent.
        Some(Err(error @ ClientError::Unreachable { .. })) => {
            printer.print(&Versions { client: own, agent: None }, draw)?;
            Err(error.into())
        }
        Some(Err(error)) => Err(error.into()),
    }
}

/// An agent's version with that of its kernel side.
pub(super) fn text(agent: &Version) -> String {
    let abi = agent.abi.as_ref().map_or_else(String::new, |abi| format!(" (kernel ABI {abi})"));
    format!("{}{abi}", agent.version)
}

pub(super) fn draw(versions: &Versions, style: Style) -> String {
    let mut table = Table::plain(0);
    table.row(vec![Cell::new("Client:"), Cell::new(&versions.client.version)]);
    if let Some(agent) = &versions.agent {
        table.row(vec![Cell::new("Agent:"), Cell::new(text(agent))]);
    }
    table.draw(style)
}
