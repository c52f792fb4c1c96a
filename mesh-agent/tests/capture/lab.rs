//! Namespaces of the tests' own: a node with a bridge, pods on it. They live as long as their descriptors,
//! so a panic leaves nothing behind; the pins are removed when the lab is dropped.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use mesh_agent::capture::{Capture, CaptureConfig, CaptureHandle, Enrolled, PodAttachment, WorkerListeners};
use mesh_agent::model::WorkloadId;
use mesh_agent::net::netns::NetNs;
use mesh_agent::net::sock;
use parking_lot::Mutex;

pub(crate) const WORKERS: usize = 2;
const PATIENCE: Duration = Duration::from_secs(5);

static NEXT: AtomicU32 = AtomicU32::new(0);

pub(crate) struct Space {
    file: File,
    pub(crate) netns: NetNs,
}

impl Space {
    pub(crate) fn new() -> Self {
        shell();
        let make = || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        };
        let file = std::thread::spawn(make).join().unwrap();
        let netns = NetNs::open(&path_of(&file)).unwrap();
        Self { file, netns }
    }

    /// A file name for the namespace.
    pub(crate) fn path(&self) -> PathBuf {
        path_of(&self.file)
    }

    pub(crate) fn ip(&self, line: &str) {
        let (code, output) = shell().lock().ip(&self.path(), line);
        assert_eq!(code, "0", "ip {line}: {output}");
    }

    pub(crate) fn output(&self, line: &str) -> String {
        shell().lock().ip(&self.path(), line).1
    }

    pub(crate) fn sysctl(&self, name: &str) -> String {
        let read = || std::fs::read_to_string(format!("/proc/sys/net/{name}")).unwrap();
        self.netns.run(read).unwrap().trim().to_owned()
    }

    pub(crate) fn set_sysctl(&self, name: &str, value: &str) {
        let write = || std::fs::write(format!("/proc/sys/net/{name}"), value).unwrap();
        self.netns.run(write).unwrap();
    }

    pub(crate) fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let stream = self.netns.run(|| TcpStream::connect_timeout(&to, PATIENCE)).unwrap()?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Ok(stream)
    }

    /// Connects from this very address and port.
    pub(crate) fn connect_from(&self, from: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
        let connect = || {
            let socket = socket2::Socket::new(socket2::Domain::for_address(to), socket2::Type::STREAM, None)?;
            socket.bind(&from.into())?;
            socket.connect_timeout(&to.into(), PATIENCE)?;
            Ok::<TcpStream, io::Error>(socket.into())
        };
        let stream = self.netns.run(connect).unwrap()?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Ok(stream)
    }

    /// Begins to connect and does not wait.
    pub(crate) fn begin(&self, to: SocketAddr) -> socket2::Socket {
        let make = || {
            let socket = socket2::Socket::new(socket2::Domain::for_address(to), socket2::Type::STREAM, None)?;
            socket.set_nonblocking(true)?;
            match socket.connect(&to.into()) {
                Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
                _ => Ok(socket),
            }
        };
        self.netns.run(make).unwrap().unwrap()
    }

    /// A process that does nothing in this namespace; its number.
    pub(crate) fn sleeper(&self) -> i32 {
        let line = format!("nsenter --net={} sleep 600 >/dev/null 2>&1 & echo $!", self.path().display());
        let process: i32 = shell().lock().run(&line).1.trim().parse().unwrap();
        let own = self.netns.file().unwrap();
        let inside = || {
            let found = std::fs::metadata(format!("/proc/{process}/ns/net"));
            found.is_ok_and(|found| (found.dev(), found.ino()) == own)
        };
        eventually("the process is in the namespace", inside);
        process
    }

    pub(crate) fn listen(&self, at: &str) -> TcpListener {
        self.netns.run(|| TcpListener::bind(at)).unwrap().unwrap()
    }
}

fn path_of(file: &File) -> PathBuf {
    format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()).into()
}

pub(crate) struct Pod {
    pub(crate) space: Space,
    pub(crate) id: WorkloadId,
    pub(crate) v4: IpAddr,
    pub(crate) v6: IpAddr,
}

