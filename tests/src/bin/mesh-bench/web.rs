//! `mesh-bench http`: requests that are read as HTTP on their way, beside the same requests by nginx, haproxy and Envoy.
//!
//! Owns: the rounds and their order. Every figure is a ratio to the same requests without a proxy, in the same round;
//! client and server are the same programs on every way.
mod hops;
mod options;
mod report;
mod stage;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use self::options::Options;
use self::report::Report;
use self::stage::{Stage, Way};
use crate::calls::Calls;
use crate::cpu::Meter;
use crate::http;
use crate::stage::Pair;
use crate::{FOREIGN_MAX, TRIES, turns};

/// Not reported: connections, tunnels and caches of all sides get warm.
const WARM_UP: Duration = Duration::from_millis(200);

/// One way in one round, or one slice of it.
#[derive(Clone, Debug, Default)]
struct Sample {
    /// Requests per second.
    rate: f64,
    /// CPU seconds of the whole machine for one request.
    cpu: f64,
    /// The part of it that the proxies' processes took.
    proxy: f64,
    /// The share of the machine that others took.
    foreign: f64,
    /// Microseconds, sorted.
    latencies: Vec<u32>,
}

impl Sample {
    fn together(slices: &[Self]) -> Self {
        let mean = |of: fn(&Self) -> f64| slices.iter().map(of).sum::<f64>() / slices.len() as f64;
        let mut latencies: Vec<u32> = slices.iter().flat_map(|slice| &slice.latencies).copied().collect();
        latencies.sort_unstable();
        Self {
            rate: mean(|slice| slice.rate),
            cpu: mean(|slice| slice.cpu),
            proxy: mean(|slice| slice.proxy),
            foreign: mean(|slice| slice.foreign),
            latencies,
        }
    }

    /// The time that this share of the answers took at most, in microseconds.
    fn quantile(&self, share: f64) -> f64 {
        let at = (self.latencies.len() as f64 * share) as usize;
        self.latencies
            .get(at.min(self.latencies.len().saturating_sub(1)))
            .copied()
            .map_or(f64::NAN, f64::from)
    }
}

pub(crate) fn main(words: impl Iterator<Item = String>) -> ExitCode {
    crate::ended(options::read(words), options::USAGE, run)
}

fn run(options: &Options) -> Result<()> {
    let stage = Stage::build(options)?;
    let works = options.works(&stage);
    if works.is_empty() {
        bail!("none of the ways that are asked for is there");
    }
    for work in &works {
        for way in &work.ways {
            one(&stage, work, *way, WARM_UP)?;
        }
    }
    let mut report = Report::new(&works, options);
    let mut kept = 0;
    for round in 0..options.rounds * TRIES {
        if kept == options.rounds {
            break;
        }
        let samples = works
            .iter()
            .map(|work| in_turn(&stage, work, round, options.length))
            .collect::<Result<Vec<_>>>()?;
        let foreign = samples.iter().flatten().map(|sample| sample.foreign).fold(0.0, f64::max);
        let left = options.rounds * TRIES - round - 1;
        let quiet = foreign <= FOREIGN_MAX;
        let keep = quiet || left < options.rounds - kept;
        eprintln!(
            "round {}: others took up to {:.0} % of the machine{}",
            round + 1,
            foreign * 100.0,
            if keep { "" } else { "; measured again" }
        );
        if keep {
            kept += 1;
            report.add(samples, quiet);
        }
    }
    for (index, work) in works.iter().enumerate() {
        if !work.ways.contains(&Way::Mesh) {
            continue;
        }
        match calls(&stage, work, options.length) {
            Ok(calls) => report.calls(index, calls),
            Err(error) => eprintln!("no system calls counted: {error:#}"),
        }
    }
    report.print(options.json);
    Ok(())
}

/// What is measured by several ways: requests on this many connections between these two.
struct Work {
    pair: Pair,
    connections: usize,
    ways: Vec<Way>,
}

/// Every way in turn, slice after slice, forth and back; which begins changes from round to round.
fn in_turn(stage: &Stage, work: &Work, round: usize, length: Duration) -> Result<Vec<Sample>> {
    let mut order: Vec<usize> = (0..work.ways.len()).collect();
    order.rotate_left(round % work.ways.len());
    let mut slices = vec![Vec::new(); work.ways.len()];
    let turns = turns(length);
    for _ in 0..turns {
        for at in &order {
            slices[*at].push(one(stage, work, work.ways[*at], length / turns)?);
        }
        order.reverse();
    }
    Ok(slices.iter().map(|slices| Sample::together(slices)).collect())
}

fn one(stage: &Stage, work: &Work, way: Way, length: Duration) -> Result<Sample> {
    let (client, to) = stage.route(work.pair, way)?;
    let meter = Meter::start(stage.pids(), stage.proxies(way))?;
    let load = http::requests(client, to, work.connections, length).with_context(|| stage.failures())?;
    let used = meter.stop()?;
    if load.count.number == 0 {
        bail!("{:?}, {way:?}: no request was answered", work.pair);
    }
    let total = load.count.total.max(1) as f64;
    Ok(Sample {
        rate: load.count.number as f64 / load.count.time.as_secs_f64(),
        cpu: used.machine / total,
        proxy: used.proxies / total,
        foreign: used.foreign,
        latencies: load.latencies,
    })
}

/// System calls of the agents for one request.
fn calls(stage: &Stage, work: &Work, length: Duration) -> Result<f64> {
    let (client, to) = stage.route(work.pair, Way::Mesh)?;
    let calls = Calls::start(&stage.proxies(Way::Mesh))?;
    let load = http::requests(client, to, work.connections, length)?;
    Ok(calls.stop()? as f64 / load.count.total.max(1) as f64)
}
