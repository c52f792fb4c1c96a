//! The verdict cache: what the kernel answers by itself.

use std::collections::HashMap;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use mesh_agent::capture::{Enrolled, Event, FlowEnds, KernelAction, OpenerRole};

use crate::lab::{Agent, Kind, Node, Pod, accept, accept_app, accept_within, errno, eventually, says};

const SHORT: Duration = Duration::from_millis(300);

/// Two enrolled pods of one node, an application in the second.
pub(crate) struct Pair {
    // Listeners and sockets go before the agent, pods after it.
    pub(crate) app: TcpListener,
    pub(crate) from: Enrolled,
    pub(crate) to: Enrolled,
    pub(crate) agent: Agent,
    pub(crate) client: Pod,
    pub(crate) server: Pod,
    pub(crate) node: Node,
}

impl Pair {
    /// The application listens at `at`.
    pub(crate) fn new(at: &str) -> Self {
        let node = Node::new();
        let (client, server) = (node.pod("client"), node.pod("server"));
        let mut agent = Agent::new();
        let app = server.space.listen(at);
        let (from, to) = (agent.enrol(&client), agent.enrol(&server));
        Self { app, from, to, agent, client, server, node }
    }

    /// The only verdict: what becomes of the client's connections to `to`.
    pub(crate) fn set(&self, to: SocketAddr, action: KernelAction) {
        self.agent.handle().set_verdicts(&verdicts(&[(&self.client, to, action)])).unwrap();
    }

    pub(crate) fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        self.client.space.connect(to)
    }
}

fn verdicts(pairs: &[(&Pod, SocketAddr, KernelAction)]) -> HashMap<(u64, SocketAddr), KernelAction> {
    pairs.iter().map(|(pod, to, action)| ((pod.cookie(), *to), *action)).collect()
}

fn opener(pod: &Enrolled) -> FlowEnds<'_> {
    FlowEnds { opener: Some(&pod.netns), server: None }
}

#[test]
fn a_bypassed_flow_reaches_the_application_without_the_agent_and_is_listed_while_it_lives() {
    let pair = Pair::new("[::]:8080");
    for v6 in [false, true] {
        let target = pair.server.at(v6, 8080);
        let wanted = verdicts(&[(&pair.client, target, KernelAction::Bypass)]);
        assert_eq!(pair.agent.handle().set_verdicts(&wanted).unwrap().written, 1);
        let mut opened = pair.connect(target).unwrap();
        let (mut served, peer) = accept_app(&pair.app);
        assert_eq!(peer, opened.local_addr().unwrap());
        says(&mut opened, &mut served, "direct");
        let flows = pair.agent.handle().flows().unwrap();
        assert_eq!(flows.len(), 1);
        assert_eq!((flows[0].opener, flows[0].local, flows[0].remote), (pair.client.cookie(), peer, target));
        assert!(accept_within(&pair.from, Kind::Outbound, Duration::from_millis(50)).is_none());
        assert!(accept_within(&pair.to, Kind::Inbound, Duration::from_millis(50)).is_none());
        drop((opened, served));
        eventually("the flow is gone", || pair.agent.handle().flows().unwrap().is_empty());
    }
    assert_eq!(pair.agent.counter("bypassed"), 2);
}

#[test]
fn a_refused_destination_answers_connection_refused_and_others_still_pass_through_the_agent() {
    let pair = Pair::new("[::]:8080");
    let _other = pair.server.space.listen("[::]:8081");
    for v6 in [false, true] {
        let target = pair.server.at(v6, 8080);
        pair.set(target, KernelAction::Refuse);
        assert_eq!(errno(pair.connect(target)), Some(libc::ECONNREFUSED));
        let _passes = pair.connect(pair.server.at(v6, 8081)).unwrap();
        assert_eq!(accept(&pair.from, Kind::Outbound).local, pair.server.at(v6, 8081));
    }
    assert_eq!(pair.agent.counter("refused"), 2);
}

#[test]
fn a_new_generation_voids_every_verdict_until_they_are_set_again() {
    let pair = Pair::new("0.0.0.0:8080");
    let target = pair.server.at(false, 8080);
    let wanted = verdicts(&[(&pair.client, target, KernelAction::Bypass)]);
    pair.agent.handle().set_verdicts(&wanted).unwrap();
    pair.agent.handle().bump_generation().unwrap();
    let _captured = pair.connect(target).unwrap();
    assert_eq!(accept(&pair.from, Kind::Outbound).local, target);
    pair.agent.handle().set_verdicts(&wanted).unwrap();
    let direct = pair.connect(target).unwrap();
    assert_eq!(accept_app(&pair.app).1, direct.local_addr().unwrap());
    let none = HashMap::new();
    assert_eq!(pair.agent.handle().set_verdicts(&none).unwrap().removed, 1);
    let _captured = pair.connect(target).unwrap();
    assert_eq!(accept(&pair.from, Kind::Outbound).local, target);
}