impl Pod {
    pub(crate) fn at(&self, v6: bool, port: u16) -> SocketAddr {
        SocketAddr::new(if v6 { self.v6 } else { self.v4 }, port)
    }

    pub(crate) fn cookie(&self) -> u64 {
        self.space.netns.cookie()
    }

    pub(crate) fn attachment(&self) -> PodAttachment {
        PodAttachment {
            id: self.id.clone(),
            netns: self.space.path().into(),
            addresses: vec![self.v4, self.v6],
            fail_closed: true,
        }
    }
}

/// Runs `ip` for all tests, from a process of its own. A child of the tests' process would hold, until it
/// has become `ip`, whatever socket another test is closing at that moment.
struct Shell {
    process: Child,
    answers: BufReader<ChildStdout>,
}

fn shell() -> &'static Mutex<Shell> {
    static SHELL: OnceLock<Mutex<Shell>> = OnceLock::new();
    SHELL.get_or_init(|| {
        let piped = |command: &mut Command| command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut process = piped(&mut Command::new("sh")).unwrap();
        let answers = BufReader::new(process.stdout.take().unwrap());
        Mutex::new(Shell { process, answers })
    })
}

impl Shell {
    /// Exit code and output of `ip` inside a namespace.
    fn ip(&mut self, netns: &Path, line: &str) -> (String, String) {
        self.run(&format!("nsenter --net={} ip {line}", netns.display()))
    }

    /// Exit code and output of a line of shell.
    fn run(&mut self, line: &str) -> (String, String) {
        let command = format!("{{ {line}; }} 2>&1; echo \"exit $?\"\n");
        self.process.stdin.as_mut().unwrap().write_all(command.as_bytes()).unwrap();
        let mut output = String::new();
        loop {
            let mut answer = String::new();
            assert_ne!(self.answers.read_line(&mut answer).unwrap(), 0, "the shell is gone");
            if let Some(code) = answer.strip_prefix("exit ") {
                return (code.trim().to_owned(), output);
            }
            output.push_str(&answer);
        }
    }
}

/// A node: a bridge in a namespace of its own.
pub(crate) struct Node {
    pub(crate) space: Space,
    pods: AtomicU32,
}

impl Node {
    pub(crate) fn new() -> Self {
        let space = Space::new();
        space.ip("link set lo up");
        // Its own address, or it would take its cables' lowest, which a new pod may change under its neighbours.
        space.ip("link add br0 address 02:6e:6d:00:00:01 type bridge");
        space.ip("addr add 10.99.0.1/24 dev br0");
        space.ip("addr add fd99::1/64 dev br0 nodad");
        space.ip("link set br0 up");
        Self { space, pods: AtomicU32::new(2) }
    }

    pub(crate) fn pod(&self, name: &str) -> Pod {
        let number = self.pods.fetch_add(1, Ordering::Relaxed);
        let space = Space::new();
        let path = space.path();
        self.space.ip(&format!("link add v{number} type veth peer name eth0 netns {}", path.display()));
        self.space.ip(&format!("link set v{number} master br0 up"));
        space.ip("link set lo up");
        space.ip(&format!("addr add 10.99.0.{number}/24 dev eth0"));
        space.ip(&format!("addr add fd99::{number}/64 dev eth0 nodad"));
        space.ip("link set eth0 up");
        space.ip("route add default via 10.99.0.1");
        space.ip("-6 route add default via fd99::1");
        let v4 = format!("10.99.0.{number}").parse().unwrap();
        let v6 = format!("fd99::{number}").parse().unwrap();
        Pod { space, id: WorkloadId(format!("test/{name}").into()), v4, v6 }
    }
}

/// An agent's kernel side, in a folder of its own.
pub(crate) struct Agent {
    capture: Option<Capture>,
    pub(crate) dir: PathBuf,
}

