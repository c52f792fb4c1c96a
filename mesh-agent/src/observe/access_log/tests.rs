use std::io::{self, Write};
use std::sync::Arc;

use parking_lot::Mutex;
use tracing_subscriber::fmt::MakeWriter;

use super::*;
use crate::observe::fixtures::meta;
use crate::observe::logging::{check_level, json, text};
use crate::observe::meta::Path;

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'w> MakeWriter<'w> for Sink {
    type Writer = Self;

    fn make_writer(&'w self) -> Self {
        self.clone()
    }
}

impl Sink {
    /// What was written, without the times.
    fn lines(&self) -> String {
        let all = String::from_utf8(self.0.lock().clone()).unwrap();
        all.lines().map(|line| without_time(line) + "\n").collect()
    }
}

fn without_time(line: &str) -> String {
    match line.strip_prefix("{\"timestamp\":\"") {
        Some(rest) => format!("{{{}", rest.split_once("\",").unwrap().1),
        None => line.split_once(' ').unwrap().1.to_owned(),
    }
}

fn write_all(log: AccessLog) {
    let ended = |direction, path, reason| {
        let mut facts = meta(direction, path);
        if path == Path::Plain {
            facts.source = Party::unknown("192.0.2.7:5000".parse().unwrap());
            facts.service = None;
        }
        log.opened(&facts);
        log.write(&Ended {
            meta: &facts,
            sent: 84,
            received: 358,
            duration: Duration::from_micros(1900),
            reason,
        });
    };
    ended(Direction::Outbound, Path::Hbone, None);
    ended(Direction::Inbound, Path::Hbone, None);
    ended(Direction::Inbound, Path::Plain, Some(Reason::PlaintextRefused));
    ended(Direction::Local, Path::Bypass, Some(Reason::ClientReset));
}

#[test]
fn text_lines_have_ztunnels_fields() {
    let sink = Sink::default();
    let subscriber = text(check_level("debug").unwrap(), false, sink.clone());
    tracing::subscriber::with_default(subscriber, || write_all(AccessLog::new(true)));
    insta::assert_snapshot!("text", sink.lines());
}

#[test]
fn json_lines_have_the_same_fields_and_are_json() {
    let sink = Sink::default();
    let subscriber = json(check_level("info").unwrap(), sink.clone());
    tracing::subscriber::with_default(subscriber, || write_all(AccessLog::new(true)));
    for line in sink.lines().lines() {
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(value["target"], "access");
        assert_eq!(value["decision_id"], "0123456789abcdef");
    }
    insta::assert_snapshot!("json", sink.lines());
}

#[test]
fn off_is_silent_by_switch_and_by_filter() {
    for (level, on) in [("debug", false), ("info,access=off", true), ("error", true)] {
        let sink = Sink::default();
        let subscriber = text(check_level(level).unwrap(), false, sink.clone());
        tracing::subscriber::with_default(subscriber, || write_all(AccessLog::new(on)));
        assert_eq!(sink.lines(), "", "{level} {on}");
    }
}

#[test]
fn a_hostile_name_stays_on_its_line() {
    let sink = Sink::default();
    let mut facts = meta(Direction::Outbound, Path::Hbone);
    let mut pod = (**facts.source.workload.as_ref().unwrap()).clone();
    pod.name = "x\" dst.identity=\"forged\"\n2026 INFO access: connection complete \u{1b}[2J".into();
    facts.source.workload = Some(Arc::new(pod));
    let subscriber = text(check_level("info").unwrap(), false, sink.clone());
    tracing::subscriber::with_default(subscriber, || {
        AccessLog::new(true).write(&Ended {
            meta: &facts,
            sent: 0,
            received: 0,
            duration: Duration::ZERO,
            reason: None,
        });
    });
    let lines = sink.lines();
    assert_eq!(lines.lines().count(), 1, "{lines}");
    assert!(!lines.contains('\u{1b}'));
}
