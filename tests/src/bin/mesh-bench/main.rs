//! `mesh-bench`: the same traffic with and without the mesh, in one run, as ratios. What `cargo xtask bench` runs.
//!
//! Owns: the rounds and their order. Every figure is a ratio to the same traffic between pods that are not enrolled, on
//! the same nodes, measured in the same round; the two sides of a pair follow each other and change places from round to
//! round. Never part of a test run: it wants the machine for itself, and says how much of it others took.
mod bulk;
mod calls;
mod cpu;
mod envoy;
mod http;
mod report;
mod stage;
mod web;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::calls::Calls;
use crate::cpu::Meter;
use crate::report::{Report, Row};
use crate::stage::{Pair, Stage, Way};

const USAGE: &str = "usage: mesh-bench [bypass|tunnel] [--with-envoy] [--rounds N] [--seconds S] [--json]\n       \
     mesh-bench http ... (see `mesh-bench http --help`)\n\n  \
     bypass        only the same node\n  tunnel        only across nodes\n  --with-envoy  an Envoy TCP pair with mutual \
     TLS in the same rounds (NODEMESH_ENVOY names the program)\n  --rounds N    rounds to keep (default 5)\n  \
     --seconds S   length of one measurement (default 2)\n  --json        print the figures as JSON\n\n\
     for a profiler:\n  --work W      only requests, one, connections, up or down\n  --only WAY    only direct or mesh, \
     once; prints rate and CPU time per unit";

/// A round in which others took more of the machine than this is measured again.
const FOREIGN_MAX: f64 = 0.05;
/// Rounds measured at most, for each that is to be kept.
const TRIES: usize = 2;
/// How long one way has its turn within a round. A virtual processor's speed changes by a third within seconds with
/// what its neighbours do: turns have to be short beside that.
const TURN: Duration = Duration::from_millis(250);
/// Turns that each way has at least, however short a measurement is to be.
const TURNS_MIN: u32 = 4;
/// Connections opened at a time where new connections are counted.
const OPENING: usize = 8;
const IDLE_CONNECTIONS: usize = 1000;
/// After the agents' start, before their memory is looked at.
const SETTLED: Duration = Duration::from_secs(3);

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
    envoy: bool,
    /// What is measured, in this order.
    works: Vec<Work>,
    /// Measure this way alone, and compare nothing.
    only: Option<Way>,
    rounds: usize,
    length: Duration,
    json: bool,
}

/// One measurement: the rate, and the CPU time of client, server and proxies for one unit of it.
#[derive(Clone, Copy, Debug)]
struct Sample {
    rate: f64,
    cpu_seconds: f64,
    /// The proxies' part of it: the agents', or Envoy's.
    proxy_seconds: f64,
    foreign: f64,
}

impl Sample {
    /// Slices of one length as one sample; none for none.
    fn together(slices: &[Self]) -> Option<Self> {
        let mean = |of: fn(&Self) -> f64| slices.iter().map(of).sum::<f64>() / slices.len() as f64;
        (!slices.is_empty()).then(|| Self {
            rate: mean(|slice| slice.rate),
            cpu_seconds: mean(|slice| slice.cpu_seconds),
            proxy_seconds: mean(|slice| slice.proxy_seconds),
            foreign: mean(|slice| slice.foreign),
        })
    }
}

/// The samples of one work in one round.
#[derive(Clone, Copy, Debug)]
struct Samples {
    direct: Sample,
    mesh: Sample,
    envoy: Option<Sample>,
}

impl Samples {
    fn foreign(&self) -> f64 {
        [Some(self.direct), Some(self.mesh), self.envoy]
            .into_iter()
            .flatten()
            .map(|sample| sample.foreign)
            .fold(0.0, f64::max)
    }
}

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1).peekable();
    if words.next_if_eq("http").is_some() {
        return web::main(words);
    }
    ended(options(words), USAGE, run)
}

