//! The agent's end of the plugin's socket: what it takes for a question, and what it does with anything else.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::cni::protocol::PodRef;

struct Desk {
    dir: tempfile::TempDir,
    asked: mpsc::Receiver<Asked>,
    metrics: Arc<Metrics>,
}

impl Desk {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let metrics = Metrics::new();
        let path = dir.path().join("cni.sock");
        let (server, asked) = CniServer::bind(&path, Takeover::Never, Arc::clone(&metrics)).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        tokio::spawn(server.run());
        Self { dir, asked, metrics }
    }

    async fn connect(&self) -> UnixStream {
        UnixStream::connect(self.dir.path().join("cni.sock")).await.unwrap()
    }

    /// Sends bytes, with or without a file, and reads the answer.
    async fn say(&self, bytes: &[u8], file: Option<&File>) -> Answer {
        let mut stream = self.connect().await;
        let fds: Vec<i32> = file.iter().map(|file| file.as_raw_fd()).collect();
        stream.writable().await.unwrap();
        assert_eq!(wire::send(stream.as_fd(), bytes, &fds).unwrap(), bytes.len());
        read(&mut stream).await
    }
}

async fn read(stream: &mut UnixStream) -> Answer {
    let length = stream.read_u32_le().await.unwrap();
    let mut text = vec![0; length as usize];
    stream.read_exact(&mut text).await.unwrap();
    serde_json::from_slice(&text).unwrap()
}

fn framed(question: &Question) -> Vec<u8> {
    let text = serde_json::to_vec(question).unwrap();
    let mut bytes = u32::try_from(text.len()).unwrap().to_le_bytes().to_vec();
    bytes.extend_from_slice(&text);
    bytes
}

fn add(version: u32) -> Vec<u8> {
    let pod = PodRef { namespace: "shop".into(), name: "web".into(), uid: None, sandbox: "one".into() };
    framed(&Question { version, ask: Ask::Add { pod, addresses: Vec::new() } })
}

fn refusal(answer: Answer) -> String {
    match answer {
        Answer::Refused { message } => message,
        other => panic!("not refused: {other:?}"),
    }
}

/// A question reaches the control loop with the open namespace, and its answer the plugin.
#[tokio::test]
async fn a_question_comes_with_its_namespace() {
    let mut desk = Desk::new();
    let netns = File::open("/proc/self/ns/net").unwrap();
    let mut stream = desk.connect().await;
    stream.writable().await.unwrap();
    wire::send(stream.as_fd(), &add(PROTOCOL_VERSION), &[netns.as_raw_fd()]).unwrap();
    let asked = desk.asked.recv().await.unwrap();
    assert_eq!(asked.netns.unwrap().cookie(), NetNs::current().unwrap().cookie());
    asked.answer.send(Answer::Enrolled).unwrap();
    assert_eq!(read(&mut stream).await, Answer::Enrolled);
}

/// What is no question is refused in words, and the control loop never hears of it.
#[tokio::test]
async fn what_is_no_question_is_refused() {
    let mut desk = Desk::new();
    let netns = File::open("/proc/self/ns/net").unwrap();
    let other = File::open("/proc/self/ns/mnt").unwrap();
    let plain = tempfile::tempfile().unwrap();
    let long = u32::try_from(MESSAGE_MAX_BYTES + 1).unwrap().to_le_bytes();
    for (bytes, file, word) in [
        (add(PROTOCOL_VERSION + 1), Some(&netns), "version"),
        (add(PROTOCOL_VERSION), None, "no network namespace came along"),
        (add(PROTOCOL_VERSION), Some(&other), "is no network namespace"),
        (add(PROTOCOL_VERSION), Some(&plain), "is no network namespace"),
        (long.to_vec(), None, "longer than"),
        ([2_u32.to_le_bytes().as_slice(), b"{]"].concat(), None, "cannot be read"),
    ] {
        let message = refusal(desk.say(&bytes, file).await);
        assert!(message.contains(word), "{word}: {message}");
    }
    assert!(desk.asked.try_recv().is_err());
}

/// Beyond the limit a plugin finds the connection closed, which is counted; it asks again, and the runtime too.
#[tokio::test]
async fn too_many_questions_are_closed_and_counted() {
    let mut desk = Desk::new();
    let mut held = Vec::new();
    let del = framed(&Question { version: PROTOCOL_VERSION, ask: Ask::Del { sandbox: "one".into() } });
    for _ in 0..QUESTIONS_MAX {
        let mut stream = desk.connect().await;
        stream.write_all(&del).await.unwrap();
        held.push((stream, desk.asked.recv().await.unwrap()));
    }
    let mut late = desk.connect().await;
    assert_eq!(late.read(&mut [0; 1]).await.unwrap_or(0), 0);
    let text = desk.metrics.encode().unwrap();
    assert!(text.contains("nodemesh_limit_hits_total{limit=\"admin_connections\"} 1"), "{text}");
    let (mut first, asked) = held.remove(0);
    asked.answer.send(Answer::Done).unwrap();
    assert_eq!(read(&mut first).await, Answer::Done);
    assert_eq!(held.len(), QUESTIONS_MAX - 1);
}
