//! Pods that come and go, agents that share a kernel, die and return, and what is left when they leave.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use mesh_agent::capture::{Capture, CaptureError, Enrolled};
use mesh_agent::net::sock;

use crate::lab::{
    Agent, Kind, Node, Pod, Space, WORKERS, accept, accept_app, accept_within, config, errno, leg, says,
};

const TUNED: [&str; 4] =
    ["ipv4/tcp_fwmark_accept", "ipv4/fwmark_reflect", "ipv6/fwmark_reflect", "ipv4/tcp_tw_reuse"];

fn foreign() -> SocketAddr {
    "203.0.113.7:80".parse().unwrap()
}

/// Everything enrolment could change in a namespace; what comes by itself when a link finds its carrier
/// (link-local and multicast routes) is left out.
fn state(space: &Space) -> Vec<String> {
    let mut state = Vec::new();
    for line in ["rule show", "-6 rule show", "route show table all", "-6 route show table all"] {
        let output = space.output(line);
        let lines = output.lines().filter(|line| !line.contains("fe80:") && !line.starts_with("multicast"));
        state.extend(lines.map(str::to_owned));
    }
    state.extend(TUNED.map(|name| space.sysctl(name)));
    state
}

#[test]
fn shutdown_leaves_no_pin_rule_route_setting_or_listener() {
    let node = Node::new();
    let pod = node.pod("a");
    let before = state(&pod.space);
    let mut agent = Agent::new();
    let enrolled = agent.enrol(&pod);
    assert_ne!(state(&pod.space), before);
    assert_eq!(TUNED.map(|name| pod.space.sysctl(name)), ["1", "1", "1", "1"]);
    assert!(agent.dir.join("connect4_v2").exists());
    agent.shutdown();
    drop(enrolled);
    assert_eq!(state(&pod.space), before);
    assert!(!agent.dir.exists());
    let again = pod.space.listen("[::]:15001");
    drop(again);
}

#[test]
fn live_connections_survive_enrolment_and_withdrawal_and_withdrawal_ends_capture_at_once() {
    let node = Node::new();
    let (pod, outside) = (node.pod("a"), node.pod("outside"));
    let app = pod.space.listen("[::]:8080");
    let mut agent = Agent::new();
    let connect = |mapped: &SocketAddr| outside.space.connect(*mapped).unwrap();
    let mut old = connect(&pod.at(false, 8080));
    let (mut old_served, _) = accept_app(&app);

    let enrolled = agent.enrol(&pod);
    says(&mut old, &mut old_served, "before");
    let mut captured = pod.space.connect(foreign()).unwrap();
    let mut upstream = accept(&enrolled, Kind::Outbound);
    let mut steered = connect(&pod.at(true, 8080));
    let mut accepted = accept(&enrolled, Kind::Inbound);
    let mut inside = leg(&agent.handle(), &enrolled, &accepted).unwrap();
    let (mut served, _) = accept_app(&app);

    agent.capture().withdraw(&pod.id).unwrap();
    says(&mut old, &mut old_served, "after");
    says(&mut captured, &mut upstream.stream, "captured");
    says(&mut upstream.stream, &mut captured, "answered");
    says(&mut steered, &mut accepted.stream, "steered");
    says(&mut inside, &mut served, "leg");
    says(&mut served, &mut inside, "back");
    let direct = connect(&pod.at(false, 8080));
    assert_eq!(accept_app(&app).1, direct.local_addr().unwrap());
    assert!(accept_within(&enrolled, Kind::Inbound, Duration::ZERO).is_none());

    drop((captured, upstream, steered, accepted, inside, served, enrolled));
    let pods: Vec<_> = agent.capture().enrolled();
    assert!(pods.is_empty());
    agent.capture().release(&pod.id).unwrap();
    assert_eq!(pod.space.sysctl("ipv4/tcp_fwmark_accept"), "0");
    // The old connection's socket on the application's side has nothing of the mesh.
    says(&mut old, &mut old_served, "still");
}

#[test]
fn a_pod_that_was_withdrawn_can_be_enrolled_again_before_and_after_its_release() {
    let node = Node::new();
    let pod = node.pod("a");
    let before = state(&pod.space);
    let mut agent = Agent::new();
    for release in [false, true, false] {
        let enrolled = agent.enrol(&pod);
        let client = pod.space.connect(foreign()).unwrap();
        assert_eq!(accept(&enrolled, Kind::Outbound).peer, client.local_addr().unwrap());
        drop(enrolled);
        agent.capture().withdraw(&pod.id).unwrap();
        if release {
            agent.capture().release(&pod.id).unwrap();
            assert_eq!(state(&pod.space), before);
        }
    }
    agent.shutdown();
    assert_eq!(state(&pod.space), before);
}