/// Does what the options say and tells how that ended; none of them: they were asked for.
fn ended<O>(options: Result<Option<O>>, usage: &str, run: impl FnOnce(&O) -> Result<()>) -> ExitCode {
    let options = match options {
        Ok(Some(options)) => options,
        Ok(None) => {
            println!("{usage}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("mesh-bench: {error:#}\n{usage}");
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
    let mut options = Options {
        bypass: true,
        tunnel: true,
        envoy: false,
        works: WORKS.to_vec(),
        only: None,
        rounds: 5,
        length: Duration::from_secs(2),
        json: false,
    };
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
            "--with-envoy" => options.envoy = true,
            "--json" => options.json = true,
            "--work" => options.works = vec![work(words.next().as_deref())?],
            "--only" => options.only = Some(way(words.next().as_deref())?),
            "--rounds" => options.rounds = number()? as usize,
            "--seconds" => options.length = Duration::from_secs_f64(number()?),
            "-h" | "--help" => return Ok(None),
            other => bail!("`{other}` is not known"),
        }
    }
    Ok(Some(options))
}

fn work(word: Option<&str>) -> Result<Work> {
    Ok(match word {
        Some("requests") => Work::Requests(32),
        Some("one") => Work::Requests(1),
        Some("connections") => Work::Connections,
        Some("up") => Work::Upload,
        Some("down") => Work::Download,
        _ => bail!("--work is requests, one, connections, up or down"),
    })
}

fn way(word: Option<&str>) -> Result<Way> {
    match word {
        Some("direct") => Ok(Way::Direct),
        Some("mesh") => Ok(Way::Mesh),
        _ => bail!("--only is direct or mesh"),
    }
}

fn run(options: &Options) -> Result<()> {
    let envoy = if options.envoy { Some(envoy::program()?) } else { None };
    let mut stage = Stage::build(envoy.as_deref())?;
    let mut report = Report::new(options.rounds, options.length);
    for (wanted, pair) in [(options.bypass, Pair::SameNode), (options.tunnel, Pair::AcrossNodes)] {
        if !wanted {
            continue;
        }
        stage.agents_for(pair)?;
        // What only an agent's start needs goes a second after it.
        std::thread::sleep(SETTLED);
        // Of an agent that has worked already, what it took before.
        report.resident_idle.extend(stage.resident()?.drain(report.resident_idle.len()..));
        stage.check_path(pair)?;
        if let Some(way) = options.only {
            alone(&stage, pair, way, options)?;
            continue;
        }
        measure(&stage, pair, options, &mut report)?;
    }
    if options.only.is_some() {
        return Ok(());
    }
    report.resident_loaded = stage.resident()?;
    if options.tunnel {
        report.per_connection = Some(stage.idle_connections(IDLE_CONNECTIONS)?);
    }
    report.print(options.json);
    Ok(())
}

/// One way by itself, so that a profiler sees nothing else.
fn alone(stage: &Stage, pair: Pair, way: Way, options: &Options) -> Result<()> {
    for work in &options.works {
        let sample = one(stage, pair, *work, way, options.length)?;
        println!(
            "{pair:?} {way:?} {work:?}: {:.0}/s, {:.1} us of CPU per unit, {:.1} of them the agents'",
            sample.rate,
            sample.cpu_seconds * 1e6,
            sample.proxy_seconds * 1e6
        );
    }
    Ok(())
}

/// All works of one pair, round after round.
fn measure(stage: &Stage, pair: Pair, options: &Options, report: &mut Report) -> Result<()> {
    let ways = stage.ways(pair);
    let works = &options.works;
    let mut rows: Vec<Row> = works.iter().map(|work| Row::new(pair, *work)).collect();
    for work in works {
        // Tunnels, certificates and caches of all sides are warm before anything counts.
        for way in &ways {
            one(stage, pair, *work, *way, Duration::from_millis(200))?;
        }
    }
    let mut kept = 0;
    for round in 0..options.rounds * TRIES {
        if kept == options.rounds {
            break;
        }
        let samples = works
            .iter()
            .map(|work| {
                let mut turn = ways.clone();
                turn.rotate_left(round % ways.len());
                in_turn(stage, pair, *work, &turn, options.length)
            })
            .collect::<Result<Vec<_>>>()?;
        let foreign = samples.iter().map(Samples::foreign).fold(0.0, f64::max);
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
            for (row, samples) in rows.iter_mut().zip(samples) {
                row.add(samples);
            }
        }
    }
    for (row, work) in rows.iter_mut().zip(works) {
        match calls(stage, pair, *work, options.length) {
            Ok(calls) => row.calls = Some(calls),
            Err(error) => eprintln!("no system calls counted: {error:#}"),
        }
    }
    report.rows.append(&mut rows);
    Ok(())
}

/// One work by every way, in this order and back again, slice after slice: what drifts on the machine meets all alike.
fn in_turn(stage: &Stage, pair: Pair, work: Work, turn: &[Way], length: Duration) -> Result<Samples> {
    let mut found = [const { Vec::new() }; 3];
    let turns = turns(length);
    for slice in 0..turns {
        let mut order = turn.to_vec();
        if slice % 2 == 1 {
            order.reverse();
        }
        for way in order {
            found[way as usize].push(one(stage, pair, work, way, length / turns)?);
        }
    }
    let [Some(direct), Some(mesh), envoy] = found.map(|slices| Sample::together(&slices)) else {
        bail!("a way was left out")
    };
    Ok(Samples { direct, mesh, envoy })
}

/// How many turns a measurement is cut into.
fn turns(length: Duration) -> u32 {
    ((length.as_millis() / TURN.as_millis()) as u32).max(TURNS_MIN)
}

/// System calls of both agents for one unit of work.
fn calls(stage: &Stage, pair: Pair, work: Work, length: Duration) -> Result<f64> {
    let route = stage.route(pair, Way::Mesh)?;
    let calls = Calls::start(&stage.proxies(Way::Mesh))?;
    let count = work.run(&route, length)?;
    Ok(calls.stop()? as f64 / count.total.max(1) as f64)
}

fn one(stage: &Stage, pair: Pair, work: Work, way: Way, length: Duration) -> Result<Sample> {
    let route = stage.route(pair, way)?;
    let meter = Meter::start(stage.pids(), stage.proxies(way))?;
    let count = work.run(&route, length)?;
    let used = meter.stop()?;
    if count.number == 0 {
        bail!("{pair:?} {work:?}, {way:?}: nothing was moved");
    }
    Ok(Sample {
        rate: count.number as f64 / count.time.as_secs_f64(),
        cpu_seconds: used.own / count.total.max(1) as f64,
        proxy_seconds: used.proxies / count.total.max(1) as f64,
        foreign: used.foreign,
    })
}

impl Work {
    fn run(self, route: &stage::Route<'_>, length: Duration) -> Result<http::Count> {
        match self {
            Self::Requests(connections) => {
                http::requests(route.client, route.http, connections, length).map(|load| load.count)
            }
            Self::Connections => {
                http::connections(route.client, route.http, OPENING, length).map(|load| load.count)
            }
            Self::Upload => bulk::move_bytes(route, true, length),
            Self::Download => bulk::move_bytes(route, false, length),
        }
    }
}
