//! Connections opened at a steady pace, whatever becomes of those before: what a restart must not be noticed by.
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_tests::Pod;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Longer than any gap of a test, so that only what is lost fails.
const CONNECTION_DEADLINE: Duration = Duration::from_secs(20);

/// A running flood.
pub(crate) struct Flood {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Outcome>>,
}

/// A connection that did not do what it should.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) opened: Instant,
    pub(crate) to: SocketAddr,
    pub(crate) why: String,
}

#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) opened: usize,
    pub(crate) failed: Vec<Failure>,
}

impl Flood {
    /// `per_second` connections in all, to the targets in turn, out of `pod`; each has bytes echoed.
    pub(crate) fn start(pod: &Pod, targets: Vec<SocketAddr>, per_second: u32) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (pod, stopping) = (pod.clone(), Arc::clone(&stop));
        let thread = std::thread::Builder::new().name("flood".to_owned()).spawn(move || {
            pod.netns().enter()?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(run(&targets, Duration::from_secs(1) / per_second, &stopping))
        })?;
        Ok(Self { stop, thread })
    }

    /// Opens no more, waits for those that are open.
    pub(crate) fn stop(self) -> Result<Outcome> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().ok().context("the flood panicked")?
    }
}

impl Outcome {
    /// Nothing at all went wrong, and there was something that could.
    pub(crate) fn check(&self, at_least: usize) -> Result<()> {
        self.check_from(at_least, None)
    }

    /// Nothing that was opened at or after `since` went wrong.
    pub(crate) fn check_from(&self, at_least: usize, since: Option<Instant>) -> Result<()> {
        let lost: Vec<_> =
            self.failed.iter().filter(|one| since.is_none_or(|since| one.opened >= since)).collect();
        ensure!(
            lost.is_empty(),
            "{} of {} were lost, the first to {}: {}",
            lost.len(),
            self.opened,
            lost[0].to,
            lost[0].why
        );
        ensure!(self.opened >= at_least, "only {} were opened", self.opened);
        Ok(())
    }
}

async fn run(targets: &[SocketAddr], pause: Duration, stop: &AtomicBool) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    let mut live = JoinSet::new();
    let mut pace = tokio::time::interval(pause);
    // A machine that is busy for a moment makes up for it: the rate is an average.
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
    for to in targets.iter().copied().cycle() {
        pace.tick().await;
        if stop.load(Ordering::Relaxed) {
            break;
        }
        outcome.opened += 1;
        live.spawn(connection(to));
        while let Some(ended) = live.try_join_next() {
            outcome.failed.extend(ended?.err());
        }
    }
    while let Some(ended) = live.join_next().await {
        outcome.failed.extend(ended?.err());
    }
    Ok(outcome)
}

async fn connection(to: SocketAddr) -> Result<(), Failure> {
    let opened = Instant::now();
    let failed = |why: String| Failure { opened, to, why };
    match tokio::time::timeout(CONNECTION_DEADLINE, exchange(to)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err((step, error))) => Err(failed(format!("{step} after {:?}: {error}", opened.elapsed()))),
        Err(_elapsed) => Err(failed("no end within the deadline".to_owned())),
    }
}

async fn exchange(to: SocketAddr) -> Result<(), (&'static str, std::io::Error)> {
    let mut stream = TcpStream::connect(to).await.map_err(|error| ("connect", error))?;
    let sent = *b"opened meanwhile";
    stream.write_all(&sent).await.map_err(|error| ("write", error))?;
    let mut back = [0; 16];
    stream.read_exact(&mut back).await.map_err(|error| ("read", error))?;
    if back != sent {
        return Err(("compare", std::io::Error::other("other bytes came back")));
    }
    stream.shutdown().await.map_err(|error| ("close", error))?;
    match stream.read(&mut back).await {
        Ok(0) => Ok(()),
        Ok(_) => Err(("end", std::io::Error::other("bytes came after the end"))),
        Err(error) => Err(("end", error)),
    }
}
