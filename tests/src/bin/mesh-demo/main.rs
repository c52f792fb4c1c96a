//! `mesh-demo`: the story that `cargo xtask demo` tells. Builds a small shop on two nodes of the lab, shows step by step
//! what the mesh does to its traffic, checks that each step really happened, and removes every trace.
//!
//! Owns: the order of the story and the process's end. Never: knows the agent from inside; all it shows comes from the
//! agent's own CLI, from curl and from the wire. `--exit` ends by itself, with exit code 0 only if every step held.
mod shop;
mod stop;
mod story;
mod terminal;
mod tour;

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::shop::Shop;
use crate::stop::Stop;
use crate::terminal::Terminal;

/// What a shell gives a program that Ctrl-C ended.
const INTERRUPTED: u8 = 130;
const USAGE: &str =
    "usage: mesh-demo [--exit]\n\n  --exit   end after the story instead of leaving the shop up";

fn main() -> ExitCode {
    let mut exit = false;
    for word in std::env::args().skip(1) {
        match word.as_str() {
            "--exit" => exit = true,
            "-h" | "--help" => {
                println!("{USAGE}");
                return ExitCode::SUCCESS;
            }
            other => {
                eprintln!("mesh-demo: `{other}` is not known\n{USAGE}");
                return ExitCode::from(2);
            }
        }
    }
    let terminal = Terminal::new();
    let stop = match Stop::install() {
        Ok(stop) => stop,
        Err(error) => {
            terminal.failure(&format!("{error:#}"));
            return ExitCode::FAILURE;
        }
    };
    match run(&terminal, &stop, exit) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) if stop.asked() => {
            terminal.failure("interrupted; every trace is removed");
            ExitCode::from(INTERRUPTED)
        }
        Err(error) => {
            terminal.failure(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(terminal: &Terminal, stop: &Stop, exit: bool) -> Result<()> {
    let mut shop = Shop::open(terminal)?;
    let told = story::tell(&mut shop, terminal, stop);
    if let Err(error) = &told
        && !stop.asked()
    {
        terminal.failure(&format!("{error:#}"));
        shop.print_logs(terminal);
    }
    if told.is_ok() {
        tour::print(&shop, terminal);
        if !exit {
            stop.wait(terminal);
        }
    }
    let closed = shop.close(terminal);
    if told.is_err() {
        bail!("the demo failed; what was expected and what was seen stands above");
    }
    closed
}
