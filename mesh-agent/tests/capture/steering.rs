//! Where connections arrive, and what each end sees.

use std::net::SocketAddr;

use crate::lab::{Agent, Kind, Node, accept, accept_app, errno, leg, says};

#[test]
fn a_pods_connect_arrives_at_the_agent_with_its_original_destination_and_the_pod_is_none_the_wiser() {
    let node = Node::new();
    let pod = node.pod("a");
    let mut agent = Agent::new();
    let enrolled = agent.enrol(&pod);
    for (to, source) in [("203.0.113.7:80", pod.v4), ("[2001:db8::7]:443", pod.v6)] {
        let to: SocketAddr = to.parse().unwrap();
        let mut client = pod.space.connect(to).unwrap();
        let mut accepted = accept(&enrolled, Kind::Outbound);
        assert_eq!(accepted.local, to);
        assert_eq!(accepted.peer, client.local_addr().unwrap());
        assert_eq!(client.peer_addr().unwrap(), to);
        assert_eq!(client.local_addr().unwrap().ip(), source);
        says(&mut client, &mut accepted.stream, "ping");
        says(&mut accepted.stream, &mut client, "pong");
    }
}

#[test]
fn a_connect_to_a_mapped_address_on_an_ipv6_socket_is_captured_as_ipv4() {
    let node = Node::new();
    let pod = node.pod("a");
    let mut agent = Agent::new();
    let enrolled = agent.enrol(&pod);
    let client = pod.space.connect("[::ffff:203.0.113.9]:80".parse().unwrap()).unwrap();
    let accepted = accept(&enrolled, Kind::Outbound);
    assert_eq!(accepted.local, "203.0.113.9:80".parse().unwrap());
    assert_eq!(accepted.peer.ip(), pod.v4);
    drop(client);
}

#[test]
fn a_connection_to_a_listening_port_arrives_at_the_agent_and_the_leg_carries_the_clients_address() {
    let node = Node::new();
    let (pod, outside) = (node.pod("a"), node.pod("outside"));
    let mut agent = Agent::new();
    let enrolled = agent.enrol(&pod);
    let app = pod.space.listen("[::]:8080");
    for v6 in [false, true] {
        let to = pod.at(v6, 8080);
        let mut client = outside.space.connect(to).unwrap();
        let mut accepted = accept(&enrolled, Kind::Inbound);
        assert_eq!(accepted.local, to);
        assert_eq!(accepted.peer, client.local_addr().unwrap());
        let mut leg = leg(&agent.handle(), &enrolled, &accepted).unwrap();
        let (mut served, peer) = accept_app(&app);
        assert_eq!(peer.ip(), outside.at(v6, 0).ip());
        says(&mut client, &mut accepted.stream, "hello");
        says(&mut leg, &mut served, "hello");
        says(&mut served, &mut leg, "world");
        assert_eq!(agent.handle().legs().unwrap(), 1);
    }
}

#[test]
fn the_hbone_port_reaches_its_listener_and_the_other_mesh_ports_are_closed_to_the_outside() {
    let node = Node::new();
    let (pod, outside) = (node.pod("a"), node.pod("outside"));
    let mut agent = Agent::new();
    let enrolled = agent.enrol(&pod);
    for v6 in [false, true] {
        let client = outside.space.connect(pod.at(v6, 15008)).unwrap();
        assert_eq!(accept(&enrolled, Kind::Hbone).peer, client.local_addr().unwrap());
        for port in [15001, 15006] {
            assert_eq!(errno(outside.space.connect(pod.at(v6, port))), Some(libc::ECONNREFUSED));
        }
    }
}

#[test]
fn strict_reverse_path_filters_let_every_path_through() {
    let node = Node::new();
    let (pod, outside) = (node.pod("a"), node.pod("outside"));
    let mut agent = Agent::new();
    let enrolled = agent.enrol(&pod);
    for device in ["all", "eth0", "lo"] {
        pod.space.set_sysctl(&format!("ipv4/conf/{device}/rp_filter"), "1");
    }
    let _app = pod.space.listen("0.0.0.0:8080");
    let _captured = pod.space.connect("203.0.113.7:80".parse().unwrap()).unwrap();
    accept(&enrolled, Kind::Outbound);
    let _client = outside.space.connect(pod.at(false, 8080)).unwrap();
    let accepted = accept(&enrolled, Kind::Inbound);
    leg(&agent.handle(), &enrolled, &accepted).unwrap();
}

#[test]
fn a_leg_to_a_port_that_has_closed_is_refused_at_once() {
    let node = Node::new();
    let (pod, outside) = (node.pod("a"), node.pod("outside"));
    let mut agent = Agent::new();
    let enrolled = agent.enrol(&pod);
    for v6 in [false, true] {
        let app = pod.space.listen("[::]:8080");
        let _client = outside.space.connect(pod.at(v6, 8080)).unwrap();
        let accepted = accept(&enrolled, Kind::Inbound);
        drop(app);
        assert_eq!(errno(leg(&agent.handle(), &enrolled, &accepted)), Some(libc::ECONNREFUSED));
    }
}

/// With `MESH_BPF_OBJECT` naming an object that was built with the feature `log`.
#[cfg(feature = "ebpf-log")]
#[test]
fn the_programs_that_log_are_accepted_by_the_kernel_and_their_lines_can_be_read() {
    let node = Node::new();
    let pod = node.pod("a");
    let mut agent = Agent::new();
    assert!(agent.capture().kernel_log().is_some());
    let enrolled = agent.enrol(&pod);
    let _client = pod.space.connect("203.0.113.7:80".parse().unwrap()).unwrap();
    accept(&enrolled, Kind::Outbound);
}
