//! What `mesh-bench http` is asked for.
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::Work;
use super::stage::{Stage, Way};
use crate::stage::Pair;

pub(super) const USAGE: &str = "usage: mesh-bench http [--rounds N] [--seconds S] [--connections N] \
     [--pair same|across] [--ways W,W] [--baseline AGENT] [--json]\n\n  \
     --rounds N       rounds to keep (default 4)\n  \
     --seconds S      length of one measurement (default 1)\n  \
     --connections N  only this many connections (default 1 and 32)\n  \
     --pair P         only the same node, or only across nodes\n  \
     --ways W,W       only these: direct, mesh, judged, baseline, nginx, haproxy, envoy, envoy-pair\n  \
     --baseline AGENT another build of the agent in the same rounds, to compare with\n  \
     --json           print the figures as JSON\n\n\
     Envoy takes part where NODEMESH_ENVOY names its program, haproxy where it is installed.";

pub(crate) struct Options {
    pub(super) rounds: usize,
    pub(super) length: Duration,
    pub(super) json: bool,
    pub(super) baseline: Option<PathBuf>,
    pub(super) ways: Vec<Way>,
    connections: Vec<usize>,
    pairs: Vec<Pair>,
}

impl Options {
    /// What of it the stage has ways for.
    pub(super) fn works(&self, stage: &Stage) -> Vec<Work> {
        let all = self.pairs.iter().flat_map(|pair| self.connections.iter().map(|number| (*pair, *number)));
        let work = |(pair, connections)| {
            let ways = self.ways.iter().copied().filter(|way| stage.has(pair, *way)).collect::<Vec<_>>();
            Work { pair, connections, ways }
        };
        all.map(work).filter(|work| !work.ways.is_empty()).collect()
    }
}

pub(super) fn read(words: impl Iterator<Item = String>) -> Result<Option<Options>> {
    let mut options = Options {
        rounds: 4,
        length: Duration::from_secs(1),
        json: false,
        baseline: None,
        ways: Way::ALL.to_vec(),
        connections: vec![32, 1],
        pairs: vec![Pair::SameNode, Pair::AcrossNodes],
    };
    let mut words = words;
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} needs a value"));
        match word.as_str() {
            "--rounds" => options.rounds = number(&value()?)? as usize,
            "--seconds" => options.length = Duration::from_secs_f64(number(&value()?)?),
            "--connections" => options.connections = vec![number(&value()?)? as usize],
            "--pair" => {
                options.pairs = match value()?.as_str() {
                    "same" => vec![Pair::SameNode],
                    "across" => vec![Pair::AcrossNodes],
                    _ => bail!("--pair is same or across"),
                }
            }
            "--ways" => {
                let known = |name: &str| {
                    let way = Way::ALL.into_iter().find(|way| way.name() == name);
                    way.with_context(|| format!("`{name}` is no way"))
                };
                options.ways = value()?.split(',').map(known).collect::<Result<_>>()?;
            }
            "--baseline" => options.baseline = Some(PathBuf::from(value()?)),
            "--json" => options.json = true,
            "-h" | "--help" => return Ok(None),
            other => bail!("`{other}` is not known"),
        }
    }
    Ok(Some(options))
}

fn number(text: &str) -> Result<f64> {
    text.parse().ok().filter(|number| *number > 0.0).with_context(|| format!("{text} is no such number"))
}
