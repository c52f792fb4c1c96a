//! The kernel's tables when they are full: what is counted, and that nothing is let through for it.

use std::io::Read as _;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;

use aya::Pod as Plain;
use aya::maps::{Array, HashMap, Map, MapData};
use mesh_agent::capture::{CaptureError, Event, FlowEnds, KernelAction};
use mesh_agent::model::Limit;
use mesh_agent::net::backlog;
use mesh_common::{
    ABI_VERSION, EVENTS_BYTES, FLOW_PLACES, FlowKey, FlowPlace, LEGS_MAX, LISTEN_MAX, PODS_MAX, PodEntry,
    SPILLED_MAX,
};

use crate::bypass::Pair;
use crate::lab::{Agent, Kind, Node, accept, accept_app, errno, eventually, leg, says};

fn pinned(dir: &Path, name: &str) -> MapData {
    MapData::from_pin(dir.join(format!("{name}_v{ABI_VERSION}"))).unwrap()
}

/// One table of an agent, as anybody may open it who may read its folder.
fn table<K: Plain, V: Plain>(dir: &Path, name: &str) -> HashMap<MapData, K, V> {
    HashMap::try_from(Map::HashMap(pinned(dir, name))).unwrap()
}

/// Takes every place that is free, as a flow would that no connection has.
fn take_places(dir: &Path) {
    let mut places: Array<_, FlowPlace> = Array::try_from(Map::Array(pinned(dir, "flows"))).unwrap();
    let another = FlowPlace { socket_cookie: FlowPlace::TAKEN - 1, ..FlowPlace::default() };
    for at in 0..FLOW_PLACES {
        places.set(at, another, 0).unwrap();
    }
}

/// Fills what is free of a table of flows with entries that no connection has.
fn fill_flows(dir: &Path, name: &str, entries: u32) {
    let mut flows: HashMap<_, [u8; 36], [u8; 32]> = table(dir, name);
    for number in 0..entries {
        let mut key = [0xff; 36];
        key[..4].copy_from_slice(&number.to_ne_bytes());
        if flows.insert(key, [0; 32], 0).is_err() {
            return;
        }
    }
}

#[test]
fn a_bypassed_flow_that_finds_the_table_full_is_handed_to_the_agent_and_counted() {
    let pair = Pair::new("[::]:8080");
    let target = pair.server.at(false, 8080);
    pair.set(target, KernelAction::Bypass);
    take_places(&pair.agent.dir);
    fill_flows(&pair.agent.dir, "spilled", SPILLED_MAX);
    let mut opened = pair.connect(target).unwrap();
    let mut accepted = accept(&pair.to, Kind::Inbound);
    says(&mut opened, &mut accepted.stream, "judged again");
    assert_eq!(pair.agent.handle().opener(accepted.peer, accepted.local).unwrap(), None, "a stranger's");
    assert_eq!(pair.agent.counter("flows_full"), 1);
}

/// One that finds only its places taken is a flow like any other: let through, listed, ended at once or by itself.
#[tokio::test]
async fn bypassed_flows_that_have_the_same_places_are_all_known() {
    let mut pair = Pair::new("[::]:8080");
    let mut events = pair.agent.capture().events().unwrap();
    let handle = pair.agent.handle();
    for v6 in [false, true] {
        let (from, target) = (pair.client.at(v6, 0), pair.server.at(v6, 8080));
        pair.set(target, KernelAction::Bypass);
        let local = |port: u16| SocketAddr::new(from.ip(), port);
        let places = |port: u16| {
            let (local_port, remote_port) = (port, target.port());
            FlowKey { local: from.ip().into(), remote: target.ip().into(), local_port, remote_port }.places()
        };
        let wanted = places(40_000);
        let ports: Vec<u16> = (40_000..u16::MAX).filter(|port| places(*port) == wanted).take(3).collect();
        assert_eq!(ports.len(), 3, "the table is too large for this test");
        let mut open: Vec<(TcpStream, TcpStream)> = Vec::new();
        for port in &ports {
            let mut opened = pair.client.space.connect_from(local(*port), target).unwrap();
            let (mut served, peer) = accept_app(&pair.app);
            assert_eq!(peer.port(), *port);
            says(&mut opened, &mut served, "direct");
            open.push((opened, served));
        }
        let listed = || -> Vec<u16> {
            let mut ports: Vec<u16> = handle.flows().unwrap().iter().map(|flow| flow.local.port()).collect();
            ports.sort_unstable();
            ports
        };
        assert_eq!(listed(), ports);
        // The first two have the places; the second is cut, and the third, which spilled, ends by itself.
        let cut = handle.flows().unwrap().into_iter().find(|flow| flow.local.port() == ports[1]).unwrap();
        let ends = FlowEnds { opener: Some(&pair.from.netns), server: None };
        assert!(handle.destroy(&cut, ends).unwrap());
        assert_eq!(errno(open[1].1.read(&mut [0; 1])), Some(libc::ECONNRESET));
        drop(open.remove(2));
        eventually("two flows are gone", || listed() == ports[..1]);
        drop(open);
        eventually("the last is gone", || listed().is_empty());
    }
    let ended = std::iter::from_fn(|| events.take()).filter(|event| matches!(event, Event::FlowClosed(_)));
    assert_eq!(ended.count(), 6);
    assert_eq!((pair.agent.counter("flows_full"), pair.agent.counter("flows_ended")), (0, 6));
}