#[test]
fn a_live_bypassed_flow_is_destroyed_and_both_ends_see_a_reset() {
    let pair = Pair::new("[::]:8080");
    for v6 in [false, true] {
        let target = pair.server.at(v6, 8080);
        pair.set(target, KernelAction::Bypass);
        let mut opened = pair.connect(target).unwrap();
        let (mut served, _) = accept_app(&pair.app);
        says(&mut opened, &mut served, "alive");
        pair.agent.handle().set_verdicts(&HashMap::new()).unwrap();
        let flow = pair.agent.handle().flows().unwrap()[0];
        assert!(pair.agent.handle().destroy(&flow, opener(&pair.from)).unwrap());
        assert_eq!(errno(served.read(&mut [0; 1])), Some(libc::ECONNRESET));
        assert_eq!(errno(opened.read(&mut [0; 1])), Some(libc::ECONNABORTED));
        assert!(!pair.agent.handle().destroy(&flow, opener(&pair.from)).unwrap());
        assert!(pair.agent.handle().flows().unwrap().is_empty());
    }
}

#[test]
fn a_flow_whose_pods_cannot_reach_each_other_is_destroyed_at_both_ends_and_nothing_of_it_is_left() {
    let node = Node::new();
    let (client, server) = (node.pod("client"), node.pod("server"));
    let mut agent = Agent::new();
    let app = server.space.listen("[::]:8080");
    let from = agent.enrol(&client);
    let to = agent.enrol(&server);
    for (v6, opener) in [(false, Some(&*from.netns)), (true, Some(&*from.netns)), (false, None), (true, None)]
    {
        let target = server.at(v6, 8080);
        agent.handle().set_verdicts(&verdicts(&[(&client, target, KernelAction::Bypass)])).unwrap();
        let mut opened = client.space.connect(target).unwrap();
        let (mut served, _) = accept_app(&app);
        says(&mut opened, &mut served, "alive");
        let flow = agent.handle().flows().unwrap()[0];
        // Nothing that one end says reaches the other any more.
        client.space.ip("link set eth0 down");
        let ends = FlowEnds { opener, server: Some(&to.netns) };
        assert!(agent.handle().destroy(&flow, ends).unwrap());
        assert_eq!(errno(served.read(&mut [0; 1])), Some(libc::ECONNABORTED));
        if opener.is_some() {
            assert_eq!(errno(opened.read(&mut [0; 1])), Some(libc::ECONNABORTED));
        }
        assert!(agent.handle().flows().unwrap().is_empty());
        assert!(!agent.handle().destroy(&flow, ends).unwrap(), "once");
        client.space.ip("link set eth0 up");
        client.space.ip("-6 addr replace fd99::2/64 dev eth0 nodad");
        client.space.ip("route replace default via 10.99.0.1");
        // The connection was ended, not what listens for the next.
        let next = client.space.connect(target).unwrap();
        assert_eq!(accept_app(&app).1, next.local_addr().unwrap());
        drop(next);
        eventually("the next is gone", || agent.handle().flows().unwrap().is_empty());
        // An end that knows already: the reset of the other was there first.
        let _reset = client.space.connect(target).unwrap();
        let (mut served, _) = accept_app(&app);
        let flow = agent.handle().flows().unwrap()[0];
        let ends = FlowEnds { opener: Some(&from.netns), server: Some(&to.netns) };
        assert!(agent.handle().destroy(&flow, ends).unwrap());
        assert!(served.read(&mut [0; 1]).is_err());
        drop(client.space.connect(target).unwrap());
        accept_app(&app);
        eventually("the last is gone", || agent.handle().flows().unwrap().is_empty());
    }
}

#[test]
fn a_flow_that_took_the_addresses_of_another_is_not_taken_for_it() {
    let node = Node::new();
    let (client, server) = (node.pod("client"), node.pod("server"));
    let mut agent = Agent::new();
    let app = server.space.listen("[::]:8080");
    let from = agent.enrol(&client);
    let to = agent.enrol(&server);
    let target = server.at(false, 8080);
    agent.handle().set_verdicts(&verdicts(&[(&client, target, KernelAction::Bypass)])).unwrap();
    let connect = |port: u16| {
        let socket = client
            .space
            .netns
            .run(|| socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None));
        let socket = socket.unwrap().unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.bind(&SocketAddr::new(client.v4, port).into()).unwrap();
        socket.connect_timeout(&target.into(), Duration::from_secs(3)).unwrap();
        TcpStream::from(socket)
    };
    let first = connect(40_000);
    let (served, _) = accept_app(&app);
    let flow = agent.handle().flows().unwrap()[0];
    // The server's end closes first and keeps the TIME_WAIT to itself.
    drop(served);
    drop(first);
    eventually("the first flow is gone", || agent.handle().flows().unwrap().is_empty());
    let mut second = connect(40_000);
    let (mut served, _) = accept_app(&app);
    let ends = FlowEnds { opener: Some(&from.netns), server: Some(&to.netns) };
    assert!(!agent.handle().destroy(&flow, ends).unwrap());
    says(&mut second, &mut served, "alive");
    assert_eq!(agent.handle().flows().unwrap().len(), 1);
}

