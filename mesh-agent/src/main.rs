//! Parses the command line and hands over: to the agent, to the holder, to the CNI plugin, or to the verb that asks an agent.

use std::process::ExitCode;

use mesh_agent::cli::{Action, Cli, Exit};
use mesh_agent::cni;

fn main() -> ExitCode {
    // Under the plugin's own name the program is the plugin and nothing else: the runtime passes no arguments.
    if cni::plugin::is_named_so() {
        return plugin();
    }
    match Cli::parse_as_started().action() {
        Action::Run(args) => match args.resolve() {
            Ok(settings) => ended(mesh_agent::agent::run(settings)),
            Err(error) => {
                eprintln!("mesh-agent: {error}");
                Exit::Usage.into()
            }
        },
        Action::Controller(args) => match args.check() {
            Ok(()) => ended(mesh_agent::controller::run(*args)),
            Err(error) => {
                eprintln!("mesh-agent: {error}");
                Exit::Usage.into()
            }
        },
        Action::Hold(args) => ended(mesh_agent::agent::hold(args)),
        Action::Relay(socket) => mesh_agent::cli::relay::run(&socket).into(),
        Action::Cni => plugin(),
        Action::Ask(question) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            match runtime {
                Ok(runtime) => runtime.block_on(question.answer()).into(),
                Err(error) => ended(Err(error.into())),
            }
        }
    }
}

fn plugin() -> ExitCode {
    if cni::plugin::run() { Exit::Good.into() } else { Exit::No.into() }
}

fn ended(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => Exit::Good.into(),
        Err(error) => {
            eprintln!("mesh-agent: {error:#}");
            Exit::No.into()
        }
    }
}
