//! What `mesh-bench http` measured, as tables or as JSON.
use std::time::Duration;

use serde_json::{Value, json};

use super::options::Options;
use super::stage::Way;
use super::{Sample, Work};
use crate::report::{median, spread, verdict};
use crate::stage::Pair;

/// Ratios to direct on 32 connections that the mesh has to reach, and those it aims at.
struct Goal {
    bar: f64,
    aim: f64,
}

/// One way over all rounds.
struct Row {
    way: Way,
    samples: Vec<Sample>,
    calls: Option<f64>,
}

/// One work: the ways beside each other.
struct Part {
    pair: Pair,
    connections: usize,
    rows: Vec<Row>,
}

pub(super) struct Report {
    rounds: usize,
    length: Duration,
    noisy: usize,
    parts: Vec<Part>,
}

impl Report {
    pub(super) fn new(works: &[Work], options: &Options) -> Self {
        let row = |way: &Way| Row { way: *way, samples: Vec::new(), calls: None };
        let part = |work: &Work| Part {
            pair: work.pair,
            connections: work.connections,
            rows: work.ways.iter().map(row).collect(),
        };
        Self {
            rounds: options.rounds,
            length: options.length,
            noisy: 0,
            parts: works.iter().map(part).collect(),
        }
    }

    /// One round: of each work a sample of each way.
    pub(super) fn add(&mut self, round: Vec<Vec<Sample>>, quiet: bool) {
        self.noisy += usize::from(!quiet);
        for (part, samples) in self.parts.iter_mut().zip(round) {
            for (row, sample) in part.rows.iter_mut().zip(samples) {
                row.samples.push(sample);
            }
        }
    }

    /// System calls of the agents per request of a work.
    pub(super) fn calls(&mut self, work: usize, calls: f64) {
        if let Some(row) = self.parts[work].rows.iter_mut().find(|row| row.way == Way::Mesh) {
            row.calls = Some(calls);
        }
    }

    pub(super) fn print(&self, as_json: bool) {
        if as_json {
            println!("{:#}", self.json());
            return;
        }
        println!(
            "\nMedians of {} rounds of {:.1} s, in which the ways take turns. ratio = requests/s, as a share of direct's in \
             the same round;\np50, p99 = time of an answer in microseconds, and times direct's; CPU = time of the whole \
             machine per request in microseconds,\nand times direct's; proxy = the proxies' own part of it; calls = system \
             calls of the agents per request; mesh is = the mesh's\nrequests/s as a multiple of this way's",
            self.rounds,
            self.length.as_secs_f64()
        );
        self.parts.iter().for_each(Part::table);
        println!();
        self.parts.iter().for_each(Part::judge);
        if self.noisy > 0 {
            println!(
                "{} rounds were kept though others used the machine: take the figures with care",
                self.noisy
            );
        }
    }

    fn json(&self) -> Value {
        let rows: Vec<Value> = self.parts.iter().flat_map(Part::json).collect();
        json!({
            "rounds": self.rounds, "seconds": self.length.as_secs_f64(), "noisy_rounds": self.noisy, "rows": rows,
        })
    }
}

impl Part {
    fn title(&self) -> String {
        let pair = if self.pair == Pair::SameNode { "same node" } else { "across nodes" };
        let plural = if self.connections == 1 { "" } else { "s" };
        format!("{pair}, {} connection{plural}", self.connections)
    }

    fn row(&self, way: Way) -> Option<&Row> {
        self.rows.iter().find(|row| row.way == way)
    }

    fn goal(&self) -> Option<Goal> {
        match (self.pair, self.connections) {
            (Pair::SameNode, 32) => Some(Goal { bar: 0.33, aim: 0.45 }),
            (Pair::AcrossNodes, 32) => Some(Goal { bar: 0.25, aim: 0.38 }),
            _ => None,
        }
    }

    /// A figure of one way to that of another, round by round.
    fn ratios(&self, way: Way, to: Way, of: impl Fn(&Sample) -> f64) -> Vec<f64> {
        let (Some(one), Some(other)) = (self.row(way), self.row(to)) else { return Vec::new() };
        one.samples.iter().zip(&other.samples).map(|(one, other)| of(one) / of(other)).collect()
    }