#[test]
fn a_withdrawn_pod_leaves_no_verdict_from_or_to_it_and_a_released_one_no_leg() {
    let node = Node::new();
    let (client, server, outside) = (node.pod("client"), node.pod("server"), node.pod("outside"));
    let mut agent = Agent::new();
    let app = server.space.listen("[::]:8080");
    let from = agent.enrol(&client);
    let to = agent.enrol(&server);
    let back = client.space.listen("[::]:8081");
    let wanted = verdicts(&[
        (&client, server.at(false, 8080), KernelAction::Bypass),
        (&client, server.at(true, 8080), KernelAction::Refuse),
        (&server, client.at(false, 8081), KernelAction::Bypass),
    ]);
    assert_eq!(agent.handle().set_verdicts(&wanted).unwrap().written, 3);
    let _inbound = outside.space.connect(server.at(false, 8080)).unwrap();
    let accepted = accept(&to, Kind::Inbound);
    let mut leg = crate::lab::leg(&agent.handle(), &to, &accepted).unwrap();
    let (mut application, _) = accept_app(&app);
    says(&mut leg, &mut application, "relayed");
    assert_eq!(agent.handle().legs().unwrap(), 1);

    agent.capture().withdraw(&server.id).unwrap();
    // All three are to be written again: none was left.
    assert_eq!(agent.handle().set_verdicts(&wanted).unwrap().written, 3);
    says(&mut application, &mut leg, "goes on");
    agent.capture().release(&server.id).unwrap();
    assert_eq!(agent.handle().legs().unwrap(), 0);
    drop((from, back));
}

#[test]
fn a_connection_that_is_mapped_into_ipv6_bypasses_and_is_destroyed_like_any_other() {
    let pair = Pair::new("[::]:8080");
    let target = pair.server.at(false, 8080);
    pair.set(target, KernelAction::Bypass);
    let mapped: SocketAddr = format!("[::ffff:{}]:8080", pair.server.v4).parse().unwrap();
    let mut opened = pair.connect(mapped).unwrap();
    let (mut served, _) = accept_app(&pair.app);
    says(&mut opened, &mut served, "mapped");
    let flow = pair.agent.handle().flows().unwrap()[0];
    assert_eq!(flow.remote, target);
    assert!(pair.agent.handle().destroy(&flow, opener(&pair.from)).unwrap());
    assert_eq!(errno(served.read(&mut [0; 1])), Some(libc::ECONNRESET));
}

#[tokio::test]
async fn the_end_of_a_bypassed_flow_is_reported_with_its_bytes() {
    let mut pair = Pair::new("[::]:8080");
    let mut events = pair.agent.capture().events().unwrap();
    for v6 in [false, true] {
        let target = pair.server.at(v6, 8080);
        pair.set(target, KernelAction::Bypass);
        let mut opened = pair.connect(target).unwrap();
        let (mut served, peer) = accept_app(&pair.app);
        opened.write_all(&[7; 1000]).unwrap();
        served.read_exact(&mut [0; 1000]).unwrap();
        served.write_all(&[8; 3000]).unwrap();
        opened.read_exact(&mut [0; 3000]).unwrap();
        drop(served);
        assert_eq!(opened.read(&mut [0; 1]).unwrap(), 0);
        drop(opened);
        let closed = loop {
            let event = tokio::time::timeout(Duration::from_secs(5), events.next()).await.unwrap().unwrap();
            if let Event::FlowClosed(closed) = event {
                break closed;
            }
        };
        assert_eq!((closed.opener, closed.local, closed.remote), (pair.client.cookie(), peer, target));
        assert_eq!((closed.sent, closed.received), (1000, 3000));
        assert_eq!(closed.retransmits, 0);
        assert!(closed.round_trip > Duration::ZERO && closed.duration > Duration::ZERO);
    }
}

