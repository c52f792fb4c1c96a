//! `mesh-bench`: the same traffic with and without the mesh, in one run, as ratios. What `cargo xtask bench` runs.
//!
//! Owns: the rounds and their order. Every figure is a ratio to the same traffic between pods that are not enrolled, on
//! the same nodes, measured in the same round; the two sides of a pair follow each other and change places from round to
//! round. Never part of a test run: it wants the machine for itself, and says how much of it others took.
mod bulk;
mod cpu;
mod http;
mod report;
mod stage;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cpu::Meter;
use crate::report::{Report, Row};
use crate::stage::{Pair, Stage};

const USAGE: &str = "usage: mesh-bench [bypass|tunnel] [--rounds N] [--seconds S] [--json]\n\n  \
     bypass      only the same node\n  tunnel      only across nodes\n  --rounds N  rounds to keep (default 5)\n  \
     --seconds S length of one measurement (default 2)\n  --json      print the figures as JSON";

/// A round in which others took more of the machine than this is measured again.
const FOREIGN_MAX: f64 = 0.05;
/// Rounds measured at most, for each that is to be kept.
const TRIES: usize = 2;
/// Connections opened at a time where new connections are counted.
const OPENING: usize = 8;
const IDLE_CONNECTIONS: usize = 1000;

/// What one measurement is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    /// Requests per second on this many open connections.
    Requests(usize),
    /// New connections per second, one request each.
    Connections,
    Upload,
    Download,
}

const WORKS: [Work; 5] =
    [Work::Requests(32), Work::Requests(1), Work::Connections, Work::Upload, Work::Download];

/// What is asked for.
struct Options {
    bypass: bool,
    tunnel: bool,
    rounds: usize,
    length: Duration,
    json: bool,
}

/// One measurement: the rate, and the CPU time of client, server and agents for one unit of it.
#[derive(Clone, Copy, Debug)]
struct Sample {
    rate: f64,
    cpu_seconds: f64,
    /// The agents' part of it.
    agent_seconds: f64,
    foreign: f64,
}

fn main() -> ExitCode {
    let options = match options(std::env::args().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("mesh-bench: {error:#}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mesh-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn options(words: impl Iterator<Item = String>) -> Result<Option<Options>> {
    let mut options =
        Options { bypass: true, tunnel: true, rounds: 5, length: Duration::from_secs(2), json: false };
    let mut words = words.peekable();
    while let Some(word) = words.next() {
        let mut number = || -> Result<f64> {
            let text = words.next().with_context(|| format!("{word} needs a number"))?;
            text.parse()
                .ok()
                .filter(|number| *number > 0.0)
                .with_context(|| format!("{text} is no such number"))
        };
        match word.as_str() {
            "bypass" => options.tunnel = false,
            "tunnel" => options.bypass = false,
            "--json" => options.json = true,
            "--rounds" => options.rounds = number()? as usize,
            "--seconds" => options.length = Duration::from_secs_f64(number()?),
            "-h" | "--help" => return Ok(None),
            other => bail!("`{other}` is not known"),
        }
    }
    Ok(Some(options))
}

fn run(options: &Options) -> Result<()> {
    let stage = Stage::build()?;
    let mut report = Report::new(options.rounds, options.length);
    report.resident_idle = stage.resident()?;
    for (wanted, pair) in [(options.bypass, Pair::SameNode), (options.tunnel, Pair::AcrossNodes)] {
        if !wanted {
            continue;
        }
        stage.check_path(pair)?;
        measure(&stage, pair, options, &mut report)?;
    }
    report.resident_loaded = stage.resident()?;
    if options.tunnel {
        report.per_connection = Some(stage.idle_connections(IDLE_CONNECTIONS)?);
    }
    report.print(options.json);
    Ok(())
}

/// All works of one pair, round after round.
fn measure(stage: &Stage, pair: Pair, options: &Options, report: &mut Report) -> Result<()> {
    let mut rows: Vec<Row> = WORKS.iter().map(|work| Row::new(pair, *work)).collect();
    for work in WORKS {
        // Tunnels, certificates and caches of both sides are warm before anything counts.
        for enrolled in [false, true] {
            one(stage, pair, work, enrolled, Duration::from_millis(200))?;
        }
    }
    let mut kept = 0;
    for round in 0..options.rounds * TRIES {
        if kept == options.rounds {
            break;
        }
        let mut samples = Vec::with_capacity(WORKS.len());
        for work in WORKS {
            let order = if round % 2 == 0 { [false, true] } else { [true, false] };
            let mut both = order.map(|enrolled| (enrolled, one(stage, pair, work, enrolled, options.length)));
            both.sort_by_key(|(enrolled, _)| *enrolled);
            let [(_, direct), (_, mesh)] = both;
            samples.push((direct?, mesh?));
        }
        let foreign =
            samples.iter().map(|(direct, mesh)| direct.foreign.max(mesh.foreign)).fold(0.0, f64::max);
        let left = options.rounds * TRIES - round - 1;
        let quiet = foreign <= FOREIGN_MAX;
        eprintln!(
            "{pair:?} round {}: others took up to {:.0} % of the machine{}",
            round + 1,
            foreign * 100.0,
            if quiet || left < options.rounds - kept { "" } else { "; measured again" }
        );
        if quiet || left < options.rounds - kept {
            kept += 1;
            report.noisy += usize::from(!quiet);
            for (row, (direct, mesh)) in rows.iter_mut().zip(samples) {
                row.add(direct, mesh);
            }
        }
    }
    report.rows.append(&mut rows);
    Ok(())
}

fn one(stage: &Stage, pair: Pair, work: Work, enrolled: bool, length: Duration) -> Result<Sample> {
    let route = stage.route(pair, enrolled)?;
    let meter = Meter::start(stage.pids(), stage.agents())?;
    let count = match work {
        Work::Requests(connections) => http::requests(&route, connections, length)?,
        Work::Connections => http::connections(&route, OPENING, length)?,
        Work::Upload => bulk::move_bytes(&route, true, length)?,
        Work::Download => bulk::move_bytes(&route, false, length)?,
    };
    let used = meter.stop()?;
    if count.number == 0 {
        bail!("{pair:?} {work:?}, enrolled {enrolled}: nothing was moved");
    }
    Ok(Sample {
        rate: count.number as f64 / count.time.as_secs_f64(),
        cpu_seconds: used.own / count.total.max(1) as f64,
        agent_seconds: used.agents / count.total.max(1) as f64,
        foreign: used.foreign,
    })
}
