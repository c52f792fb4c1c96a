//! Ways past the agent that an application could try, and ports nobody listens on.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use crate::lab::{Agent, Kind, Node, Space, accept, accept_app, accept_within, errno, eventually, says};
use socket2::{Domain, Protocol, Socket, Type};

fn tcp(space: &Space, to: SocketAddr) -> Socket {
    let make = || Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP));
    space.netns.run(make).unwrap().unwrap()
}

fn targets() -> [SocketAddr; 2] {
    ["203.0.113.7:80".parse().unwrap(), "[2001:db8::7]:80".parse().unwrap()]
}

#[test]
fn a_socket_bound_to_the_pods_device_is_refused() {
    let node = Node::new();
    let pod = node.pod("a");
    let mut agent = Agent::new();
    let _enrolled = agent.enrol(&pod);
    for to in targets() {
        let socket = tcp(&pod.space, to);
        socket.bind_device(Some(b"eth0")).unwrap();
        assert_eq!(errno(socket.connect(&to.into())), Some(libc::EPERM));
    }
    assert_eq!(agent.counter("bound_device"), 2);
}

#[test]
fn a_mark_of_the_applications_own_gives_way() {
    let node = Node::new();
    let pod = node.pod("a");
    let mut agent = Agent::new();
    let enrolled = agent.enrol(&pod);
    for to in targets() {
        let socket = tcp(&pod.space, to);
        socket.set_mark(0x1234).unwrap();
        socket.connect(&to.into()).unwrap();
        assert_eq!(accept(&enrolled, Kind::Outbound).local, to);
        assert_eq!(socket.mark().unwrap(), mesh_common::MESH_MARK);
    }
}

#[test]
fn a_source_bound_or_dontroute_or_nonblocking_socket_is_captured_too() {
    let node = Node::new();
    let pod = node.pod("a");
    let mut agent = Agent::new();
    let enrolled = agent.enrol(&pod);
    for to in targets() {
        let socket = tcp(&pod.space, to);
        socket.bind(&pod.at(to.is_ipv6(), 0).into()).unwrap();
        let on: libc::c_int = 1;
        // SAFETY: a live value of the size given.
        let set = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_DONTROUTE,
                (&raw const on).cast(),
                4,
            )
        };
        assert_eq!(set, 0);
        socket.set_nonblocking(true).unwrap();
        assert_eq!(errno(socket.connect(&to.into())), Some(libc::EINPROGRESS));
        assert_eq!(accept(&enrolled, Kind::Outbound).local, to);
        assert!(socket.take_error().unwrap().is_none());
    }
}

#[test]
fn data_in_the_first_packet_does_not_slip_past_the_agent() {
    let node = Node::new();
    let pod = node.pod("a");
    let mut agent = Agent::new();
    let enrolled = agent.enrol(&pod);
    for to in targets() {
        let socket = tcp(&pod.space, to);
        let sent = socket.send_to_with_flags(b"early", &to.into(), libc::MSG_FASTOPEN);
        assert!(sent.is_ok() || errno(sent) == Some(libc::EINPROGRESS));
        assert_eq!(accept(&enrolled, Kind::Outbound).local, to);
    }
}

#[test]
fn multipath_tcp_is_captured_or_not_to_be_had() {
    const IPPROTO_MPTCP: i32 = 262;
    let node = Node::new();
    let pod = node.pod("a");
    let mut agent = Agent::new();
    let enrolled = agent.enrol(&pod);
    for to in targets() {
        let make = || Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::from(IPPROTO_MPTCP)));
        let socket = match pod.space.netns.run(make).unwrap() {
            Ok(socket) => socket,
            Err(error) => {
                assert!(
                    matches!(error.raw_os_error(), Some(libc::EPROTONOSUPPORT | libc::ENOPROTOOPT)),
                    "{error}"
                );
                continue;
            }
        };
        let result: io::Result<()> = socket.connect_timeout(&to.into(), Duration::from_secs(3));
        result.unwrap();
        assert_eq!(accept(&enrolled, Kind::Outbound).local, to);
    }
}

#[test]
fn a_pod_reaches_itself_by_loopback_and_by_its_own_address_without_the_agent() {
    let node = Node::new();
    let pod = node.pod("a");
    let mut agent = Agent::new();
    let enrolled = agent.enrol(&pod);
    let app = pod.space.listen("[::]:8080");
    for to in [
        "127.0.0.1:8080".parse().unwrap(),
        "[::1]:8080".parse().unwrap(),
        pod.at(false, 8080),
        pod.at(true, 8080),
    ] {
        let mut client = pod.space.connect(to).unwrap();
        let (mut served, peer) = accept_app(&app);
        assert_eq!(peer, client.local_addr().unwrap());
        says(&mut client, &mut served, "self");
    }
    assert!(accept_within(&enrolled, Kind::Inbound, Duration::ZERO).is_none());
    for port in [15001, 15006, 15008] {
        assert_eq!(errno(pod.space.connect(pod.at(false, port))), Some(libc::ECONNREFUSED));
        assert_eq!(
            errno(pod.space.connect(format!("127.0.0.1:{port}").parse().unwrap())),
            Some(libc::ECONNREFUSED)
        );
    }
}

