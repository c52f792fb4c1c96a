//! Looks at what crosses the link between nodes: every frame, as tcpdump would see it.
use std::fmt;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

use crate::lab::Lab;
use crate::netns::NetNs;

/// What one sniffer keeps, in bytes; a test that moves more than this needs no sniffer.
const KEPT_MAX: usize = 64 << 20;
/// The kernel's buffer, in bytes: large enough for what arrives while the thread sleeps.
const KERNEL_BUFFER: usize = 32 << 20;
/// The largest frame with segmentation offload, in bytes.
const FRAME_MAX: usize = 256 << 10;
/// How long a frame may be on its way to the sniffer when it is stopped.
const LINGER: Duration = Duration::from_millis(30);
/// All protocols (`ETH_P_ALL`), in network order as packet(7) wants it.
const ALL_PROTOCOLS: u16 = 0x0003_u16.to_be();

/// A running sniffer.
pub struct Sniffer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Vec<Vec<u8>>>>>,
}

/// What was seen.
pub struct Seen {
    frames: Vec<Vec<u8>>,
}

/// The ends of a TCP segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub source: SocketAddr,
    pub destination: SocketAddr,
}

impl Sniffer {
    /// On the link between the nodes of a lab.
    pub fn on_link(lab: &Lab) -> Result<Self> {
        Self::start(lab.bridge())
    }

    /// On every interface of a namespace. Frames from now on are seen: the socket is open when this returns.
    pub fn start(ns: &NetNs) -> Result<Self> {
        let socket = ns.run(|| {
            Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(i32::from(ALL_PROTOCOLS))))
                .context("cannot open a packet socket; the lab needs root")
        })?;
        setsockopt(&socket, sockopt::RcvBufForce, &KERNEL_BUFFER)
            .context("cannot enlarge the sniffer's buffer")?;
        socket.set_read_timeout(Some(LINGER)).context("cannot set the sniffer's deadline")?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || collect(socket, &stopped));
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Ends it and gives what it saw.
    pub fn stop(mut self) -> Result<Seen> {
        self.stop.store(true, Ordering::Release);
        let thread = self.thread.take().context("a sniffer is stopped once")?;
        match thread.join() {
            Ok(frames) => Ok(Seen { frames: frames? }),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

impl Drop for Sniffer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
    }
}

fn collect(mut socket: Socket, stop: &AtomicBool) -> Result<Vec<Vec<u8>>> {
    let mut frames = Vec::new();
    let mut kept = 0;
    let mut buffer = vec![0; FRAME_MAX];
    loop {
        // Asked before the read: what was sent before `stop` is still read.
        let last = stop.load(Ordering::Acquire);
        match socket.read(&mut buffer) {
            Ok(length) => {
                kept += length;
                if kept > KEPT_MAX {
                    bail!(
                        "the sniffer saw more than {KEPT_MAX} bytes; what it would say is not to be trusted"
                    );
                }
                frames.push(buffer[..length].to_vec());
            }
            Err(error)
                if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) =>
            {
                if last {
                    return Ok(frames);
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("reading from the packet socket"),
        }
    }
}

impl Seen {
    pub fn frames(&self) -> &[Vec<u8>] {
        &self.frames
    }

    /// Whether these bytes passed in the clear. A marker has to be short enough to fit one segment.
    pub fn saw(&self, marker: &[u8]) -> bool {
        self.frames.iter().any(|frame| frame.windows(marker.len()).any(|window| window == marker))
    }

    /// The TCP segments, in order; each frame shows once per interface that it passes.
    pub fn tcp(&self) -> impl Iterator<Item = Segment> {
        self.frames.iter().filter_map(|frame| segment(frame))
    }

    /// Whether TCP went to this port: proof that the sniffer would have seen a marker.
    pub fn tcp_to(&self, port: u16) -> bool {
        self.tcp().any(|segment| segment.destination.port() == port)
    }
}

impl fmt::Debug for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut flows: Vec<String> =
            self.tcp().map(|tcp| format!("{} > {}", tcp.source, tcp.destination)).collect();
        flows.sort();
        flows.dedup();
        f.debug_struct("Seen").field("frames", &self.frames.len()).field("tcp", &flows).finish()
    }
}

/// Reads Ethernet, IPv4 or IPv6 without extension headers, and TCP's ports.
fn segment(frame: &[u8]) -> Option<Segment> {
    const TCP: u8 = 6;
    let packet = frame.get(14..)?;
    let (source, destination, rest): (IpAddr, IpAddr, &[u8]) = match frame.get(12..14)? {
        [0x08, 0x00] if *packet.get(9)? == TCP => {
            let header = usize::from(packet.first()? & 0x0f) * 4;
            let source: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
            let destination: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
            (Ipv4Addr::from(source).into(), Ipv4Addr::from(destination).into(), packet.get(header..)?)
        }
        [0x86, 0xdd] if *packet.get(6)? == TCP => {
            let source: [u8; 16] = packet.get(8..24)?.try_into().ok()?;
            let destination: [u8; 16] = packet.get(24..40)?.try_into().ok()?;
            (Ipv6Addr::from(source).into(), Ipv6Addr::from(destination).into(), packet.get(40..)?)
        }
        _ => return None,
    };
    let port = |at: usize| Some(u16::from_be_bytes(rest.get(at..at + 2)?.try_into().ok()?));
    Some(Segment {
        source: SocketAddr::new(source, port(0)?),
        destination: SocketAddr::new(destination, port(2)?),
    })
}
