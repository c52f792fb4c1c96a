//! HTTP/1.1 load from one thread inside the client's pod, as wrk makes it: requests on open connections, or a connection
//! per request that the server closes. The same client for everything that is compared.
use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use mesh_tests::Pod;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::LocalSet;

/// Not counted: connections are made and congestion windows grow.
const WARM_UP: Duration = Duration::from_millis(200);
const BLOCK: usize = 16 << 10;
/// How long the last answers may take.
const ANSWER_DEADLINE: Duration = Duration::from_secs(3);

/// What was done in the time that counts, and in all.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Count {
    pub(crate) number: u64,
    pub(crate) time: Duration,
    pub(crate) total: u64,
}

/// A count, and how long each answer of the time that counts took, in microseconds and in no order.
pub(crate) struct Load {
    pub(crate) count: Count,
    pub(crate) latencies: Vec<u32>,
}

/// What all connections of one measurement share.
struct Run {
    to: SocketAddr,
    number: Cell<u64>,
    counting: Cell<bool>,
    stopped: Cell<bool>,
    latencies: RefCell<Vec<u32>>,
    failure: RefCell<Option<String>>,
}

impl Run {
    fn done(&self) {
        self.number.set(self.number.get() + 1);
    }

    fn took(&self, time: Duration) {
        if self.counting.get() {
            self.latencies.borrow_mut().push(u32::try_from(time.as_micros()).unwrap_or(u32::MAX));
        }
    }
}

/// Requests on open connections, one at a time on each.
pub(crate) fn requests(client: &Pod, to: SocketAddr, connections: usize, length: Duration) -> Result<Load> {
    inside(client, to, connections, length, false)
}

/// A connection for each request.
pub(crate) fn connections(client: &Pod, to: SocketAddr, at_a_time: usize, length: Duration) -> Result<Load> {
    inside(client, to, at_a_time, length, true)
}

fn inside(client: &Pod, to: SocketAddr, tasks: usize, length: Duration, close: bool) -> Result<Load> {
    client.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(LocalSet::new().run_until(drive(to, tasks, length, close)))
    })
}

async fn drive(to: SocketAddr, tasks: usize, length: Duration, close: bool) -> Result<Load> {
    let run = Rc::new(Run {
        to,
        number: Cell::new(0),
        counting: Cell::new(false),
        stopped: Cell::new(false),
        latencies: RefCell::default(),
        failure: RefCell::default(),
    });
    let mut all = Vec::with_capacity(tasks);
    for _ in 0..tasks {
        let run = Rc::clone(&run);
        all.push(tokio::task::spawn_local(async move {
            let done = if close { one_each(&run).await } else { many(&run).await };
            if let Err(error) = done {
                run.failure.borrow_mut().get_or_insert(format!("{error:#}"));
            }
        }));
    }
    tokio::time::sleep(WARM_UP).await;
    run.counting.set(true);
    let (before, start) = (run.number.get(), Instant::now());
    tokio::time::sleep(length).await;
    let (after, time) = (run.number.get(), start.elapsed());
    run.counting.set(false);
    run.stopped.set(true);
    let mut silent = 0;
    for task in all {
        // One that gets no answer is a finding, not a measurement.
        match tokio::time::timeout(ANSWER_DEADLINE, task).await {
            Ok(ended) => ended.context("a load task panicked")?,
            Err(_elapsed) => silent += 1,
        }
    }
    if silent > 0 {
        bail!("{silent} of {tasks} requests to {to} got no answer in {ANSWER_DEADLINE:?}");
    }
    if let Some(error) = run.failure.borrow_mut().take() {
        bail!("the load on {to} failed: {error}");
    }
    let count = Count { number: after - before, time, total: run.number.get() };
    Ok(Load { count, latencies: run.latencies.take() })
}

async fn many(run: &Run) -> Result<()> {
    let mut stream = TcpStream::connect(run.to).await.context("connecting")?;
    stream.set_nodelay(true)?;
    let mut block = vec![0; BLOCK];
    let mut answer = Shape::default();
    while !run.stopped.get() {
        let start = Instant::now();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n").await.context("writing")?;
        let mut got = 0;
        while !answer.is_whole(&block[..got])? {
            let read = stream.read(&mut block[got..]).await.context("reading")?;
            if read == 0 {
                bail!("the server closed the connection");
            }
            got += read;
        }
        run.took(start.elapsed());
        run.done();
    }
    Ok(())
}

/// What is known of the answers of one connection: their bodies are of one length, their heads nearly.
#[derive(Default)]
struct Shape {
    head: usize,
    body: Option<usize>,
}

impl Shape {
    /// Heads differ by less than this: a time in milliseconds has few digits.
    const LOOK_BACK: usize = 16;

    /// Whether these bytes are one answer. One that is not 200 would be measured for nothing.
    fn is_whole(&mut self, bytes: &[u8]) -> Result<bool> {
        let find = |from: usize| {
            let at = bytes.get(from..)?.windows(4).position(|window| window == b"\r\n\r\n")?;
            Some(from + at + 4)
        };
        let Some(head) = find(self.head.saturating_sub(Self::LOOK_BACK)).or_else(|| find(0)) else {
            return Ok(false);
        };
        self.head = head;
        if !bytes.starts_with(b"HTTP/1.1 200") {
            bail!("not an answer to measure: {}", String::from_utf8_lossy(&bytes[..head]));
        }
        let body = match self.body {
            Some(body) => body,
            None => *self.body.insert(body_length(&bytes[..head])?),
        };
        Ok(bytes.len() >= head + body)
    }
}

fn body_length(head: &[u8]) -> Result<usize> {
    let head = String::from_utf8_lossy(head).to_ascii_lowercase();
    head.lines()
        .find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok())
        .context("an answer without a length")
}

async fn one_each(run: &Run) -> Result<()> {
    let mut block = vec![0; BLOCK];
    while !run.stopped.get() {
        let mut stream = TcpStream::connect(run.to).await.context("connecting")?;
        stream.set_nodelay(true)?;
        stream.write_all(b"GET /close HTTP/1.1\r\nHost: bench\r\n\r\n").await.context("writing")?;
        let mut got = 0;
        loop {
            match stream.read(&mut block).await.context("reading")? {
                0 => break,
                read => got += read,
            }
        }
        if got == 0 {
            bail!("a connection was closed without an answer");
        }
        run.done();
    }
    Ok(())
}
