//! `mesh-agent probe`: what the kubelet asks inside the agent's container. Over the admin socket and not over a port,
//! because two agents share the node's ports during a rollout. Called by `cli`.

use super::{CliError, Exit};
use crate::admin::{Client, State, Status};

#[derive(Clone, Debug, clap::Args)]
pub(super) struct ProbeArgs {
    /// What to ask
    #[arg(value_enum)]
    question: Question,
    /// Which agent must answer to be ready, as it was named to `run`
    #[arg(long, env = "NODEMESH_INSTANCE", value_name = "NAME")]
    instance: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Question {
    /// Does an agent of this node answer? True beside a successor as well: an agent that has handed over only waits
    Alive,
    /// Does this agent serve the node?
    Ready,
}

pub(super) async fn run(client: &Client, args: &ProbeArgs) -> Result<Exit, CliError> {
    let status: Status = client.get("status").await?;
    if args.question == Question::Alive {
        return Ok(Exit::Good);
    }
    let why = not_ready(&status, args.instance.as_deref());
    if let Some(why) = &why {
        eprintln!("mesh-agent: not ready: {why}");
    }
    Ok(if why.is_some() { Exit::No } else { Exit::Good })
}

fn not_ready(status: &Status, instance: Option<&str>) -> Option<String> {
    if instance.is_some() && status.instance.as_deref() != instance {
        let other = status.instance.as_deref().unwrap_or("without a name");
        return Some(format!("another agent serves this node ({other})"));
    }
    match status.state {
        State::Ready => None,
        State::Starting => Some(status.missing.join("; ")),
        State::Draining => Some("it is ending".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::fixtures::views;

    /// During a rollout two agents answer on one socket, one after the other.
    #[test]
    fn only_the_named_agent_is_ready_and_only_in_office() {
        let mut status = views().status;
        status.instance = Some("new".to_owned());
        assert_eq!(not_ready(&status, Some("new")), None);
        assert_eq!(not_ready(&status, None), None);
        assert!(not_ready(&status, Some("old")).is_some_and(|why| why.contains("another agent")));
        status.state = State::Starting;
        status.missing = vec!["no world was loaded".to_owned()];
        assert_eq!(not_ready(&status, Some("new")).as_deref(), Some("no world was loaded"));
    }
}
