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

/// A family, with the pod's address in it: the source of what the pod opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4(Option<Ipv4Addr>),
    V6(Option<Ipv6Addr>),
}

impl Family {
    /// Both families, each with the first of these addresses that belongs to it.
    ///
    /// A family without an address needs the route as well: a pod may have an address there that nobody
    /// told the mesh about (router advertisements), and what it opens from that one must not escape.
    pub fn both(addresses: &[IpAddr]) -> [Self; 2] {
        let v4 = addresses.iter().find_map(|address| match address {
            IpAddr::V4(v4) => Some(*v4),
            IpAddr::V6(_) => None,
        });
        let v6 = addresses.iter().find_map(|address| match address {
            IpAddr::V6(v6) => Some(*v6),
            IpAddr::V4(_) => None,
        });
        [Self::V4(v4), Self::V6(v6)]
    }

    fn number(self) -> AddressFamily {
        match self {
            Self::V4(_) => AddressFamily::Inet,
            Self::V6(_) => AddressFamily::Inet6,
        }
    }

    fn address(self) -> Option<IpAddr> {
        match self {
            Self::V4(address) => address.map(IpAddr::V4),
            Self::V6(address) => address.map(IpAddr::V6),
        }
    }
}

/// Sets up the rule and the route of a family, and brings the loopback device up. What is already there
/// stays; a family that the kernel or the namespace does without needs nothing.
pub fn add(family: Family) -> io::Result<()> {
    let socket = netlink::open(NETLINK_ROUTE)?;
    loopback_up(&socket)?;
    let create = NLM_F_CREATE | NLM_F_REPLACE;
    let absent: &[i32] = if family.address().is_none() { ABSENT } else { &[] };
    ignore(send(&socket, create, RouteNetlinkMessage::NewRoute(route(family))), absent)?;
    let rule = RouteNetlinkMessage::NewRule(rule(family));
    ignore(ignore(send(&socket, NLM_F_CREATE | NLM_F_EXCL, rule), &[libc::EEXIST]), absent)
}

/// Takes both away again. What is already gone is no error.
pub fn remove(family: Family) -> io::Result<()> {
    const GONE: &[i32] = &[libc::ENOENT, libc::ESRCH];
    let socket = netlink::open(NETLINK_ROUTE)?;
    ignore(ignore(send(&socket, 0, RouteNetlinkMessage::DelRule(rule(family))), GONE), ABSENT)?;
    ignore(ignore(send(&socket, 0, RouteNetlinkMessage::DelRoute(route(family))), GONE), ABSENT)
}

/// How a kernel without a family, or a namespace where it is switched off, answers.
const ABSENT: &[i32] = &[libc::EAFNOSUPPORT, libc::EOPNOTSUPP, libc::EACCES, libc::EPERM, libc::ENODEV];

fn loopback_up(socket: &Socket) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = LOOPBACK_INDEX;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    send(socket, 0, RouteNetlinkMessage::SetLink(message))
}

fn rule(family: Family) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family.number();
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
fn route(family: Family) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family.number();
    message.header.table = RouteHeader::RT_TABLE_UNSPEC;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = RouteScope::Host;
    message.header.kind = RouteType::Local;
    let any = match family {
        Family::V4(_) => RouteAddress::Inet(Ipv4Addr::UNSPECIFIED),
        Family::V6(_) => RouteAddress::Inet6(Ipv6Addr::UNSPECIFIED),
    };
    message.attributes = vec![
        RouteAttribute::Destination(any),
        RouteAttribute::Oif(LOOPBACK_INDEX),
        RouteAttribute::Table(ROUTE_TABLE),
    ];
    message.attributes.extend(family.address().map(|address| RouteAttribute::PrefSource(address.into())));
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
