//! New connections without end: at a steady rate, each counted, or one after the other until the answer changes.
#![expect(clippy::disallowed_types, reason = "the program uses nothing but the standard library")]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::Failure;
use crate::client::{self, BROKEN};

/// Between two lines that say how it goes.
const REPORT: Duration = Duration::from_secs(1);
/// Between two tries of `watch`: a tight loop would run out of ports, as each waits a minute after its end.
const TRY: Duration = Duration::from_millis(2);

/// What became of the connections to one address.
#[derive(Default)]
struct Count {
    begun: u64,
    good: u64,
    failed: u64,
    slowest: Duration,
}

/// Connects to each echo every so many milliseconds and never waits for the last one. Says `TIME TO failed begun=TIME: WHY` of
/// each that fails, and `TIME TO begun=N good=N failed=N slowest=MS` of all, once a second.
pub(crate) fn steady(every: &str, to: &[String]) -> Result<(), Failure> {
    let every = every.parse().map_err(|error| Failure::new(2, format!("milliseconds {every}: {error}")))?;
    let counts = Arc::new(Mutex::new(BTreeMap::<String, Count>::new()));
    let (start, every) = (Instant::now(), Duration::from_millis(every));
    let mut reported = start;
    for number in 0_u32.. {
        for to in to {
            lock(&counts).entry(to.clone()).or_default().begun += 1;
            let (counts, to) = (Arc::clone(&counts), to.clone());
            thread::spawn(move || count(&counts, &to));
        }
        if reported.elapsed() >= REPORT {
            reported = Instant::now();
            for (to, Count { begun, good, failed, slowest }) in lock(&counts).iter() {
                let slowest = slowest.as_millis();
                println!("{} {to} begun={begun} good={good} failed={failed} slowest={slowest}", now());
            }
        }
        // By the clock, not by pauses: the rate is what was asked for, however long the rest takes.
        thread::sleep((start + every * (number + 1)).saturating_duration_since(Instant::now()));
    }
    Ok(())
}

fn count(counts: &Mutex<BTreeMap<String, Count>>, to: &str) {
    let (begun, start) = (now(), Instant::now());
    let done = exchange(to);
    let mut counts = lock(counts);
    let count = counts.entry(to.to_owned()).or_default();
    count.slowest = count.slowest.max(start.elapsed());
    match done {
        Ok(()) => count.good += 1,
        Err(failure) => {
            count.failed += 1;
            println!("{} {to} failed begun={begun}: {}", now(), failure.said);
        }
    }
}

/// One connection after the other; says `TIME open` or `TIME refused: WHY` whenever that changes.
pub(crate) fn watch(to: &str) -> Result<(), Failure> {
    let mut open = None;
    loop {
        let done = exchange(to);
        if open != Some(done.is_ok()) {
            open = Some(done.is_ok());
            match done {
                Ok(()) => println!("{} open", now()),
                Err(failure) => println!("{} refused: {}", now(), failure.said),
            }
        }
        thread::sleep(TRY);
    }
}

/// A connection, and a word that comes back.
fn exchange(to: &str) -> Result<(), Failure> {
    const WORD: [u8; 4] = *b"word";
    let broken = |error: std::io::Error| Failure::new(BROKEN, format!("{to}: {error}"));
    let mut stream = client::connect(to, 0)?;
    stream.write_all(&WORD).map_err(broken)?;
    let mut back = [0; WORD.len()];
    stream.read_exact(&mut back).map_err(broken)?;
    if back == WORD { Ok(()) } else { Err(Failure::new(BROKEN, format!("{to}: came back as {back:?}"))) }
}

fn lock(counts: &Mutex<BTreeMap<String, Count>>) -> MutexGuard<'_, BTreeMap<String, Count>> {
    // Numbers are whole at any moment.
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Seconds since 1970.
fn now() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{}.{:06}", now.as_secs(), now.subsec_micros())
}
