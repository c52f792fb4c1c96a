//! What was measured, as a table or as JSON: medians and spreads of ratios, our bar and the others' figures beside them.
use std::time::Duration;

use serde_json::{Value, json};

use crate::stage::Pair;
use crate::{Samples, Work};

const MIB: f64 = 1_048_576.0;
/// Resident memory that an agent may take, and what an idle connection may cost it.
const RESIDENT_MAX_MIB: f64 = 20.0;
const PER_CONNECTION_MAX_KIB: f64 = 5.0;

/// One work of one pair over all rounds.
pub(crate) struct Row {
    pair: Pair,
    work: Work,
    direct: Vec<f64>,
    mesh: Vec<f64>,
    ratios: Vec<f64>,
    cpu: Vec<f64>,
    agents: Vec<f64>,
    /// Of the Envoy pair, where one ran in the same rounds: ratio and CPU.
    envoy: Vec<f64>,
    envoy_cpu: Vec<f64>,
    /// System calls of both agents for one unit.
    pub(crate) calls: Option<f64>,
}

/// The bar, and what ztunnel and an Envoy TCP pair reached on a machine of this kind (`docs/benchmarks.md`).
struct Others {
    bar: Option<f64>,
    ztunnel: Option<f64>,
    envoy: Option<f64>,
}

impl Row {
    pub(crate) fn new(pair: Pair, work: Work) -> Self {
        Self {
            pair,
            work,
            direct: Vec::new(),
            mesh: Vec::new(),
            ratios: Vec::new(),
            cpu: Vec::new(),
            agents: Vec::new(),
            envoy: Vec::new(),
            envoy_cpu: Vec::new(),
            calls: None,
        }
    }

    pub(crate) fn add(&mut self, Samples { direct, mesh, envoy }: Samples) {
        self.direct.push(direct.rate);
        self.mesh.push(mesh.rate);
        self.ratios.push(mesh.rate / direct.rate);
        self.agents.push(mesh.proxy_seconds);
        let cpu = direct.cpu_seconds.max(f64::MIN_POSITIVE);
        self.cpu.push(mesh.cpu_seconds / cpu);
        if let Some(envoy) = envoy {
            self.envoy.push(envoy.rate / direct.rate);
            self.envoy_cpu.push(envoy.cpu_seconds / cpu);
        }
    }

    fn name(&self) -> String {
        match self.work {
            Work::Requests(1) => "requests/s, 1 connection".to_owned(),
            Work::Requests(number) => format!("requests/s, {number} connections"),
            Work::Connections => "new connections/s".to_owned(),
            Work::Upload => "bulk up, MiB/s".to_owned(),
            Work::Download => "bulk down, MiB/s".to_owned(),
        }
    }

    fn others(&self) -> Others {
        let others = |bar, ztunnel, envoy| Others { bar: Some(bar), ztunnel, envoy };
        match (self.pair, self.work) {
            (Pair::SameNode, _) => others(0.95, None, None),
            (Pair::AcrossNodes, Work::Requests(1)) => others(0.58, Some(0.60), Some(0.54)),
            (Pair::AcrossNodes, Work::Requests(_)) => others(0.42, Some(0.22), Some(0.20)),
            (Pair::AcrossNodes, Work::Connections) => others(0.40, Some(0.22), Some(0.12)),
            (Pair::AcrossNodes, _) => others(0.20, Some(0.19), Some(0.20)),
        }
    }

    /// Bytes are shown in MiB.
    fn unit(&self) -> f64 {
        if matches!(self.work, Work::Upload | Work::Download) { MIB } else { 1.0 }
    }
}

pub(crate) struct Report {
    rounds: usize,
    length: Duration,
    pub(crate) rows: Vec<Row>,
    /// Rounds that were kept although others took more of the machine than they should.
    pub(crate) noisy: usize,
    pub(crate) resident_idle: Vec<u64>,
    pub(crate) resident_loaded: Vec<u64>,
    pub(crate) per_connection: Option<Vec<f64>>,
}

impl Report {
    pub(crate) fn new(rounds: usize, length: Duration) -> Self {
        Self {
            rounds,
            length,
            rows: Vec::new(),
            noisy: 0,
            resident_idle: Vec::new(),
            resident_loaded: Vec::new(),
            per_connection: None,
        }
    }

    pub(crate) fn print(&self, as_json: bool) {
        if as_json {
            println!("{:#}", self.json());
        } else {
            self.table();
        }
    }

