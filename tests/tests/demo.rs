//! The demo tested from outside: what it tells, what it prints to try, and that it leaves nothing behind.
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const DEMO: &str = env!("CARGO_BIN_EXE_mesh-demo");
/// Where the labs keep their folders and pins; those of a lab begin with `nm` and the owner's process id.
const PLACES: [&str; 3] = ["/run/netns", "/run/nodemesh-lab", "/sys/fs/bpf"];

fn demo(arguments: &[&str]) -> Result<Child> {
    let mut command = Command::new(DEMO);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    command.spawn().context("cannot start mesh-demo")
}

/// Everything of the demo with this process id that is still there.
fn remains(pid: u32) -> Vec<String> {
    let marks = [format!("nm{pid}-"), format!("nodemesh-lab-nm{pid}-")];
    let entries = PLACES.iter().flat_map(|place| fs::read_dir(place).into_iter().flatten().flatten());
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| marks.iter().any(|mark| name.starts_with(mark))).collect()
}

fn ended_well(mut child: Child) -> Result<()> {
    let pid = child.id();
    let status = child.wait().context("waiting for mesh-demo")?;
    ensure!(status.success(), "mesh-demo ended with {status}");
    ensure!(remains(pid).is_empty(), "left behind: {:?}", remains(pid));
    Ok(())
}

/// `mesh-demo --exit` tells every step of the story, with the agent's own words in it, and leaves nothing behind.
#[test]
fn the_story_holds() -> Result<()> {
    let mut child = demo(&["--exit"])?;
    let mut story = String::new();
    child.stdout.take().context("no output")?.read_to_string(&mut story).context("reading the story")?;
    for line in [
        "1. Without the mesh",
        "GET /card=4111-1111-1111-1111 HTTP/1.1",
        "2. Enrolled by one label: mutual TLS",
        "spiffe://cluster.local/ns/shop/sa/frontend -> spiffe://cluster.local/ns/shop/sa/reviews",
        "3. A Service over both nodes",
        "4. Same node: the agent is not in the way",
        "bypass, agent frozen: this is reviews-v1",
        "hbone,  agent frozen: no answer",
        "5. An AuthorizationPolicy",
        "policy_not_allowed",
        "6. A policy change cuts live connections",
        "reason=\"policy_changed\"",
        "DENIED by AuthorizationPolicy shop/deny-frontend, rule 0",
        "ok: no process, namespace, pinned program or file is left",
    ] {
        ensure!(story.contains(line), "the story does not tell `{line}`:\n{story}");
    }
    ensure!(!story.contains('\u{1b}'), "colours without a terminal:\n{story}");
    ended_well(child)
}

/// Each command that the demo prints to try works as it is printed; Enter takes the shop down.
#[test]
fn the_printed_commands_work() -> Result<()> {
    let mut child = demo(&[])?;
    let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    let mut told = Vec::new();
    let mut tour = Vec::new();
    for line in lines.by_ref() {
        let line = line.context("reading the story")?;
        if line.starts_with("Press Enter") {
            break;
        }
        let command = line.trim();
        if told.iter().any(|line: &String| line.starts_with("The shop is yours"))
            && !command.is_empty()
            && !command.starts_with('#')
        {
            tour.push(command.to_owned());
        }
        told.push(line);
    }
    ensure!(tour.len() == 8, "the demo prints {} commands:\n{}", tour.len(), told.join("\n"));
    for command in tour.iter().filter(|command| !command.contains("tcpdump")) {
        let out = Command::new("sh").args(["-c", command]).output().context("cannot start sh")?;
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        ensure!(out.status.success(), "`{command}` ended with {}: {said}", out.status);
    }
    writeln!(child.stdin.take().context("no input")?).context("pressing Enter")?;
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    ensure!(rest.iter().any(|line| line.contains("is left")), "{}", rest.join("\n"));
    ended_well(child)
}

/// A signal in the middle of the story takes everything down, and the exit code says that the story was not told.
#[test]
fn an_interrupted_demo_leaves_nothing() -> Result<()> {
    let mut child = demo(&["--exit"])?;
    let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    let reached = lines.by_ref().map_while(Result::ok).any(|line| line.starts_with("2. "));
    ensure!(reached, "the story did not reach its second step");
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).context("cannot interrupt")?;
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    let status = child.wait().context("waiting for mesh-demo")?;
    ensure!(status.code() == Some(130), "ended with {status}:\n{}", rest.join("\n"));
    ensure!(remains(child.id()).is_empty(), "left behind: {:?}", remains(child.id()));
    Ok(())
}