#[test]
fn a_leg_that_finds_the_table_full_comes_back_to_the_agent_and_is_counted() {
    let pair = Pair::new("[::]:8080");
    let outside = pair.node.pod("outside");
    fill_flows(&pair.agent.dir, "legs", LEGS_MAX);
    let _opened = outside.space.connect(pair.server.at(false, 8080)).unwrap();
    let accepted = accept(&pair.to, Kind::Inbound);
    let _leg = leg(&pair.agent.handle(), &pair.to, &accepted).unwrap();
    let again = accept(&pair.to, Kind::Inbound);
    assert_eq!(again.peer.ip(), accepted.peer.ip(), "no way past the agent");
    assert_eq!(pair.agent.counter("flows_full"), 1);
}

#[test]
fn a_listening_port_that_finds_the_table_full_is_taken_for_closed_and_counted() {
    let node = Node::new();
    let (client, server) = (node.pod("client"), node.pod("server"));
    let mut agent = Agent::new();
    let (_from, to) = (agent.enrol(&client), agent.enrol(&server));
    let mut listen: HashMap<_, u64, u64> = table(&agent.dir, "listen");
    for number in 0..u64::from(LISTEN_MAX) {
        if listen.insert(u64::MAX - number, 1, 0).is_err() {
            break;
        }
    }
    let _app = server.space.listen("[::]:8080");
    eventually("the port that found no room to be counted", || agent.counter("listen_full") >= 1);
    assert!(!agent.handle().listening(to.cookie).unwrap().contains(&8080));
    assert!(client.space.connect(server.at(false, 8080)).is_err(), "a port that is not known is not reached");
}

#[test]
fn events_that_nobody_reads_fill_the_ring_and_the_next_are_counted_as_lost() {
    let node = Node::new();
    let pod = node.pod("a");
    let mut agent = Agent::new();
    let _enrolled = agent.enrol(&pod);
    let room = EVENTS_BYTES as usize / size_of::<mesh_common::Event>();
    for _ in 0..room {
        drop(pod.space.listen("0.0.0.0:8080"));
        if agent.counter("events_lost") > 0 {
            return;
        }
    }
    panic!("{room} listeners came and went, and no event was lost");
}

#[test]
fn a_pod_too_many_is_refused_by_name_and_is_a_hit_of_its_limit() {
    let node = Node::new();
    let pod = node.pod("a");
    let mut agent = Agent::new();
    {
        // What an agent before has left of a full node.
        let mut pods: HashMap<_, u64, PodEntry> = table(&agent.dir, "pods");
        for slot in 0..PODS_MAX {
            pods.insert(u64::MAX - u64::from(slot), PodEntry { slot, ..PodEntry::default() }, 0).unwrap();
        }
    }
    agent.restart();
    let error = agent.capture().enrol(&pod.attachment()).unwrap_err();
    assert!(matches!(error, CaptureError::TooManyPods { limit: PODS_MAX, .. }), "{error}");
    assert_eq!(error.limit(), Some(Limit::Pods));
    assert_eq!(agent.capture().prune().unwrap(), PODS_MAX as usize);
    let enrolled = agent.enrol(&pod);
    let _client = pod.space.connect("203.0.113.7:80".parse().unwrap()).unwrap();
    accept(&enrolled, Kind::Outbound);
}

#[test]
fn what_a_full_backlog_of_the_agents_listeners_drops_can_be_asked_for() {
    let node = Node::new();
    let (pod, outside) = (node.pod("a"), node.pod("outside"));
    // The kernel cuts every backlog to this (listen(2)): four thousand clients are not needed to fill one.
    pod.space.set_sysctl("core/somaxconn", "4");
    let app = pod.space.listen("[::]:8080");
    let mut agent = Agent::new();
    let enrolled = agent.enrol(&pod);
    let drops = || -> u32 {
        enrolled
            .listeners
            .iter()
            .map(|each| backlog::drops(std::os::fd::AsFd::as_fd(&each.inbound)).unwrap())
            .sum()
    };
    assert_eq!(drops(), 0);
    let clients: Vec<_> = (0..64).map(|_| outside.space.begin(pod.at(false, 8080))).collect();
    eventually("drops", || drops() > 0);
    drop((clients, app));
}