#[test]
fn two_agents_in_one_kernel_leave_each_others_pods_alone() {
    let (node_a, node_b) = (Node::new(), Node::new());
    let (pod_a, pod_b) = (node_a.pod("a"), node_b.pod("b"));
    let (mut first, mut second) = (Agent::new(), Agent::new());
    let enrolled_a = first.enrol(&pod_a);
    let enrolled_b = second.enrol(&pod_b);
    // The same addresses on purpose: the namespaces alone tell them apart.
    assert_eq!(pod_a.v4, pod_b.v4);
    for (pod, own, other) in [(&pod_a, &enrolled_a, &enrolled_b), (&pod_b, &enrolled_b, &enrolled_a)] {
        let _client = pod.space.connect(foreign()).unwrap();
        assert_eq!(accept(own, Kind::Outbound).local, foreign());
        assert!(accept_within(other, Kind::Outbound, Duration::ZERO).is_none());
    }
    let taken = second.capture().enrol(&pod_a.attachment()).unwrap_err();
    assert!(matches!(taken, CaptureError::ConflictNetns { .. }), "{taken}");
    drop(enrolled_a);
    first.shutdown();
    let _client = pod_b.space.connect(foreign()).unwrap();
    accept(&enrolled_b, Kind::Outbound);
    assert_eq!(first_counter(&second), 2);
}

fn first_counter(agent: &Agent) -> u64 {
    agent.counter("captured")
}

#[test]
fn a_folder_serves_one_agent_at_a_time() {
    let agent = Agent::new();
    let error = Capture::load(&config(&agent.dir)).unwrap_err();
    assert!(matches!(error, CaptureError::Busy { .. }), "{error}");
}

#[test]
fn mistakes_in_enrolment_are_named() {
    let node = Node::new();
    let pod = node.pod("a");
    let mut agent = Agent::new();
    let mut nameless = pod.attachment();
    nameless.addresses.clear();
    assert!(matches!(agent.capture().enrol(&nameless), Err(CaptureError::NoAddress { .. })));
    let mut host = pod.attachment();
    host.netns = PathBuf::from("/proc/self/ns/net").into();
    assert!(matches!(agent.capture().enrol(&host), Err(CaptureError::OwnNetns { .. })));
    let mut missing = pod.attachment();
    missing.netns = PathBuf::from("/run/netns/nodemesh-not-there").into();
    assert!(matches!(agent.capture().enrol(&missing), Err(CaptureError::Netns { .. })));
    let before = state(&pod.space);
    let taken = pod.space.listen("0.0.0.0:15008");
    let error = agent.capture().enrol(&pod.attachment()).unwrap_err();
    assert!(matches!(error, CaptureError::PortTaken { port: 15008, .. }), "{error}");
    drop(taken);
    // What a failed enrolment had begun is undone, and the pod can be enrolled afterwards.
    assert_eq!(state(&pod.space), before);
    let _enrolled = agent.enrol(&pod);
    assert!(matches!(agent.capture().enrol(&pod.attachment()), Err(CaptureError::Enrolled { .. })));
    let mut twin = pod.attachment();
    twin.id = mesh_agent::model::WorkloadId("test/twin".into());
    assert!(matches!(agent.capture().enrol(&twin), Err(CaptureError::SharedNetns { .. })));
}

#[test]
fn without_an_agent_a_fail_closed_pod_is_refused_and_a_fail_open_pod_connects_directly() {
    let node = Node::new();
    let (closed, open, outside) = (node.pod("closed"), node.pod("open"), node.pod("outside"));
    let _closed_app = closed.space.listen("[::]:8080");
    let open_app = open.space.listen("[::]:8080");
    let server = outside.space.listen("[::]:8080");
    let mut agent = Agent::new();
    let first = agent.enrol(&closed);
    let mut attachment = open.attachment();
    attachment.fail_closed = false;
    let second = agent.capture().enrol(&attachment).unwrap();
    agent.die();
    drop((first, second));
    for v6 in [false, true] {
        assert_eq!(errno(closed.space.connect(outside.at(v6, 8080))), Some(libc::ECONNREFUSED));
        assert_eq!(errno(outside.space.connect(closed.at(v6, 8080))), Some(libc::ECONNREFUSED));
        let direct = open.space.connect(outside.at(v6, 8080)).unwrap();
        assert_eq!(accept_app(&server).1, direct.local_addr().unwrap());
        let inbound = outside.space.connect(open.at(v6, 8080)).unwrap();
        assert_eq!(accept_app(&open_app).1, inbound.local_addr().unwrap());
    }
}