impl Agent {
    pub(crate) fn new() -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = PathBuf::from(format!("/sys/fs/bpf/nodemesh-test-{}-{number}", std::process::id()));
        let capture = Capture::load(&config(&dir)).unwrap();
        Self { capture: Some(capture), dir }
    }

    pub(crate) fn capture(&mut self) -> &mut Capture {
        self.capture.as_mut().unwrap()
    }

    pub(crate) fn handle(&self) -> CaptureHandle {
        self.capture.as_ref().unwrap().handle()
    }

    pub(crate) fn enrol(&mut self, pod: &Pod) -> Enrolled {
        self.capture().enrol(&pod.attachment()).unwrap()
    }

    /// Dies as after `kill -9`: everything pinned stays.
    pub(crate) fn die(&mut self) {
        drop(self.capture.take());
    }

    pub(crate) fn restart(&mut self) {
        self.die();
        self.capture = Some(Capture::load(&config(&self.dir)).unwrap());
    }

    pub(crate) fn shutdown(&mut self) {
        self.capture.take().unwrap().shutdown().unwrap();
    }

    pub(crate) fn counter(&self, name: &str) -> u64 {
        let counters = self.handle().counters().unwrap();
        counters.into_iter().find(|(found, _)| *found == name).unwrap().1
    }
}

pub(crate) fn config(dir: &Path) -> CaptureConfig {
    CaptureConfig { bpf_dir: dir.to_path_buf(), workers: WORKERS, cgroup_root: None, succeeds: false }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(capture) = self.capture.take() {
            let result = capture.shutdown();
            assert!(std::thread::panicking() || result.is_ok(), "{result:?}");
        }
        // After a test that let the agent die.
        if let Ok(entries) = std::fs::read_dir(&self.dir) {
            entries.flatten().for_each(|entry| drop(std::fs::remove_file(entry.path())));
            drop(std::fs::remove_dir(&self.dir));
        }
    }
}

#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Outbound,
    Inbound,
    Hbone,
}

fn of(listeners: &WorkerListeners, kind: Kind) -> &TcpListener {
    match kind {
        Kind::Outbound => &listeners.outbound,
        Kind::Inbound => &listeners.inbound,
        Kind::Hbone => &listeners.hbone,
    }
}

pub(crate) struct Accepted {
    pub(crate) stream: TcpStream,
    pub(crate) peer: SocketAddr,
    pub(crate) local: SocketAddr,
    pub(crate) worker: usize,
}

/// Waits for a connection at any worker's listener of a kind.
pub(crate) fn accept(enrolled: &Enrolled, kind: Kind) -> Accepted {
    accept_within(enrolled, kind, PATIENCE).expect("nothing arrived at the agent")
}

pub(crate) fn accept_within(enrolled: &Enrolled, kind: Kind, patience: Duration) -> Option<Accepted> {
    let until = Instant::now() + patience;
    while Instant::now() < until {
        for (worker, each) in enrolled.listeners.iter().enumerate() {
            let Ok((stream, peer)) = of(each, kind).accept() else { continue };
            stream.set_nonblocking(false).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let local = sock::canonical(stream.local_addr().unwrap());
            return Some(Accepted { stream, peer: sock::canonical(peer), local, worker });
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    None
}

/// What the agent does for an inbound connection: a leg with the client's address.
pub(crate) fn leg(handle: &CaptureHandle, enrolled: &Enrolled, accepted: &Accepted) -> io::Result<TcpStream> {
    // A listener of the pod may have the port: then another does, as for the agent.
    let socket = loop {
        match sock::leg_socket(&enrolled.netns, accepted.peer.ip(), accepted.local, fastrand::u64(..)) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            other => break other?,
        }
    };
    handle.mark_leg(&socket)?;
    socket.set_nonblocking(false)?;
    socket.connect_timeout(&accepted.local.into(), PATIENCE)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket.into())
}

/// Sends a few bytes one way and makes sure they arrive.
pub(crate) fn says(from: &mut TcpStream, to: &mut TcpStream, text: &str) {
    from.write_all(text.as_bytes()).unwrap();
    let mut read = vec![0; text.len()];
    to.read_exact(&mut read).unwrap();
    assert_eq!(read, text.as_bytes());
}

pub(crate) fn accept_app(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    listener.set_nonblocking(true).unwrap();
    let mut found = None;
    eventually("a connection at the application", || {
        found = listener.accept().ok();
        found.is_some()
    });
    let (stream, peer) = found.unwrap();
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    (stream, sock::canonical(peer))
}

/// Waits until something holds that other threads or the kernel bring about.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < until, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn errno<T>(result: io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}
