//! HTTP/1.1 load from one thread inside the client's pod, as wrk makes it: requests on open connections, or a connection
//! per request that the server closes.
use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::LocalSet;

use crate::stage::Route;

/// Not counted: connections are made and congestion windows grow.
const WARM_UP: Duration = Duration::from_millis(200);
const BLOCK: usize = 16 << 10;

/// What was done in the time that counts, and in all.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Count {
    pub(crate) number: u64,
    pub(crate) time: Duration,
    pub(crate) total: u64,
}

/// What all connections of one measurement share.
struct Run {
    to: SocketAddr,
    number: Cell<u64>,
    stopped: Cell<bool>,
    failure: RefCell<Option<String>>,
}

impl Run {
    fn done(&self) {
        self.number.set(self.number.get() + 1);
    }
}

pub(crate) fn requests(route: &Route<'_>, connections: usize, length: Duration) -> Result<Count> {
    inside(route, connections, length, false)
}

pub(crate) fn connections(route: &Route<'_>, at_a_time: usize, length: Duration) -> Result<Count> {
    inside(route, at_a_time, length, true)
}

fn inside(route: &Route<'_>, tasks: usize, length: Duration, close: bool) -> Result<Count> {
    let to = route.http;
    route.client.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(LocalSet::new().run_until(drive(to, tasks, length, close)))
    })
}

async fn drive(to: SocketAddr, tasks: usize, length: Duration, close: bool) -> Result<Count> {
    let (number, stopped, failure) = (Cell::new(0), Cell::new(false), RefCell::new(None));
    let run = Rc::new(Run { to, number, stopped, failure });
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
    let (before, start) = (run.number.get(), Instant::now());
    tokio::time::sleep(length).await;
    let (after, time) = (run.number.get(), start.elapsed());
    run.stopped.set(true);
    for task in all {
        task.await.context("a load task panicked")?;
    }
    if let Some(error) = run.failure.borrow_mut().take() {
        bail!("the load on {to} failed: {error}");
    }
    Ok(Count { number: after - before, time, total: run.number.get() })
}

async fn many(run: &Run) -> Result<()> {
    let mut stream = TcpStream::connect(run.to).await.context("connecting")?;
    stream.set_nodelay(true)?;
    let mut block = vec![0; BLOCK];
    let mut length = None;
    while !run.stopped.get() {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n").await.context("writing")?;
        let mut got = 0;
        while length.is_none_or(|length| got < length) {
            let read = stream.read(&mut block[got..]).await.context("reading")?;
            if read == 0 {
                bail!("the server closed the connection");
            }
            got += read;
            // All answers are of one length, so only the first is looked into.
            length = length.or_else(|| answer_length(&block[..got]));
        }
        run.done();
    }
    Ok(())
}

/// The length of head and body, once the head is there.
fn answer_length(bytes: &[u8]) -> Option<usize> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
    let body =
        head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok())?;
    Some(end + body)
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
