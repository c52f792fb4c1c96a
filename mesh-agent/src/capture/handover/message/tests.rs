use std::net::{TcpStream, UdpSocket};
use std::os::unix::net::UnixListener;

use super::super::tests::{folder, listener};
use super::*;

/// A set of `count` outbound descriptors, all of one listener.
fn many(count: usize) -> ListenerSet {
    let one = OwnedFd::from(listener().0);
    let mut set = ListenerSet::empty("default/web", 7);
    set.outbound = (0..count).map(|_| one.try_clone().unwrap()).collect();
    set
}

fn owned(parts: Vec<(SetPart, Vec<BorrowedFd<'_>>)>) -> Vec<(SetPart, Vec<OwnedFd>)> {
    let own = |fds: Vec<BorrowedFd<'_>>| fds.iter().map(|fd| fd.try_clone_to_owned().unwrap()).collect();
    parts.into_iter().map(|(part, fds)| (part, own(fds))).collect()
}

#[test]
fn a_large_set_is_split_and_joined() {
    let mut set = many(300);
    set.hbone = many(300).outbound;
    let parts = owned(split(&set).unwrap());
    assert_eq!(parts.iter().map(|(part, _)| part.fds.len()).collect::<Vec<_>>(), [253, 253, 94]);
    let mut assembler = Assembler::default();
    let joined: Vec<_> =
        parts.into_iter().filter_map(|(part, fds)| assembler.add(part, fds).unwrap()).collect();
    assert!(!assembler.unfinished());
    let [joined] = &joined[..] else { panic!("{} sets", joined.len()) };
    assert_eq!((joined.outbound.len(), joined.inbound.len(), joined.hbone.len()), (300, 0, 300));
}

#[test]
fn an_empty_set_travels_too() {
    let set = ListenerSet::empty("default/web", 7);
    let [(part, fds)] = &split(&set).unwrap()[..] else { panic!() };
    assert!(part.last && part.fds.is_empty() && fds.is_empty());
}

#[test]
fn a_set_above_the_limits_is_refused_at_both_ends() {
    let set = many(MAX_DESCRIPTORS_PER_POD + 1);
    assert!(matches!(split(&set), Err(HandoverError::Limit { value: 1025, limit: 1024, .. })));
    let mut assembler = Assembler::default();
    let part = |last| SetPart {
        pod: "p".into(),
        cookie: 1,
        fds: (0..MAX_DESCRIPTORS_PER_POD).map(|i| (Kind::Inbound, i)).collect(),
        last,
    };
    assert!(assembler.add(part(false), many(MAX_DESCRIPTORS_PER_POD).outbound).unwrap().is_none());
    let more = assembler.add(part(true), many(1).outbound);
    assert!(matches!(more, Err(HandoverError::Limit { .. })), "{more:?}");
    let long = ListenerSet::empty("p".repeat(MAX_POD_NAME_BYTES + 1), 1);
    assert!(matches!(split(&long), Err(HandoverError::Limit { .. })));
}

#[test]
fn a_part_of_another_pod_inside_a_set_is_refused() {
    let mut assembler = Assembler::default();
    let part = |cookie, last| SetPart { pod: "p".into(), cookie, fds: vec![], last };
    assert!(assembler.add(part(1, false), vec![]).unwrap().is_none());
    assert!(matches!(assembler.add(part(2, true), vec![]), Err(HandoverError::MixedSets { .. })));
}

#[test]
fn descriptors_out_of_order_are_refused() {
    let part = SetPart { pod: "p".into(), cookie: 1, fds: vec![(Kind::Hbone, 1)], last: true };
    let refused = Assembler::default().add(part, many(1).outbound);
    assert!(matches!(refused, Err(HandoverError::OutOfOrder { worker: 1, wanted: 0, .. })), "{refused:?}");
}

#[test]
fn only_listening_tcp_sockets_are_taken() {
    let (_dir, path) = folder();
    let (tcp, address) = listener();
    let others: [OwnedFd; 4] = [
        UdpSocket::bind("127.0.0.1:0").unwrap().into(),
        TcpStream::connect(address).unwrap().into(),
        UnixListener::bind(path).unwrap().into(),
        std::fs::File::open("/dev/null").unwrap().into(),
    ];
    drop(tcp);
    for other in others {
        let part = SetPart { pod: "p".into(), cookie: 1, fds: vec![(Kind::Inbound, 0)], last: true };
        let refused = Assembler::default().add(part, vec![other]);
        assert!(
            matches!(refused, Err(HandoverError::NotAListener { kind: Kind::Inbound, .. })),
            "{refused:?}"
        );
    }
}