#[test]
fn a_new_agent_takes_over_the_pods_of_a_dead_one_and_forgets_those_that_are_gone() {
    let node = Node::new();
    let (kept, gone) = (node.pod("kept"), node.pod("gone"));
    let before = state(&kept.space);
    let mut agent = Agent::new();
    let first = agent.enrol(&kept);
    let second = agent.enrol(&gone);
    let app = kept.space.listen("[::]:8080");
    agent.restart();
    drop((first, second));
    let enrolled = agent.enrol(&kept);
    let _client = kept.space.connect(foreign()).unwrap();
    assert_eq!(accept(&enrolled, Kind::Outbound).local, foreign());
    assert_eq!(agent.handle().listening(enrolled.cookie).unwrap(), [8080]);
    assert_eq!(errno(gone.space.connect(foreign())), Some(libc::ECONNREFUSED));
    assert_eq!(agent.capture().prune().unwrap(), 1);
    // No longer captured: without a route to there, the network answers.
    assert_ne!(errno(gone.space.connect("10.99.0.1:9".parse().unwrap())), None);
    assert_eq!(fs::read_dir(&agent.dir).unwrap().flatten().filter(is_steer).count(), 1);
    drop((enrolled, app));
    agent.shutdown();
    assert_eq!(state(&kept.space), before);
}

fn is_steer(entry: &fs::DirEntry) -> bool {
    entry.file_name().to_string_lossy().starts_with("steer_")
}

#[test]
fn listeners_that_are_handed_over_go_on_accepting() {
    let node = Node::new();
    let pod = node.pod("a");
    let mut agent = Agent::new();
    let enrolled = agent.enrol(&pod);
    agent.die();
    // Between the agents: the connection waits in the backlog.
    let mut client = pod.space.connect(foreign()).unwrap();
    agent.restart();
    let enrolled = agent.capture().enrol_with(&pod.attachment(), Some(enrolled.listeners)).unwrap();
    let mut accepted = accept(&enrolled, Kind::Outbound);
    says(&mut client, &mut accepted.stream, "waited");
}

#[test]
fn connections_spread_over_the_workers_listeners() {
    let node = Node::new();
    let pod = node.pod("a");
    let mut agent = Agent::new();
    let enrolled = agent.enrol(&pod);
    let mut seen = [0; WORKERS];
    for _ in 0..64 {
        let _client = pod.space.connect(foreign()).unwrap();
        seen[accept(&enrolled, Kind::Outbound).worker] += 1;
    }
    assert!(seen.iter().all(|count| *count > 8), "{seen:?}");
}

/// A socket of the agent's own passes; everything else of the pod does not.
#[test]
fn the_agents_own_connections_are_not_captured() {
    let node = Node::new();
    let (pod, outside) = (node.pod("a"), node.pod("outside"));
    let server = outside.space.listen("[::]:8080");
    let mut agent = Agent::new();
    let enrolled = agent.enrol(&pod);
    for v6 in [false, true] {
        let to = outside.at(v6, 8080);
        let socket = sock::pod_socket(&enrolled.netns, Some(pod.at(v6, 0).ip()), to).unwrap();
        agent.handle().mark_own(&socket).unwrap();
        socket.set_nonblocking(false).unwrap();
        socket.connect(&to.into()).unwrap();
        assert_eq!(accept_app(&server).1.ip(), pod.at(v6, 0).ip());
    }
    assert!(accept_within(&enrolled, Kind::Outbound, Duration::ZERO).is_none());
}

#[test]
fn many_short_legs_from_one_client_do_not_run_out_of_ports() {
    let node = Node::new();
    let (pod, outside) = (node.pod("a"), node.pod("outside"));
    let app = pod.space.listen("[::]:8080");
    let mut agent = Agent::new();
    let enrolled = agent.enrol(&pod);
    for _ in 0..2000 {
        short_leg(&agent, &enrolled, &outside, &pod, &app);
    }
    assert_eq!(agent.counter("steered_inbound"), 2000);
}

fn short_leg(agent: &Agent, enrolled: &Enrolled, client: &Pod, pod: &Pod, app: &std::net::TcpListener) {
    let mut stream = client.space.connect(pod.at(false, 8080)).unwrap();
    let accepted = accept(enrolled, Kind::Inbound);
    let mut inside = leg(&agent.handle(), enrolled, &accepted).unwrap();
    let (mut served, _) = accept_app(app);
    inside.write_all(b"x").unwrap();
    served.read_exact(&mut [0; 1]).unwrap();
    drop(inside);
    drop(accepted);
    assert_eq!(served.read(&mut [0; 1]).unwrap(), 0);
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
}
