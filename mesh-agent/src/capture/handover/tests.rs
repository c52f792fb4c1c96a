//! Whole handovers with real sockets, and what the other tests share.

use std::env;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc as std_mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::*;

/// No test waits longer than this for anything; only a failing one waits that long.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two connections of the load: 500 in a second.
const PACE: Duration = Duration::from_millis(2);
const CHILD_ROLE: &str = "NODEMESH_TEST_HANDOVER_ROLE";
const CHILD_SOCKET: &str = "NODEMESH_TEST_HANDOVER_SOCKET";

pub(super) fn folder() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mesh.sock");
    (dir, path)
}

pub(super) fn listener() -> (TcpListener, SocketAddr) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    // As deep as the agent's own: connections of the gap wait there.
    socket.listen(4096).unwrap();
    socket.set_nonblocking(true).unwrap();
    let listener = TcpListener::from(socket);
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// A set with one listener of each kind, and their addresses in the order outbound, inbound, HBONE.
pub(super) fn one_of_each(pod: &str, cookie: u64) -> (ListenerSet, [SocketAddr; 3]) {
    let [(outbound, a), (inbound, b), (hbone, c)] = [listener(), listener(), listener()];
    let set = ListenerSet {
        pod: pod.to_owned(),
        cookie,
        outbound: vec![outbound.into()],
        inbound: vec![inbound.into()],
        hbone: vec![hbone.into()],
    };
    (set, [a, b, c])
}

pub(super) fn addresses(set: &ListenerSet) -> Vec<SocketAddr> {
    set.each()
        .map(|(_, _, fd)| TcpListener::from(fd.try_clone_to_owned().unwrap()).local_addr().unwrap())
        .collect()
}

/// How many connections wait on a (non-blocking) listener; takes them.
pub(super) fn waiting(fd: &OwnedFd) -> usize {
    let listener = TcpListener::from(fd.try_clone().unwrap());
    std::iter::from_fn(|| listener.accept().ok()).count()
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn say(mut stream: &TcpStream, i: usize) {
    stream.write_all(&(i as u64).to_le_bytes()).unwrap();
}

fn hear(mut stream: &TcpStream, i: usize) {
    let mut answer = [0; 8];
    stream.read_exact(&mut answer).unwrap_or_else(|e| panic!("connection {i} was lost: {e}"));
    assert_eq!(u64::from_le_bytes(answer), i as u64);
}

/// An agent's data plane in miniature: accepts and echoes until told to stop, then drains.
/// Returns how many connections it served.
async fn echo(set: &ListenerSet, mut stop: watch::Receiver<bool>) -> usize {
    let mut loops = JoinSet::new();
    for (_, _, fd) in set.each() {
        let listener = TcpListener::from(fd.try_clone_to_owned().unwrap());
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let mut stop = stop.clone();
        loops.spawn(async move {
            let (mut relays, mut served) = (JoinSet::new(), 0);
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let (mut stream, _) = accepted.unwrap();
                        served += 1;
                        relays.spawn(async move {
                            let mut word = [0; 8];
                            while stream.read_exact(&mut word).await.is_ok() {
                                stream.write_all(&word).await.unwrap();
                            }
                        });
                    }
                    Some(_ended) = relays.join_next() => {}
                    _ = stop.wait_for(|stop| *stop) => break,
                }
            }
            drop(listener);
            relays.join_all().await;
            served
        });
    }
    stop.wait_for(|stop| *stop).await.unwrap();
    loops.join_all().await.into_iter().sum()
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

#[tokio::test]
async fn a_planned_handover_keeps_connections_opened_before_during_and_after() {
    let (_dir, path) = folder();
    let (set, addresses_before) = one_of_each("default/web", 7);
    let set = Arc::new(set);
    let mut server = HandoverServer::bind(&path).unwrap();
    let mut clients: Vec<TcpStream> = addresses_before.map(connect).into();

    let given = Arc::clone(&set);
    let serving = tokio::spawn(async move { server.serve(|| vec![Arc::clone(&given)]).await });
    let mut predecessor = Predecessor::connect(&path).await.unwrap();
    let taken = predecessor.take().await.unwrap();
    clients.extend(addresses_before.map(connect));
    assert!(predecessor.ready().await.unwrap().is_empty());
    let Event::SuccessorReady { handed } = serving.await.unwrap().unwrap() else { panic!("not ready") };
    assert!(handed.contains(&("default/web".to_owned(), 7)));
    drop(set);
    clients.extend(addresses_before.map(connect));

    let [taken] = &taken[..] else { panic!("{} sets", taken.len()) };
    assert_eq!((taken.pod.as_str(), taken.cookie), ("default/web", 7));
    assert_eq!(addresses(taken), addresses_before);
    for fd in [&taken.outbound[0], &taken.inbound[0], &taken.hbone[0]] {
        assert_eq!(waiting(fd), 3);
    }
}

