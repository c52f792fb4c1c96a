//! The address plan, the same in every lab.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A pod's first host number in its node's range; the gateway is number 1.
pub(super) const FIRST_POD: u16 = 10;
/// The last host number that fits an IPv4 range of 24 bits.
pub(super) const LAST_POD: u16 = 250;

/// A node on the link between nodes.
pub(super) fn node(index: u8) -> [IpAddr; 2] {
    let host = index + 10;
    [Ipv4Addr::new(172, 30, 0, host).into(), Ipv6Addr::new(0xfd30, 0, 0, 0, 0, 0, 0, host.into()).into()]
}

pub(super) fn gateway(index: u8) -> [IpAddr; 2] {
    pod(index, 1)
}

pub(super) fn pod(index: u8, host: u16) -> [IpAddr; 2] {
    let [_, low] = host.to_be_bytes();
    [
        Ipv4Addr::new(10, 42, index, low).into(),
        Ipv6Addr::new(0xfd42, 0, 0, index.into(), 0, 0, 0, host).into(),
    ]
}

/// The ranges of a node's pods, as routes name them.
pub(super) fn ranges(index: u8) -> [String; 2] {
    [format!("10.42.{index}.0/24"), format!("fd42:0:0:{index:x}::/64")]
}

/// A service's addresses; no interface has them.
pub(super) fn vip(number: u16) -> [IpAddr; 2] {
    let [high, low] = number.to_be_bytes();
    [Ipv4Addr::new(10, 96, high, low).into(), Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, number).into()]
}
