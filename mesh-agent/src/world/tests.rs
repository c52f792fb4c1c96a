use std::net::SocketAddr;

use super::fixture::{SHOP, pod, put, world};
use crate::compile::fixture::{authz, compile, peer};
use crate::decide::inbound::{ConnFacts, Verdict, judge};
use crate::model::{Identity, Reason};

use super::*;

mod authorization;
mod change;
mod connections;
mod entries;
mod findings;
mod gateway;
mod hosts;
mod peer_authentication;
mod requests;
mod routing;
mod traffic;

/// `reviews:8080` from the pod `client` of shop (None = plaintext from 10.1.0.1).
fn from(world: &World, client: Option<&str>, port: u16) -> Verdict {
    let peer = client.map(|name| Identity::new("cluster.local", "shop", name).unwrap());
    let dst = pod(world, "reviews");
    let destination = SocketAddr::new(dst.addresses[0], port);
    judge(world, dst, &ConnFacts { peer: peer.as_ref(), source_ip: [10, 1, 0, 1].into(), destination })
}
