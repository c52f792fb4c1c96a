//! What the kernel programs report, as a stream.

use std::net::SocketAddr;
use std::time::Duration;

use aya::maps::{Map, MapData, RingBuf};
use mesh_common::{EventKind, payload_bytes};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::error::CaptureError;
use super::handle::CaptureHandle;
use super::maps::{EVENTS, pin_path};

/// How often the ring is looked at for events that did not wake the agent.
const LOOK_EVERY: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Event {
    /// A bypassed flow ended.
    FlowClosed(ClosedFlow),
    /// A port of the pod with this cookie has its first listener, or lost its last.
    Listening { cookie: u64, port: u16, up: bool },
}

/// A bypassed flow's figures, as its opener's TCP counted them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClosedFlow {
    /// Cookie of the opener's network namespace.
    pub opener: u64,
    pub local: SocketAddr,
    pub remote: SocketAddr,
    pub sent: u64,
    pub received: u64,
    pub duration: Duration,
    pub round_trip: Duration,
    pub retransmits: u32,
}

/// The reader of the event ring. What is not read in time is lost and counted (`events_lost`).
pub struct Events {
    ring: AsyncFd<RingBuf<MapData>>,
    handle: CaptureHandle,
}

impl Events {
    pub(super) fn open(handle: CaptureHandle) -> Result<Self, CaptureError> {
        let path = pin_path(&handle.shared().dir, EVENTS);
        let failed = |source| CaptureError::Map { map: EVENTS, path: path.clone(), source };
        let map = |error: aya::maps::MapError| failed(std::io::Error::other(error));
        let data = MapData::from_pin(&path).map_err(map)?;
        let ring = RingBuf::try_from(Map::RingBuf(data)).map_err(map)?;
        // SAFETY: the ring owns its descriptor and never exchanges it; it is dropped with the registration.
        let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) };
        let ring = ring.map_err(|error| failed(error.into()))?;
        Ok(Self { ring, handle })
    }

    /// The next event. Cancel safe. A port that lost its last listener has been cleared from the tables
    /// when its event arrives.
    pub async fn next(&mut self) -> std::io::Result<Event> {
        loop {
            if let Some(event) = self.take() {
                return Ok(event);
            }
            // Ended flows wake nobody: they are looked for. Readiness is cleared before the ring is looked at
            // again, so no wake-up falls between.
            if let Ok(ready) = tokio::time::timeout(LOOK_EVERY, self.ring.readable_mut()).await {
                ready?.clear_ready();
            }
        }
    }

    /// The next event if there is one now.
    pub fn take(&mut self) -> Option<Event> {
        loop {
            let event = parse(&self.ring.get_mut().next()?);
            if let Some(event) = event.and_then(|event| self.translate(&event)) {
                return Some(event);
            }
        }
    }

    fn translate(&self, event: &mesh_common::Event) -> Option<Event> {
        match event.kind {
            EventKind::FLOW_CLOSED => Some(Event::FlowClosed(closed(event))),
            EventKind::LISTEN_UP => Some(listening(event, true)),
            EventKind::LISTEN_DOWN => {
                if let Err(error) = self.handle.refresh_listening(event.netns_cookie) {
                    tracing::warn!(%error, "cannot compare the listening ports of a pod");
                }
                Some(listening(event, false))
            }
            _ => None,
        }
    }
}

fn parse(bytes: &[u8]) -> Option<mesh_common::Event> {
    if bytes.len() < size_of::<mesh_common::Event>() {
        return None;
    }
    // SAFETY: long enough; any bytes are a value (Pod); the read asks for no alignment.
    Some(unsafe { bytes.as_ptr().cast::<mesh_common::Event>().read_unaligned() })
}

fn closed(event: &mesh_common::Event) -> ClosedFlow {
    let (sent, received) = payload_bytes(event.bytes_acked, event.bytes_received, event.old_state);
    ClosedFlow {
        opener: event.netns_cookie,
        local: SocketAddr::new(event.key.local.to_ip(), event.key.local_port),
        remote: SocketAddr::new(event.key.remote.to_ip(), event.key.remote_port),
        sent,
        received,
        duration: Duration::from_nanos(event.closed_ns.saturating_sub(event.opened_ns)),
        round_trip: Duration::from_micros(event.srtt_us.into()),
        retransmits: event.retransmits,
    }
}

fn listening(event: &mesh_common::Event, up: bool) -> Event {
    Event::Listening { cookie: event.netns_cookie, port: event.key.local_port, up }
}