#[test]
fn an_unenrolled_pod_that_takes_an_enrolled_pods_address_gets_no_bypass() {
    let pair = Pair::new("[::]:8080");
    let thief = pair.node.pod("thief");
    for v6 in [false, true] {
        let target = pair.server.at(v6, 8080);
        pair.set(target, KernelAction::Bypass);
        // The real owner falls silent, so that the thief's packets find their way back to it.
        pair.client.space.ip("link set eth0 down");
        let (address, length) = (pair.client.at(v6, 0).ip(), if v6 { 64 } else { 24 });
        thief.space.ip("addr flush dev eth0");
        thief.space.ip(&format!("addr add {address}/{length} dev eth0"));
        if v6 {
            eventually("duplicate address detection", || {
                !thief.space.output("addr show dev eth0").contains("tentative")
            });
        }
        let stolen = thief.space.connect(target).unwrap();
        let accepted = accept(&pair.to, Kind::Inbound);
        assert_eq!(accepted.peer, stolen.local_addr().unwrap());
        assert_eq!(accepted.peer.ip(), address);
        assert_eq!(pair.agent.handle().opener(accepted.peer, accepted.local).unwrap(), None);
        pair.client.space.ip("link set eth0 up");
        pair.client.space.ip("-6 addr replace fd99::2/64 dev eth0 nodad");
    }
}

#[test]
fn a_multipath_flow_bypasses_like_any_other_or_goes_through_the_agent() {
    let pair = Pair::new("[::]:8080");
    let target = pair.server.at(false, 8080);
    pair.set(target, KernelAction::Bypass);
    let make = || socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, Some(262.into()));
    let Ok(socket) = pair.client.space.netns.run(make).unwrap() else { return };
    socket.connect_timeout(&target.into(), Duration::from_secs(3)).unwrap();
    eprintln!("flows {:?}", pair.agent.handle().flows().unwrap());
    if pair.agent.handle().flows().unwrap().is_empty() {
        accept(&pair.to, Kind::Inbound);
    } else {
        accept_app(&pair.app);
    }
}

#[test]
fn a_verdict_withdrawn_while_the_first_packet_is_on_its_way_hands_the_flow_to_the_agent() {
    let pair = Pair::new("0.0.0.0:8080");
    let target = pair.server.at(false, 8080);
    pair.set(target, KernelAction::Bypass);
    // The server's link is down: the SYN is sent again a second later, when the verdict is gone.
    pair.server.space.ip("link set eth0 down");
    std::thread::scope(|scope| {
        let opened = scope.spawn(|| pair.connect(target));
        eventually("the flow is filed", || pair.agent.handle().flows().unwrap().len() == 1);
        pair.agent.handle().set_verdicts(&HashMap::new()).unwrap();
        pair.server.space.ip("link set eth0 up");
        let accepted = accept(&pair.to, Kind::Inbound);
        let opener = pair.agent.handle().opener(accepted.peer, accepted.local).unwrap().unwrap();
        assert_eq!((opener.cookie, opener.role), (pair.client.cookie(), OpenerRole::Application));
        assert!(opened.join().unwrap().is_ok());
    });
}

#[test]
fn a_thousand_connections_leave_no_flow_leg_or_verdict_behind() {
    let node = Node::new();
    let (client, server, outside) = (node.pod("client"), node.pod("server"), node.pod("outside"));
    let mut agent = Agent::new();
    let from = agent.enrol(&client);
    let to = agent.enrol(&server);
    let handle = agent.handle();
    for round in 0..250 {
        let v6 = round % 2 == 1;
        let app = server.space.listen("[::]:8080");
        let target = server.at(v6, 8080);
        handle.set_verdicts(&verdicts(&[(&client, target, KernelAction::Bypass)])).unwrap();
        let mut direct = client.space.connect(target).unwrap();
        let (mut served, _) = accept_app(&app);
        says(&mut direct, &mut served, "x");
        handle.set_verdicts(&HashMap::new()).unwrap();
        let captured = client.space.connect(target).unwrap();
        drop(accept(&from, Kind::Outbound));
        let inbound = outside.space.connect(target).unwrap();
        let accepted = accept(&to, Kind::Inbound);
        let leg = crate::lab::leg(&handle, &to, &accepted).unwrap();
        let (application, _) = accept_app(&app);
        // Each end closes first in turn.
        if round % 4 < 2 {
            drop((direct, leg));
        } else {
            drop((served, application));
        }
        drop((captured, inbound));
    }
    eventually("the flows are gone", || handle.flows().unwrap().is_empty() && handle.legs().unwrap() == 0);
    assert_eq!(agent.counter("flows_full") + agent.counter("listen_full"), 0);
    assert!(handle.listening(to.cookie).unwrap().is_empty());
    std::thread::sleep(SHORT);
    assert!(accept_within(&to, Kind::Inbound, Duration::ZERO).is_none());
}