    fn table(&self) {
        let here = self.rows.iter().any(|row| !row.envoy.is_empty());
        println!(
            "\nMedians of {} rounds of {:.1} s; ratio = with the mesh / without, in the same round; CPU = client, server and \
             proxies per unit, times direct's;\nagents = CPU time of both agents per request, connection or MiB, in \
             microseconds; calls = their system calls per unit;\nztunnel, Envoy = ratios of those pairs on a machine of \
             this kind{}\n",
            self.rounds,
            self.length.as_secs_f64(),
            if here { "; here = the Envoy pair in these very rounds, and its CPU" } else { "" }
        );
        println!(
            "{:<13}{:<26}{:>10}{:>10}{:>8}{:>14}{:>7}{:>8}{:>8}{:>7}  {:<8}{:>8}{:>7}{:>8}{:>7}",
            "",
            "",
            "direct",
            "mesh",
            "ratio",
            "spread",
            "CPU",
            "agents",
            "calls",
            "bar",
            "verdict",
            "ztunnel",
            "Envoy",
            if here { "here" } else { "" },
            if here { "CPU" } else { "" },
        );
        let known = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}"));
        for row in &self.rows {
            let Others { bar, ztunnel, envoy } = row.others();
            let ratio = median(&row.ratios);
            let (low, high) = spread(&row.ratios);
            let (rate, cpu) = match row.envoy.as_slice() {
                [] => (String::new(), String::new()),
                found => (format!("{:.2}", median(found)), format!("{:.2}", median(&row.envoy_cpu))),
            };
            println!(
                "{:<13}{:<26}{:>10.0}{:>10.0}{ratio:>8.2}{:>14}{:>7.2}{:>8.1}{:>8}{:>7}  {:<8}{:>8}{:>7}{rate:>8}{cpu:>7}",
                if row.pair == Pair::SameNode { "same node" } else { "across nodes" },
                row.name(),
                median(&row.direct) / row.unit(),
                median(&row.mesh) / row.unit(),
                format!("{low:.2}..{high:.2}"),
                median(&row.cpu),
                median(&row.agents) * row.unit() * 1e6,
                known(row.calls.map(|calls| calls * row.unit())),
                known(bar),
                bar.map_or("", |bar| verdict(ratio >= bar)),
                known(ztunnel),
                known(envoy),
            );
        }
        println!();
        let most = |bytes: &[u64]| bytes.iter().copied().max().unwrap_or(0) as f64 / MIB;
        println!(
            "resident memory of an agent: {:.1} MiB at the start, {:.1} MiB after the load (bar {RESIDENT_MAX_MIB:.0}): {}",
            most(&self.resident_idle),
            most(&self.resident_loaded),
            verdict(most(&self.resident_loaded) <= RESIDENT_MAX_MIB)
        );
        if let Some(sides) = &self.per_connection {
            let most = sides.iter().copied().fold(0.0, f64::max) / 1024.0;
            println!(
                "an idle relayed connection: {most:.1} KiB on the dearer side (bar {PER_CONNECTION_MAX_KIB:.0}): {}",
                verdict(most <= PER_CONNECTION_MAX_KIB)
            );
        }
        if self.noisy > 0 {
            println!(
                "{} rounds were kept though others used the machine: take the figures with care",
                self.noisy
            );
        }
    }

    fn json(&self) -> Value {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|row| {
                let Others { bar, ztunnel, envoy } = row.others();
                let ratio = median(&row.ratios);
                json!({
                    "pair": format!("{:?}", row.pair), "work": row.name(),
                    "direct": median(&row.direct) / row.unit(), "mesh": median(&row.mesh) / row.unit(),
                    "ratio": ratio, "ratios": row.ratios, "cpu_ratio": median(&row.cpu),
                    "agent_cpu_us": median(&row.agents) * row.unit() * 1e6, "bar": bar,
                    "met": bar.is_none_or(|bar| ratio >= bar), "ztunnel": ztunnel, "envoy_tcp": envoy,
                    "system_calls": row.calls.map(|calls| calls * row.unit()),
                    "envoy_here": row.envoy, "envoy_here_cpu": row.envoy_cpu,
                })
            })
            .collect();
        json!({
            "rounds": self.rounds, "seconds": self.length.as_secs_f64(), "noisy_rounds": self.noisy, "rows": rows,
            "resident_bytes_idle": self.resident_idle, "resident_bytes_loaded": self.resident_loaded,
            "bytes_per_idle_connection": self.per_connection,
        })
    }
}

pub(crate) fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "MISSED" }
}

pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => sorted[odd / 2],
        even => f64::midpoint(sorted[even / 2 - 1], sorted[even / 2]),
    }
}

pub(crate) fn spread(values: &[f64]) -> (f64, f64) {
    values
        .iter()
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(*value), high.max(*value)))
}
