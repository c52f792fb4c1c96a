use std::io::Read;
use std::os::unix::net::UnixStream as StdStream;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{MsgFlags, send as raw_send};

use super::super::message::{Kind, SetPart};
use super::super::tests::{listener, open_descriptors};
use super::*;

/// A channel and the bare stream at its other end.
fn pair() -> (Channel, StdStream) {
    let (ours, theirs) = StdStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    (Channel::new(UnixStream::from_std(ours).unwrap()), theirs)
}

fn channels() -> (Channel, Channel) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (Channel::new(ours), Channel::new(theirs))
}

fn frame(text: &str) -> Vec<u8> {
    [&(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
}

/// Sends with one end of a pair as the descriptor; the other end tells whether it was closed.
fn send_with_probe(to: &StdStream, bytes: &[u8], copies: usize) -> StdStream {
    let (probe, passed) = StdStream::pair().unwrap();
    let fds = vec![passed.as_raw_fd(); copies];
    assert_eq!(wire::send(to.as_fd(), bytes, &fds).unwrap(), bytes.len());
    probe
}

fn assert_closed(mut probe: StdStream) {
    probe.set_nonblocking(true).unwrap();
    assert_eq!(probe.read(&mut [0]).expect("a passed descriptor is still open"), 0);
}

#[tokio::test]
async fn messages_and_descriptors_arrive_as_sent() {
    let (mut a, mut b) = channels();
    let (tcp, address) = listener();
    let part = || SetPart { pod: "p".into(), cookie: u64::MAX, fds: vec![(Kind::Hbone, 0)], last: true };
    a.send(&Message::Set(part()), &[tcp.as_fd()]).await.unwrap();
    a.send(&Message::Ready, &[]).await.unwrap();
    let (Message::Set(got), fds) = b.next().await.unwrap().unwrap() else { panic!() };
    assert_eq!(
        (got.pod.as_str(), got.cookie, got.fds, got.last),
        ("p", u64::MAX, vec![(Kind::Hbone, 0)], true)
    );
    let [fd] = <[OwnedFd; 1]>::try_from(fds).unwrap();
    assert_eq!(std::net::TcpListener::from(fd).local_addr().unwrap(), address);
    assert!(matches!(b.next().await.unwrap(), Some((Message::Ready, _))));
    drop(a);
    assert!(b.next().await.unwrap().is_none());
}

#[tokio::test]
async fn a_read_given_up_loses_nothing() {
    let (mut channel, peer) = pair();
    let text = frame(r#"{"type":"set","pod":"p","cookie":1,"fds":[["inbound",0]],"last":true}"#);
    let (tcp, _) = listener();
    wire::send(peer.as_fd(), &text[..9], &[tcp.as_raw_fd()]).unwrap();
    for _ in 0..3 {
        let given_up = tokio::time::timeout(Duration::from_millis(5), channel.next()).await;
        assert!(given_up.is_err());
    }
    wire::send(peer.as_fd(), &text[9..], &[]).unwrap();
    let (message, fds) = channel.next().await.unwrap().unwrap();
    assert_eq!((message.name(), fds.len()), ("set", 1));
}

#[tokio::test]
async fn another_version_is_named_at_both_ends() {
    let (mut a, b) = pair();
    wire::send(b.as_fd(), &frame(r#"{"type":"hello","version":9,"service":"holder"}"#), &[]).unwrap();
    let ours = a.welcome(Service::Holder).await.unwrap_err();
    assert!(matches!(ours, HandoverError::Version { theirs: 9, ours: PROTOCOL_VERSION }), "{ours:?}");
    assert!(ours.to_string().contains("run both ends from the same release"));
    // The peer was answered, so that it can say the same.
    b.set_nonblocking(true).unwrap();
    let mut peer = Channel::new(UnixStream::from_std(b).unwrap());
    assert!(matches!(
        peer.next().await.unwrap(),
        Some((Message::Hello { version: PROTOCOL_VERSION, .. }, _))
    ));
}

#[tokio::test]
async fn the_wrong_socket_is_named_at_both_ends() {
    let (mut a, mut b) = channels();
    let (greeted, welcomed) = tokio::join!(a.greet(Service::Holder), b.welcome(Service::Handover));
    for (error, theirs) in [(greeted, Service::Handover), (welcomed, Service::Holder)] {
        let error = error.unwrap_err();
        assert!(matches!(error, HandoverError::WrongService { theirs: t, .. } if t == theirs), "{error:?}");
    }
}

#[tokio::test]
async fn truncated_messages_are_errors_and_close_what_they_brought() {
    let text = frame(r#"{"type":"put","pod":"p","cookie":1,"fds":[["inbound",0]],"last":true}"#);
    for cut in [1, 3, 4, 5, text.len() - 1] {
        let (mut channel, peer) = pair();
        let probe = send_with_probe(&peer, &text[..cut], 1);
        drop(peer);
        let error = channel.next().await.unwrap_err();
        assert!(matches!(error, HandoverError::Truncated { got, .. } if got == cut), "{cut}: {error:?}");
        drop(channel);
        assert_closed(probe);
    }
}

#[tokio::test]
async fn wrong_descriptor_counts_are_errors_and_close_what_came() {
    let one = r#"{"type":"put","pod":"p","cookie":1,"fds":[["inbound",0]],"last":true}"#;
    for (text, copies) in [(one, 0), (one, 2), (r#"{"type":"ready"}"#, 1)] {
        let (mut channel, peer) = pair();
        let probe = send_with_probe(&peer, &frame(text), copies);
        let error = channel.next().await.unwrap_err();
        assert!(matches!(error, HandoverError::DescriptorCount { came, .. } if came == copies), "{error:?}");
        assert_closed(probe);
    }
}

#[tokio::test]
async fn descriptors_strewn_over_a_message_stop_at_the_limit() {
    let (mut channel, peer) = pair();
    let text = frame(r#"{"type":"ready"}"#);
    let probes = [
        send_with_probe(&peer, &text[..2], MAX_DESCRIPTORS_PER_MESSAGE),
        send_with_probe(&peer, &text[2..4], MAX_DESCRIPTORS_PER_MESSAGE),
    ];
    let error = channel.next().await.unwrap_err();
    assert!(matches!(error, HandoverError::DescriptorCount { came: 506, .. }), "{error:?}");
    drop(channel);
    probes.into_iter().for_each(assert_closed);
}

#[tokio::test]
async fn oversized_and_unreadable_messages_are_errors() {
    let (mut channel, peer) = pair();
    raw_send(peer.as_raw_fd(), &u32::MAX.to_le_bytes(), MsgFlags::empty()).unwrap();
    let error = channel.next().await.unwrap_err();
    assert!(matches!(error, HandoverError::TooLong { limit: MAX_MESSAGE_BYTES, .. }), "{error:?}");
    for text in
        ["", "{", "{}", "[]", "\u{0}", r#"{"type":"rm -rf"}"#, r#"{"type":"drop","pod":1,"cookie":-1}"#]
    {
        let (mut channel, peer) = pair();
        wire::send(peer.as_fd(), &frame(text), &[]).unwrap();
        let error = channel.next().await.unwrap_err();
        assert!(matches!(error, HandoverError::Unreadable { .. }), "{text}: {error:?}");
    }
}

#[tokio::test]
async fn sets_that_break_off_or_do_not_add_up_are_errors() {
    let (mut a, mut b) = channels();
    a.send(&Message::End { sets: 2 }, &[]).await.unwrap();
    assert!(matches!(b.receive_sets().await, Err(HandoverError::SetCount { said: 2, came: 0 })));
    let part = SetPart { pod: "p".into(), cookie: 1, fds: vec![], last: false };
    a.send(&Message::Set(part), &[]).await.unwrap();
    a.send(&Message::End { sets: 0 }, &[]).await.unwrap();
    assert!(matches!(b.receive_sets().await, Err(HandoverError::Unexpected { got: "end", .. })));
    a.send(&Message::Ready, &[]).await.unwrap();
    assert!(matches!(b.receive_sets().await, Err(HandoverError::Unexpected { got: "ready", .. })));
    drop(a);
    assert!(matches!(b.receive_sets().await, Err(HandoverError::Closed { .. })));
}

#[tokio::test]
async fn more_sets_than_the_limit_are_an_error() {
    let (mut a, mut b) = channels();
    let send = async {
        for cookie in 0..=MAX_SETS as u64 {
            let part = SetPart { pod: "p".into(), cookie, fds: vec![], last: true };
            a.send(&Message::Set(part), &[]).await.unwrap();
        }
    };
    let ((), got) = tokio::join!(send, b.receive_sets());
    assert!(matches!(got, Err(HandoverError::Limit { limit: MAX_SETS, .. })));
}

#[tokio::test]
async fn a_refusal_is_heard_even_by_who_only_sends() {
    let (mut a, mut b) = channels();
    b.refuse(Refusal::Busy).await;
    drop(b);
    let error = a.send(&Message::Fetch, &[]).await.unwrap_err();
    assert!(matches!(error, HandoverError::Refused { refusal: Refusal::Busy }), "{error:?}");
}

#[tokio::test]
async fn a_silent_peer_is_given_up() {
    let (mut channel, _peer) = pair();
    let error = channel.due(Duration::from_millis(1), "hello").await.unwrap_err();
    assert!(matches!(error, HandoverError::Late { doing: "hello", .. }), "{error:?}");
}

/// In a child process, because the limit of open files is the process's.
pub(in super::super) async fn child_limit() {
    let (mut channel, peer) = pair();
    let (probe, passed) = StdStream::pair().unwrap();
    let start = open_descriptors();
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    // Room for 3 of the 10 (the count includes the descriptor that counts).
    setrlimit(Resource::RLIMIT_NOFILE, start as u64 + 2, hard).unwrap();
    wire::send(peer.as_fd(), &frame(r#"{"type":"ready"}"#), &[passed.as_raw_fd(); 10]).unwrap();
    let error = channel.next().await.unwrap_err();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    assert!(matches!(error, HandoverError::DescriptorsLost), "{error:?}");
    assert_eq!(open_descriptors(), start);
    drop(passed);
    assert_closed(probe);
}