#[tokio::test]
async fn a_holder_keeps_connections_opened_before_during_and_after() {
    let (_dir, path) = folder();
    let holder = holder::Holder::bind(&path, holder::Limits::default()).unwrap();
    let holding = tokio::spawn(holder.serve(std::future::pending()));
    let (set, addresses_before) = one_of_each("default/web", 7);
    let mut clients: Vec<TcpStream> = addresses_before.map(connect).into();

    let mut agent = HolderClient::connect(&path).await.unwrap();
    agent.put(&set).await.unwrap();
    drop((agent, set));
    clients.extend(addresses_before.map(connect));
    let mut agent = HolderClient::connect(&path).await.unwrap();
    let fetched = agent.fetch().await.unwrap();
    holding.abort();
    clients.extend(addresses_before.map(connect));

    let [fetched] = &fetched[..] else { panic!("{} sets", fetched.len()) };
    assert_eq!(addresses(fetched), addresses_before);
    for fd in [&fetched.outbound[0], &fetched.inbound[0], &fetched.hbone[0]] {
        assert_eq!(waiting(fd), 3);
    }
}

/// Two agents as threads with runtimes of their own, connections at 500/s all the while.
#[test]
fn a_planned_handover_under_load_loses_no_connection() {
    const CONNECTIONS: usize = 1500;
    let (_dir, path) = folder();
    let (set, [address, ..]) = one_of_each("default/web", 7);
    let server_path = path.clone();
    let (bound, is_bound) = std_mpsc::channel();
    let old = thread::spawn(move || {
        block_on(async {
            let mut server = HandoverServer::bind(&server_path).unwrap();
            bound.send(()).unwrap();
            let set = Arc::new(set);
            let (stop, stopped) = watch::channel(false);
            let (served, ()) = tokio::join!(echo(&set, stopped), async {
                let event = server.serve(|| vec![Arc::clone(&set)]).await.unwrap();
                assert!(matches!(event, Event::SuccessorReady { .. }), "{event:?}");
                stop.send(true).unwrap();
            });
            served
        })
    });
    is_bound.recv().unwrap();
    let (take_over, told_to) = std_mpsc::channel();
    let (all_done, mut done) = watch::channel(false);
    let new = thread::spawn(move || {
        told_to.recv().unwrap();
        block_on(async {
            let mut predecessor = Predecessor::connect(&path).await.unwrap();
            let sets = predecessor.take().await.unwrap();
            let ready = async {
                predecessor.ready().await.unwrap();
                done.wait_for(|done| *done).await.unwrap();
            };
            let (stop, stopped) = watch::channel(false);
            let (served, ()) = tokio::join!(echo(&sets[0], stopped), async {
                ready.await;
                stop.send(true).unwrap();
            });
            served
        })
    });
    for i in 0..CONNECTIONS {
        if i == CONNECTIONS / 3 {
            take_over.send(()).unwrap();
        }
        let stream = connect(address);
        say(&stream, i);
        hear(&stream, i);
        thread::sleep(PACE);
        if i == 2 * CONNECTIONS / 3 {
            while !old.is_finished() {
                thread::sleep(PACE);
            }
        }
    }
    all_done.send(true).unwrap();
    let (by_old, by_new) = (old.join().unwrap(), new.join().unwrap());
    assert_eq!(by_old + by_new, CONNECTIONS);
    // Nobody else was there before the first third, nor after the second.
    assert!(by_old >= CONNECTIONS / 3 && by_new >= CONNECTIONS / 3 - 1, "{by_old} and {by_new}");
}

/// A holder and agents as real processes; the agent dies by SIGKILL under 500 connections a second.
#[test]
fn an_agent_killed_under_load_loses_no_connection_when_a_holder_runs() {
    const BEFORE: usize = 500;
    const GAP: usize = 300;
    const AFTER: usize = 500;
    let (_dir, path) = folder();
    let (set, [address, ..]) = one_of_each("default/web", 7);
    let _holder = Process::start("holder", &path);
    block_on(async {
        let mut client = connect_patiently(&path).await;
        client.put(&set).await.unwrap();
    });
    drop(set);
    let exchange = |i| {
        let stream = connect(address);
        say(&stream, i);
        hear(&stream, i);
        thread::sleep(PACE);
    };
    let mut agent = Process::start("agent", &path);
    agent.await_line("serving");
    (0..BEFORE).for_each(exchange);
    agent.kill();
    let in_the_gap: Vec<_> = (0..GAP)
        .map(|i| {
            let stream = connect(address);
            say(&stream, i);
            thread::sleep(PACE);
            stream
        })
        .collect();
    let mut agent = Process::start("agent", &path);
    agent.await_line("serving");
    (0..AFTER).for_each(exchange);
    in_the_gap.iter().enumerate().for_each(|(i, stream)| hear(stream, i));
}

