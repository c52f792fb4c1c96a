//! `mesh-agent completion SHELL`.

use clap::CommandFactory;
use clap_complete::Shell;

use super::{Cli, CliError, Exit, output};

#[derive(Clone, Debug, clap::Args)]
pub(super) struct CompletionArgs {
    /// Which shell; source the output, e.g. `source <(mesh-agent completion bash)`
    #[arg(value_enum)]
    shell: Shell,
}

pub(super) fn run(args: &CompletionArgs) -> Result<Exit, CliError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "mesh-agent", &mut script);
    output::write(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Good)
}