#[test]
fn a_closed_port_of_a_local_pod_answers_connection_refused_from_inside_the_mesh_and_outside() {
    let node = Node::new();
    let (client, server, outside) = (node.pod("client"), node.pod("server"), node.pod("outside"));
    let mut agent = Agent::new();
    let from = agent.enrol(&client);
    let to = agent.enrol(&server);
    for v6 in [false, true] {
        let target = server.at(v6, 8080);
        for opener in [&client, &outside] {
            assert_eq!(errno(opener.space.connect(target)), Some(libc::ECONNREFUSED));
        }
        let app = server.space.listen("[::]:8080");
        assert_eq!(agent.handle().listening(to.cookie).unwrap(), [8080]);
        let _captured = client.space.connect(target).unwrap();
        accept(&from, Kind::Outbound);
        let _steered = outside.space.connect(target).unwrap();
        accept(&to, Kind::Inbound);
        drop(app);
        for opener in [&client, &outside] {
            assert_eq!(errno(opener.space.connect(target)), Some(libc::ECONNREFUSED));
        }
    }
}

#[test]
fn a_port_stays_open_until_its_last_listener_closes_and_loopback_listeners_do_not_count() {
    let node = Node::new();
    let (server, outside) = (node.pod("server"), node.pod("outside"));
    let mut agent = Agent::new();
    let to = agent.enrol(&server);
    let _private = server.space.listen("127.0.0.1:9000");
    let target = server.at(false, 9000);
    assert_eq!(errno(outside.space.connect(target)), Some(libc::ECONNREFUSED));
    let shared = || {
        let socket = tcp(&server.space, target);
        socket.set_reuse_port(true).unwrap();
        socket.bind(&target.into()).unwrap();
        socket.listen(8).unwrap();
        socket
    };
    let (first, second) = (shared(), shared());
    drop(first);
    let _client = outside.space.connect(target).unwrap();
    accept(&to, Kind::Inbound);
    drop(second);
    assert_eq!(errno(outside.space.connect(target)), Some(libc::ECONNREFUSED));
}

#[tokio::test]
async fn listeners_from_before_the_enrolment_count_and_are_forgotten_when_the_table_is_refreshed() {
    let node = Node::new();
    let (server, outside) = (node.pod("server"), node.pod("outside"));
    let mut agent = Agent::new();
    let old = server.space.listen("[::]:8080");
    let only4 = server.space.listen("0.0.0.0:8081");
    let to = agent.enrol(&server);
    let mut events = agent.capture().events().unwrap();
    assert_eq!(agent.handle().listening(to.cookie).unwrap(), [8080, 8081]);
    let _client = outside.space.connect(server.at(false, 8080)).unwrap();
    accept(&to, Kind::Inbound);
    assert_eq!(errno(outside.space.connect(server.at(true, 8081))), Some(libc::ECONNREFUSED));
    drop((old, only4));
    agent.handle().refresh_listening(to.cookie).unwrap();
    assert!(agent.handle().listening(to.cookie).unwrap().is_empty());
    assert_eq!(errno(outside.space.connect(server.at(false, 8080))), Some(libc::ECONNREFUSED));
    let new = server.space.listen("[::]:8082");
    drop(new);
    for up in [true, false] {
        let event = tokio::time::timeout(Duration::from_secs(5), events.next()).await.unwrap().unwrap();
        let wanted = mesh_agent::capture::Event::Listening { cookie: to.cookie, port: 8082, up };
        assert_eq!(event, wanted);
    }
    eventually("nothing is listed", || agent.handle().listening(to.cookie).unwrap().is_empty());
}

#[test]
fn an_address_the_mesh_was_not_told_about_is_no_way_out() {
    let node = Node::new();
    let (pod, outside) = (node.pod("a"), node.pod("outside"));
    let server = outside.space.listen("[::]:8080");
    let mut agent = Agent::new();
    let mut attachment = pod.attachment();
    attachment.addresses = vec![pod.v4];
    let enrolled = agent.capture().enrol(&attachment).unwrap();
    let _client = pod.space.connect(outside.at(true, 8080)).unwrap();
    assert_eq!(accept(&enrolled, Kind::Outbound).local, outside.at(true, 8080));
    drop(_client);
    // And the other way about: IPv4, where the route names no source, is refused rather than let out.
    drop(enrolled);
    agent.capture().withdraw(&pod.id).unwrap();
    attachment.addresses = vec![pod.v6];
    let _enrolled = agent.capture().enrol(&attachment).unwrap();
    assert!(pod.space.connect(outside.at(false, 8080)).is_err());
    server.set_nonblocking(true).unwrap();
    assert!(server.accept().is_err());
}

#[test]
fn datagrams_are_left_alone() {
    let node = Node::new();
    let (server, outside) = (node.pod("server"), node.pod("outside"));
    let mut agent = Agent::new();
    let _enrolled = agent.enrol(&server);
    let bind = || std::net::UdpSocket::bind("[::]:5353");
    let server_socket = server.space.netns.run(bind).unwrap().unwrap();
    server_socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let client = outside.space.netns.run(|| std::net::UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
    client.connect(server.at(false, 5353)).unwrap();
    client.send(b"query").unwrap();
    let (length, _) = server_socket.recv_from(&mut [0; 16]).unwrap();
    assert_eq!(length, 5);
}
