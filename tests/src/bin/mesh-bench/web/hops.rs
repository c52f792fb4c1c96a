//! The other proxies, each in the client's pod as a sidecar would be: one worker, no log, connections kept on both sides.
//! Owns: their configurations and processes.
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use mesh_tests::{Lab, Pod, Process, eventually};

use super::stage::Way;
use crate::envoy::{self, EnvoyPair, Reads, Relayed};
use crate::stage::{DEADLINE, HTTP_PORT, Pair, preamble, run_nginx};

const HAPROXY: &str = "/usr/sbin/haproxy";
/// Connections that each keeps to its upstream.
const KEPT: usize = 64;
const PAIR: Relayed =
    Relayed { name: "requests", reads: Reads::Requests, entry: 18080, tunnel: 28080, application: HTTP_PORT };

/// Ports on the client's loopback: to the server on the same node, and to the one across.
#[derive(Clone, Copy)]
struct Entries {
    near: u16,
    far: u16,
}

const NGINX: Entries = Entries { near: 18001, far: 18002 };
const HAPROXY_ENTRIES: Entries = Entries { near: 18011, far: 18012 };
const ENVOY: Entries = Entries { near: 18021, far: 18022 };

impl Entries {
    fn to(self, near: &Pod, far: &Pod) -> [(u16, SocketAddr); 2] {
        [(self.near, near.v4(HTTP_PORT)), (self.far, far.v4(HTTP_PORT))]
    }

    fn of(self, pair: Pair) -> u16 {
        if pair == Pair::SameNode { self.near } else { self.far }
    }
}

#[derive(Default)]
pub(super) struct Hops {
    nginx: Option<Process>,
    haproxy: Option<Process>,
    envoy: Option<Process>,
    pair: Option<EnvoyPair>,
}

impl Hops {
    /// Those of the wanted that are installed.
    pub(super) fn start(lab: &Lab, ways: &[Way], client: &Pod, near: &Pod, far: &Pod) -> Result<Self> {
        let wants = |way| ways.contains(&way);
        let mut hops = Self::default();
        if wants(Way::Nginx) {
            hops.nginx = Some(nginx(lab, client, &NGINX.to(near, far))?);
        }
        if wants(Way::Haproxy) && Path::new(HAPROXY).exists() {
            hops.haproxy = Some(haproxy(lab, client, &HAPROXY_ENTRIES.to(near, far))?);
        }
        let Ok(program) = envoy::program() else { return Ok(hops) };
        if wants(Way::Envoy) {
            hops.envoy = Some(envoy::hop(lab, &program, client, &ENVOY.to(near, far))?);
        }
        if wants(Way::EnvoyPair) {
            hops.pair = Some(EnvoyPair::start(lab, &program, client, far, &[PAIR])?);
        }
        Ok(hops)
    }

    /// The port on the client's loopback that leads this way; none if there is no such way.
    pub(super) fn entry(&self, pair: Pair, way: Way) -> Option<u16> {
        match way {
            Way::Nginx => self.nginx.as_ref().map(|_| NGINX.of(pair)),
            Way::Haproxy => self.haproxy.as_ref().map(|_| HAPROXY_ENTRIES.of(pair)),
            Way::Envoy => self.envoy.as_ref().map(|_| ENVOY.of(pair)),
            Way::EnvoyPair if pair == Pair::AcrossNodes => self.pair.as_ref().map(|_| PAIR.entry),
            _ => None,
        }
    }

    pub(super) fn pids(&self, way: Way) -> Vec<i32> {
        let pid = |process: &Option<Process>| process.iter().map(Process::pid).collect();
        match way {
            Way::Nginx => pid(&self.nginx),
            Way::Haproxy => pid(&self.haproxy),
            Way::Envoy => pid(&self.envoy),
            Way::EnvoyPair => self.pair.iter().flat_map(EnvoyPair::pids).collect(),
            _ => Vec::new(),
        }
    }
}

fn nginx(lab: &Lab, pod: &Pod, ways: &[(u16, SocketAddr)]) -> Result<Process> {
    const NAME: &str = "nginx-hop";
    let mut config = preamble(&lab.dir().join(NAME).display().to_string());
    for (entry, to) in ways {
        config.push_str(&format!(
            "upstream u{entry} {{ server {to}; keepalive {KEPT}; keepalive_requests 1000000000; }}\n\
             server {{ listen 127.0.0.1:{entry} backlog=4096; location / {{ proxy_pass http://u{entry};\n\
             proxy_http_version 1.1; proxy_set_header Connection \"\"; }} }}\n"
        ));
    }
    config.push_str("}\n");
    run_nginx(lab, pod, NAME, &config, ways[0].0)
}

fn haproxy(lab: &Lab, pod: &Pod, ways: &[(u16, SocketAddr)]) -> Result<Process> {
    let mut config = String::from(
        "global\n  nbthread 1\n  maxconn 4096\ndefaults\n  mode http\n  option http-keep-alive\n  http-reuse safe\n  \
         timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n",
    );
    for (entry, to) in ways {
        config.push_str(&format!(
            "frontend f{entry}\n  bind 127.0.0.1:{entry}\n  default_backend b{entry}\nbackend b{entry}\n  server s {to}\n"
        ));
    }
    let file = lab.dir().join("haproxy.cfg");
    fs::write(&file, config).context("cannot write haproxy's configuration")?;
    let mut command = Command::new(HAPROXY);
    command.arg("-db").arg("-q").arg("-f").arg(&file);
    let process = lab.spawn(pod.netns(), "haproxy-hop", command)?;
    eventually("haproxy to listen", DEADLINE, || {
        pod.run(|| Ok(ways.iter().all(|(entry, _)| TcpStream::connect(("127.0.0.1", *entry)).is_ok())))
    })?;
    Ok(process)
}
