//! The return route of a pod: what carries the mesh's mark is delivered inside the pod's own namespace,
//! whatever its destination. All functions act on the namespace the calling thread is in.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use mesh_common::{MESH_MARK, ROUTE_TABLE, RULE_PRIORITY};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::link::{LinkFlags, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, protocols::NETLINK_ROUTE};

use super::netlink;

/// The loopback device has this index in every namespace.
pub const LOOPBACK_INDEX: u32 = 1;

/// Sets up the rule and the route for one of the pod's addresses (the source of what it opens), and
/// brings the loopback device up. What is already there stays.
pub fn add(address: IpAddr) -> io::Result<()> {
    let socket = netlink::open(NETLINK_ROUTE)?;
    loopback_up(&socket)?;
    let create = NLM_F_CREATE | NLM_F_REPLACE;
    send(&socket, create, RouteNetlinkMessage::NewRoute(route(address)))?;
    let rule = RouteNetlinkMessage::NewRule(rule(address));
    ignore(send(&socket, NLM_F_CREATE | NLM_F_EXCL, rule), &[libc::EEXIST])
}

/// Takes both away again. What is already gone is no error.
pub fn remove(address: IpAddr) -> io::Result<()> {
    const GONE: &[i32] = &[libc::ENOENT, libc::ESRCH, libc::EAFNOSUPPORT];
    let socket = netlink::open(NETLINK_ROUTE)?;
    ignore(send(&socket, 0, RouteNetlinkMessage::DelRule(rule(address))), GONE)?;
    ignore(send(&socket, 0, RouteNetlinkMessage::DelRoute(route(address))), GONE)
}

fn loopback_up(socket: &Socket) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = LOOPBACK_INDEX;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    send(socket, 0, RouteNetlinkMessage::SetLink(message))
}

fn family_of(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn rule(address: IpAddr) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family_of(address);
    message.header.action = RuleAction::ToTable;
    // The header has one byte for the table; the attribute carries the whole number.
    message.header.table = RouteHeader::RT_TABLE_UNSPEC;
    message.attributes = vec![
        RuleAttribute::Priority(RULE_PRIORITY),
        RuleAttribute::FwMark(MESH_MARK),
        RuleAttribute::FwMask(u32::MAX),
        RuleAttribute::Table(ROUTE_TABLE),
    ];
    message
}

/// `local default dev lo`, with the pod's address as preferred source: without one, what the pod opens
/// would take its destination as its own address.
fn route(address: IpAddr) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family_of(address);
    message.header.table = RouteHeader::RT_TABLE_UNSPEC;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = RouteScope::Host;
    message.header.kind = RouteType::Local;
    let any = match address {
        IpAddr::V4(_) => RouteAddress::Inet(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => RouteAddress::Inet6(Ipv6Addr::UNSPECIFIED),
    };
    message.attributes = vec![
        RouteAttribute::Destination(any),
        RouteAttribute::Oif(LOOPBACK_INDEX),
        RouteAttribute::PrefSource(address.into()),
        RouteAttribute::Table(ROUTE_TABLE),
    ];
    message
}

fn send(socket: &Socket, flags: u16, message: RouteNetlinkMessage) -> io::Result<()> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
    let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    netlink::ask(socket, &bytes, |_| {})
}

fn ignore(result: io::Result<()>, codes: &[i32]) -> io::Result<()> {
    match result {
        Err(error) if error.raw_os_error().is_some_and(|code| codes.contains(&code)) => Ok(()),
        other => other,
    }
}
