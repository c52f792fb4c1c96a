//! The composition root of `mesh-agent run`.

use crate::config::Settings;

/// Runs the agent until it is told to end.
pub fn run(settings: Settings) -> anyhow::Result<()> {
    anyhow::bail!("the agent of node {} is not built yet", settings.node)
}

/// Runs the holder process.
pub fn hold(args: crate::cli::HoldArgs) -> anyhow::Result<()> {
    anyhow::bail!("the holder at {} is not built yet", args.socket.display())
}
