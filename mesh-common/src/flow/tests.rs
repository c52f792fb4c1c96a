use core::net::IpAddr;

use super::*;
use crate::FLOW_PLACES;

fn key(local: &str, local_port: u16, remote: &str) -> FlowKey {
    let [local, remote] = [local, remote].map(|text| Address::from(text.parse::<IpAddr>().unwrap()));
    FlowKey { local, remote, local_port, remote_port: 8080 }
}

#[test]
fn every_flow_has_places_of_the_table() {
    for port in 0..=u16::MAX {
        for (local, remote) in [("10.42.0.10", "10.42.0.11"), ("fd00::42:a", "fd00::42:b")] {
            assert!(key(local, port, remote).places().iter().all(|place| *place < FLOW_PLACES));
        }
    }
}

/// Linux gives a client every second port at first: those in a row must not meet.
#[test]
fn the_ports_of_one_client_spread_over_the_table() {
    for (local, remote) in [("10.42.0.10", "10.42.0.11"), ("fd00::42:a", "fd00::42:b")] {
        let mut seen = [0u8; FLOW_PLACES as usize];
        let ports = (32_768..=60_998).step_by(2);
        let flows = ports.clone().count();
        ports.for_each(|port| seen[key(local, port, remote).places()[1] as usize] += 1);
        let used = seen.iter().filter(|count| **count > 0).count();
        let most = seen.iter().max().copied().unwrap();
        assert!(used > FLOW_PLACES as usize / 2 && most <= 8, "{flows} flows: {used} places, {most} in one");
        let mut first = [false; FLOW_PLACES as usize];
        for port in (40_000..40_128).step_by(2) {
            let place = key(local, port, remote).places()[0] as usize;
            assert!(!first[place], "port {port}");
            first[place] = true;
        }
    }
}

#[test]
fn keys_differ_by_every_part() {
    let one = key("10.42.0.10", 40_000, "10.42.0.11");
    assert!(one.same(&one.clone()));
    for other in [
        key("10.42.0.12", 40_000, "10.42.0.11"),
        key("10.42.0.10", 40_001, "10.42.0.11"),
        key("10.42.0.10", 40_000, "10.42.0.12"),
        FlowKey { remote_port: 8081, ..one },
    ] {
        assert!(!one.same(&other));
    }
}