#[test]
fn sigterm_ends_the_holder_and_a_killed_one_is_replaced() {
    let (_dir, path) = folder();
    let mut first = Process::start("holder", &path);
    block_on(connect_patiently(&path));
    first.kill();
    assert!(path.exists(), "a killed holder leaves its file");
    let mut second = Process::start("holder", &path);
    block_on(connect_patiently(&path));
    second.signal(Signal::SIGTERM);
    assert!(second.child.wait().unwrap().success());
    assert!(!path.exists(), "a holder that was told to end removes its file");
}

/// In a process of its own: other tests open descriptors at the same time.
#[test]
fn descriptors_return_to_the_start() {
    let (_dir, path) = folder();
    let mut child = Process::start("descriptors", &path);
    assert!(child.child.wait().unwrap().success(), "see the child's output above");
}

#[test]
fn descriptors_that_do_not_fit_are_an_error_and_do_not_leak() {
    let (_dir, path) = folder();
    let mut child = Process::start("limit", &path);
    assert!(child.child.wait().unwrap().success(), "see the child's output above");
}

/// The body of the child processes; nothing in an ordinary run.
#[test]
fn child_process() {
    let (Ok(role), Some(path)) = (env::var(CHILD_ROLE), env::var_os(CHILD_SOCKET)) else { return };
    let path = PathBuf::from(path);
    match role.as_str() {
        "holder" => holder::run(&path).unwrap(),
        "agent" => block_on(child_agent(&path)),
        "descriptors" => block_on(child_descriptors(&path)),
        "limit" => block_on(channel::tests::child_limit()),
        other => panic!("unknown role {other}"),
    }
}

/// Fetches from the holder and serves until it is killed.
async fn child_agent(path: &Path) {
    let sets = HolderClient::connect(path).await.unwrap().fetch().await.unwrap();
    let (_never, stopped) = watch::channel(false);
    let serving = echo(&sets[0], stopped);
    // Past libtest's capture of print!.
    std::io::stdout().write_all(b"\nserving\n").unwrap();
    serving.await;
}

async fn child_descriptors(path: &Path) {
    let holder_path = path.with_extension("holder");
    let mut start = None;
    for round in 0..20 {
        let holder = holder::Holder::bind(&holder_path, holder::Limits::default()).unwrap();
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let holding = tokio::spawn(holder.serve(async { ended.await.unwrap() }));
        let (set, _) = one_of_each("default/web", round);
        let set = Arc::new(set);
        let mut agent = HolderClient::connect(&holder_path).await.unwrap();
        agent.put(&set).await.unwrap();
        assert_eq!(agent.fetch().await.unwrap().len(), 1);
        drop(agent);

        let mut server = HandoverServer::bind(path).unwrap();
        let given = Arc::clone(&set);
        let serving = tokio::spawn(async move {
            let died = server.serve(|| vec![Arc::clone(&given)]).await.unwrap();
            assert!(matches!(died, Event::SuccessorFailed { .. }));
            server.serve(|| vec![Arc::clone(&given)]).await.unwrap()
        });
        let mut dies = Predecessor::connect(path).await.unwrap();
        assert_eq!(dies.take().await.unwrap().len(), 1);
        drop(dies);
        let mut lives = Predecessor::connect(path).await.unwrap();
        assert_eq!(lives.take().await.unwrap().len(), 1);
        lives.ready().await.unwrap();
        assert!(matches!(serving.await.unwrap(), Event::SuccessorReady { .. }));
        end.send(()).unwrap();
        holding.await.unwrap().unwrap();
        drop(set);
        // Let the runtime drop the tasks that ended.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        // The first round opened what the runtime keeps.
        let now = open_descriptors();
        assert_eq!(*start.get_or_insert(now), now, "round {round}");
    }
}

pub(super) fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// A holder that was just started may not answer yet.
async fn connect_patiently(path: &Path) -> HolderClient {
    let end = Instant::now() + PATIENCE;
    loop {
        match HolderClient::connect(path).await {
            Ok(client) => return client,
            Err(HandoverError::NobodyThere { .. }) if Instant::now() < end => tokio::time::sleep(PACE).await,
            Err(error) => panic!("{error}"),
        }
    }
}

/// A child process, killed at the end.
struct Process {
    child: Child,
}

impl Process {
    fn start(role: &str, socket: &Path) -> Self {
        let stdout = if role == "agent" { Stdio::piped() } else { Stdio::inherit() };
        let child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "capture::handover::tests::child_process", "--nocapture"])
            .env(CHILD_ROLE, role)
            .env(CHILD_SOCKET, socket)
            .stdout(stdout)
            .spawn()
            .unwrap();
        Self { child }
    }

    fn await_line(&mut self, wanted: &str) {
        let output = BufReader::new(self.child.stdout.take().unwrap());
        assert!(output.lines().any(|line| line.unwrap() == wanted), "the child ended");
    }

    fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.child.wait().unwrap();
    }

    fn signal(&self, signal: Signal) {
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        nix::sys::signal::kill(pid, signal).unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // An error means that it has ended already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
