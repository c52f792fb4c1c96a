//! The plugin itself: a process that the container runtime starts for each pod, and waits for. Owns: one question to the
//! agent and what follows from its absence. Never: changes the result of the plugins before it.
//! Called by `main`.

use std::env;
use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use super::protocol::{Answer, Ask, PROTOCOL_VERSION, PodRef, Question};
use super::spec::{self, Code, Command, Config, Environment, Failure};
use super::{ANSWER_TIMEOUT, CONFIG_MAX_BYTES, MESSAGE_MAX_BYTES, OWN_NAMESPACE, RETRY_PAUSE, roll};
use crate::config::DEFAULT_CNI_SOCKET;

/// Whether this process was started as the plugin, by its program's name.
pub fn is_named_so() -> bool {
    let name = env::args_os().next().map(PathBuf::from);
    name.and_then(|path| path.file_name().map(|name| name == super::PLUGIN)).unwrap_or(false)
}

/// Serves one call of the runtime. Returns whether it went well; what is to be said is on standard output.
pub fn run() -> bool {
    let Ok(command) = env::var("CNI_COMMAND") else {
        eprintln!(
            "{}: CNI_COMMAND is not set; this is a plugin that the container runtime calls, see the CNI specification",
            super::PLUGIN
        );
        return false;
    };
    let mut text = String::new();
    let read = io::stdin().lock().take(CONFIG_MAX_BYTES).read_to_string(&mut text);
    let read = read.map_err(|error| Failure::new(Code::Io, format!("standard input: {error}")));
    let environment = Environment::read(|name| env::var(name).ok());
    let config = read.and_then(|_bytes| Config::parse(&text));
    let version = config.as_ref().map_or(spec::VERSIONS[0], Config::version).to_owned();
    let said = Command::parse(&command).and_then(|command| call(command, &environment, config, &text));
    let (said, good) = match said {
        Ok(said) => (said, true),
        Err(failure) => (failure.to_json(&version), false),
    };
    // A runtime that does not listen has lost interest in the pod.
    writeln!(io::stdout().lock(), "{said}").is_ok() && good
}

/// What to print for a command.
fn call(
    command: Command,
    environment: &Environment,
    config: Result<Config, Failure>,
    text: &str,
) -> Result<String, Failure> {
    if command == Command::Version {
        return Ok(spec::versions());
    }
    let config = config?;
    config.check_version()?;
    let socket = config.socket.clone().unwrap_or_else(|| DEFAULT_CNI_SOCKET.into());
    match command {
        Command::Add => {
            let addresses = config.addresses()?;
            if let Some(pod) = environment.pod()? {
                let ask = |pod| Ask::Add { pod, addresses };
                attached(&socket, &config, environment, pod, ask)?;
            }
            let missing = || Failure::new(Code::InvalidConfig, "prevResult: missing");
            spec::previous_result(text).map(str::to_owned).ok_or_else(missing)
        }
        Command::Check => {
            config.addresses()?;
            if let Some(pod) = environment.pod()? {
                attached(&socket, &config, environment, pod, |pod| Ask::Check { pod })?;
            }
            Ok(String::new())
        }
        // Neither may fail for an agent that is not there: what it held has ended with it.
        Command::Del => {
            environment.require_sandbox()?;
            let _absent = ask(&socket, Ask::Del { sandbox: environment.sandbox.clone() }, None);
            Ok(String::new())
        }
        Command::Gc => {
            let _absent = ask(&socket, Ask::Gc { sandboxes: config.valid_sandboxes() }, None);
            Ok(String::new())
        }
        // Without an agent the pods outside the mesh can start all the same. To call the node's network broken would
        // take every pod off the node, for an agent that is back in a moment.
        Command::Status | Command::Version => Ok(String::new()),
    }
}

/// Asks about a pod's namespace; fine is what the agent says is, or what may go without it.
fn attached(
    socket: &Path,
    config: &Config,
    environment: &Environment,
    pod: PodRef,
    question: impl FnOnce(PodRef) -> Ask,
) -> Result<(), Failure> {
    if pod.namespace == OWN_NAMESPACE || config.exclude_namespaces.contains(&pod.namespace) {
        return Ok(());
    }
    let path = environment.netns()?;
    let netns = File::open(path).map_err(|error| {
        Failure::new(Code::UnknownContainer, format!("CNI_NETNS: {}: {error}", path.display()))
    })?;
    let (namespace, name) = (pod.namespace.clone(), pod.name.clone());
    match ask(socket, question(pod), Some(&netns)) {
        Ok(Answer::Enrolled | Answer::Outside | Answer::Done) => Ok(()),
        Ok(Answer::Refused { message }) => Err(Failure::new(Code::TryAgainLater, message)),
        Err(_) if roll::is_outside(socket, &namespace) => Ok(()),
        Err(error) => Err(Failure::new(
            Code::TryAgainLater,
            format!(
                "the mesh's agent does not answer at {} ({error}), and pod {namespace}/{name} may not start outside the \
                 mesh; see that the agent of this node runs (kubectl -n {OWN_NAMESPACE} get pods -o wide)",
                socket.display()
            ),
        )),
    }
}

/// Asks, and asks again if an agent went away over the question: its successor may be there.
fn ask(socket: &Path, ask: Ask, netns: Option<&File>) -> io::Result<Answer> {
    let end = Instant::now() + ANSWER_TIMEOUT;
    let question = serde_json::to_vec(&Question { version: PROTOCOL_VERSION, ask })?;
    loop {
        let stream = UnixStream::connect(socket)?;
        match converse(&stream, &question, netns, end) {
            Err(error) if is_gone(&error) && Instant::now() + RETRY_PAUSE < end => {
                std::thread::sleep(RETRY_PAUSE);
            }
            said => return said,
        }
    }
}

/// The agent ended; a broken answer or a slow one is another matter.
fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

fn converse(stream: &UnixStream, question: &[u8], netns: Option<&File>, end: Instant) -> io::Result<Answer> {
    let left = || Some(end.saturating_duration_since(Instant::now()).max(RETRY_PAUSE));
    let mut bytes = u32::try_from(question.len()).map_err(io::Error::other)?.to_le_bytes().to_vec();
    bytes.extend_from_slice(question);
    stream.set_write_timeout(left())?;
    let fds: Vec<i32> = netns.iter().map(|netns| netns.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let control: &[ControlMessage<'_>] = if fds.is_empty() { &[] } else { &rights };
    let sent =
        sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(&bytes)], control, MsgFlags::MSG_NOSIGNAL, None)?;
    let mut stream = stream;
    stream.write_all(&bytes[sent..])?;
    let mut length = [0; 4];
    stream.set_read_timeout(left())?;
    stream.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > MESSAGE_MAX_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "its answer is too long"));
    }
    let mut answer = vec![0; length];
    stream.read_exact(&mut answer)?;
    serde_json::from_slice(&answer).map_err(io::Error::from)
}