    fn table(&self) {
        println!(
            "\n{:<34}{:>11}{:>7}{:>12}{:>8}{:>6}{:>8}{:>6}{:>7}{:>6}{:>7}{:>7}{:>9}",
            self.title(),
            "requests/s",
            "ratio",
            "spread",
            "p50",
            "x",
            "p99",
            "x",
            "CPU",
            "x",
            "proxy",
            "calls",
            "mesh is",
        );
        for row in &self.rows {
            let ratios = self.ratios(row.way, Way::Direct, |sample| sample.rate);
            let (low, high) = spread(&ratios);
            let (p50, p50_times) = self.figure(row, |sample| sample.quantile(0.50));
            let (p99, p99_times) = self.figure(row, |sample| sample.quantile(0.99));
            let (cpu, cpu_times) = self.figure(row, |sample| sample.cpu * 1e6);
            let mesh_is = median(&self.ratios(Way::Mesh, row.way, |sample| sample.rate));
            println!(
                "  {:<32}{:>11.0}{:>7}{:>12}{p50:>8.0}{:>6}{p99:>8.0}{:>6}{cpu:>7.1}{:>6}{:>7.1}{:>7}{:>9}",
                self.says(row.way),
                row.median(|sample| sample.rate),
                figure(median(&ratios), 2),
                if ratios.is_empty() { String::new() } else { format!("{low:.2}..{high:.2}") },
                figure(p50_times, 1),
                figure(p99_times, 1),
                figure(cpu_times, 1),
                row.median(|sample| sample.proxy * 1e6),
                row.calls.map_or_else(String::new, |calls| format!("{calls:.2}")),
                if row.way == Way::Mesh { String::new() } else { figure(mesh_is, 2) },
            );
        }
    }

    /// A figure's median, and that of its ratio to direct's.
    fn figure(&self, row: &Row, of: impl Fn(&Sample) -> f64 + Copy) -> (f64, f64) {
        (row.median(of), median(&self.ratios(row.way, Way::Direct, of)))
    }

    fn says(&self, way: Way) -> &'static str {
        match (way, self.pair) {
            (Way::Direct, _) => "direct",
            (Way::Mesh, Pair::SameNode) => "mesh, one pass",
            (Way::Mesh, Pair::AcrossNodes) => "mesh, HBONE",
            (Way::Judged, _) => "mesh, HBONE, requests judged",
            (Way::Baseline, _) => "mesh, the other build",
            (Way::Nginx, _) => "nginx, one plaintext hop",
            (Way::Haproxy, _) => "haproxy, one plaintext hop",
            (Way::Envoy, _) => "Envoy, one plaintext hop",
            (Way::EnvoyPair, _) => "Envoy pair with mutual TLS",
        }
    }

    fn judge(&self) {
        let Some(Goal { bar, aim }) = self.goal() else { return };
        let ratios = self.ratios(Way::Mesh, Way::Direct, |sample| sample.rate);
        if ratios.is_empty() {
            return;
        }
        let ratio = median(&ratios);
        println!(
            "{}: {ratio:.2} of direct; bar {bar:.2}: {}; aim {aim:.2}: {}",
            self.title(),
            verdict(ratio >= bar),
            verdict(ratio >= aim)
        );
    }

    fn json(&self) -> Vec<Value> {
        let all = |row: &Row| {
            let ratios = self.ratios(row.way, Way::Direct, |sample| sample.rate);
            let (p50, p50_times) = self.figure(row, |sample| sample.quantile(0.50));
            let (p99, p99_times) = self.figure(row, |sample| sample.quantile(0.99));
            let (cpu, cpu_times) = self.figure(row, |sample| sample.cpu * 1e6);
            let goal = self.goal().filter(|_| row.way == Way::Mesh);
            json!({
                "pair": format!("{:?}", self.pair), "connections": self.connections, "way": row.way.name(),
                "requests_per_second": row.median(|sample| sample.rate), "ratio": median(&ratios), "ratios": ratios,
                "p50_us": p50, "p50_ratio": p50_times, "p99_us": p99, "p99_ratio": p99_times,
                "cpu_us": cpu, "cpu_ratio": cpu_times, "proxy_cpu_us": row.median(|sample| sample.proxy * 1e6),
                "system_calls": row.calls,
                "mesh_ratio": median(&self.ratios(Way::Mesh, row.way, |sample| sample.rate)),
                "bar": goal.as_ref().map(|goal| goal.bar), "aim": goal.as_ref().map(|goal| goal.aim),
            })
        };
        self.rows.iter().map(all).collect()
    }
}

impl Row {
    fn median(&self, of: impl Fn(&Sample) -> f64) -> f64 {
        median(&self.samples.iter().map(of).collect::<Vec<_>>())
    }
}

/// Nothing where there is no figure.
fn figure(value: f64, digits: usize) -> String {
    if value.is_nan() { String::new() } else { format!("{value:.digits$}") }
}
