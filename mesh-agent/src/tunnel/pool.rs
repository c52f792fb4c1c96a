//! The worker's tunnels, by who talks to whom.
//! Owns: which tunnel takes the next stream, single flight dialling, eviction. Never: crosses a worker.
//! Called by `proxy::outbound`.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};

use super::client::{self, Connected, OpenError, Tunnel};
use super::stream::{Live, Stream, StreamGuard};
use super::{ConnectHeaders, Failure, TunnelSettings};
use crate::identity::WorkloadCert;
use crate::model::{Identity, Limit, Reason, WorkloadId};

/// Tunnels that one open may find gone before it gives up. A peer whose agent is being replaced may take a new
/// tunnel and say goodbye at once, more than once.
const GONE_MAX: usize = 5;

/// What a tunnel is authenticated for and where it goes. Streams share a tunnel only when all of it is equal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TunnelKey {
    pub source: Identity,
    pub destination: Identity,
    /// The peer's tunnel port.
    pub address: SocketAddr,
    /// The pod whose address the tunnel comes from: NetworkPolicies see it.
    pub source_ip: IpAddr,
    /// The pods at both ends. A pod that is made again under the same name, identity and address is another one:
    /// the former's tunnel ends in a namespace that is gone.
    pub source_pod: WorkloadId,
    pub destination_pod: WorkloadId,
}

/// One TCP connection to carry.
#[derive(Clone, Debug)]
pub struct OpenRequest {
    pub key: TunnelKey,
    /// The source's certificate. A tunnel made with an earlier one, or past the end of the peer's, takes no new
    /// streams.
    pub cert: Arc<WorkloadCert>,
    /// The CONNECT authority: pod address and container port.
    pub target: SocketAddr,
    pub headers: ConnectHeaders,
}

/// How many there are of what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolStats {
    pub tunnels: usize,
    pub streams: usize,
}

/// See the module's header. Cheap to clone within its worker.
#[derive(Clone)]
pub struct Pool {
    inner: Rc<Inner>,
}

struct Inner {
    settings: TunnelSettings,
    slots: RefCell<HashMap<TunnelKey, Slot>>,
    driven: Rc<Driven>,
}

/// Tunnels that are not closed yet, whether the pool still offers them or not.
#[derive(Default)]
struct Driven {
    count: Cell<usize>,
    fewer: Notify,
}

/// One tunnel's place in that count.
struct DrivenGuard(Rc<Driven>);

impl DrivenGuard {
    fn new(driven: &Rc<Driven>) -> Self {
        driven.count.set(driven.count.get() + 1);
        Self(Rc::clone(driven))
    }
}

impl Drop for DrivenGuard {
    fn drop(&mut self) {
        self.0.count.set(self.0.count.get() - 1);
        self.0.fewer.notify_one();
    }
}

#[derive(Default)]
struct Slot {
    tunnels: Vec<Tunnel>,
    dialling: Option<watch::Receiver<Option<Result<(), Failure>>>>,
}

impl Pool {
    pub fn new(settings: TunnelSettings) -> Self {
        Self { inner: Rc::new(Inner { settings, slots: RefCell::default(), driven: Rc::default() }) }
    }

    /// Opens a stream on a tunnel that has room, or on a new one over what `dial` gives; `dial` is called again
    /// when the tunnel it gave was gone before its use, and not at all when another open dials the same peer.
    /// Returns when the peer has answered 200. Bounded by the connect timeout up to the CONNECT; the wait for the answer is the caller's to bound.
    /// Dropping the future cancels the stream, not the tunnel.
    pub async fn open<D, F>(&self, request: OpenRequest, mut dial: D) -> Result<Stream, Failure>
    where
        D: FnMut() -> F,
        F: Future<Output = io::Result<TcpStream>> + 'static,
    {
        let mut gone = 0;
        loop {
            // No tunnel that it opens could be used.
            if request.cert.expired(request.cert.clock().now()) {
                return Err(Failure::new(Reason::NoCertificate, "the workload's certificate has expired"));
            }
            let Some((sender, guard)) = self.enter(&request) else {
                self.wait_for_tunnel(&request, &mut dial).await?;
                continue;
            };
            match client::open(sender, guard, &request, &self.inner.settings.hits).await {
                Ok(stream) => return Ok(stream),
                Err(OpenError::Failed(failure)) => return Err(failure),
                Err(OpenError::TunnelGone(failure)) => {
                    self.inner.evict_closed(&request.key);
                    gone += 1;
                    if gone >= GONE_MAX {
                        return Err(failure);
                    }
                }
            }
        }
    }

    /// Closes the tunnels that are no longer wanted to new streams; live streams go on. For pods that left.
    pub fn retain(&self, keep: impl Fn(&TunnelKey) -> bool) {
        self.inner.slots.borrow_mut().retain(|key, slot| {
            let keep = keep(key);
            if !keep {
                slot.tunnels.iter().for_each(|tunnel| tunnel.live.closed.set(true));
            }
            keep
        });
    }

    /// Closes every tunnel as soon as it has sent what there is to send; gives up after `limit`. For the worker's
    /// end: what its streams were told to send may still wait in the tunnels.
    pub async fn close(&self, limit: Duration) {
        self.retain(|_| false);
        let driven = &self.inner.driven;
        let gone = async {
            while driven.count.get() > 0 {
                driven.fewer.notified().await;
            }
        };
        if tokio::time::timeout(limit, gone).await.is_err() {
            tracing::debug!(tunnels = driven.count.get(), "tunnels did not close in time");
        }
    }

    pub fn stats(&self) -> PoolStats {
        let slots = self.inner.slots.borrow();
        let tunnels = slots.values().flat_map(|slot| &slot.tunnels);
        tunnels.fold(PoolStats::default(), |sum, tunnel| PoolStats {
            tunnels: sum.tunnels + 1,
            streams: sum.streams + tunnel.live.streams.get(),
        })
    }

    /// A place on a tunnel that exists.
    fn enter(&self, request: &OpenRequest) -> Option<(h2::client::SendRequest<bytes::Bytes>, StreamGuard)> {
        let mut slots = self.inner.slots.borrow_mut();
        let slot = slots.get_mut(&request.key)?;
        // A certificate is replaced by a renewal or a new trust bundle: new streams prove themselves anew.
        slot.tunnels.retain(|tunnel| !tunnel.live.closed.get() && Arc::ptr_eq(&tunnel.cert, &request.cert));
        slot.tunnels
            .iter()
            .find_map(|tunnel| Some((tunnel.sender(), tunnel.enter(self.inner.settings.streams_ever)?)))
    }

    async fn wait_for_tunnel<D, F>(&self, request: &OpenRequest, dial: &mut D) -> Result<(), Failure>
    where
        D: FnMut() -> F,
        F: Future<Output = io::Result<TcpStream>> + 'static,
    {
        self.inner.make_room(&request.key)?;
        let mut dialling = {
            let mut slots = self.inner.slots.borrow_mut();
            let slot = slots.entry(request.key.clone()).or_default();
            match &slot.dialling {
                Some(dialling) => dialling.clone(),
                None => {
                    self.inner.count_full(slot);
                    let (done, dialling) = watch::channel(None);
                    slot.dialling = Some(dialling.clone());
                    let connect = client::connect(
                        request.key.clone(),
                        Arc::clone(&request.cert),
                        dial(),
                        self.inner.settings.connect_timeout,
                    );
                    // A task of its own: the opener may go away, those who wait with it may not suffer.
                    tokio::task::spawn_local(establish(
                        Rc::downgrade(&self.inner),
                        request.key.clone(),
                        Box::pin(connect),
                        done,
                    ));
                    dialling
                }
            }
        };
        match dialling.wait_for(Option::is_some).await {
            Ok(result) => result.clone().unwrap_or(Ok(())),
            Err(_) => Err(Failure::new(Reason::DrainDeadline, "the worker ended while it dialled")),
        }
    }
}

/// Dials, files the tunnel and drives it until it ends.
async fn establish(
    pool: Weak<Inner>,
    key: TunnelKey,
    connect: impl Future<Output = Result<Connected, Failure>>,
    done: watch::Sender<Option<Result<(), Failure>>>,
) {
    let result = connect.await;
    let Some(inner) = pool.upgrade() else { return };
    let connected = inner.file(&key, result, &done);
    let settings = inner.settings.clone();
    let _driven = DrivenGuard::new(&inner.driven);
    // The pool must be able to go while its tunnels finish.
    drop(inner);
    let Some((connection, live)) = connected else { return };
    let retire = |limit: Option<Limit>| {
        if !live.closed.replace(true)
            && let Some(limit) = limit
        {
            settings.hits.hit(limit);
        }
        if let Some(inner) = pool.upgrade() {
            inner.evict_closed(&key);
        }
    };
    client::drive(connection, Rc::clone(&live), &settings, retire).await;
    if let Some(inner) = pool.upgrade() {
        inner.evict_closed(&key);
    }
}

impl Inner {
    fn file(
        &self,
        key: &TunnelKey,
        result: Result<Connected, Failure>,
        done: &watch::Sender<Option<Result<(), Failure>>>,
    ) -> Option<(client::ClientConnection, Rc<Live>)> {
        let mut slots = self.slots.borrow_mut();
        // `retain` may have removed the slot meanwhile; whoever waits still gets the answer.
        let slot = slots.entry(key.clone()).or_default();
        slot.dialling = None;
        let (answer, filed) = match result {
            Ok(Connected { tunnel, connection }) => {
                let live = Rc::clone(&tunnel.live);
                slot.tunnels.push(tunnel);
                (Ok(()), Some((connection, live)))
            }
            Err(failure) => (Err(failure), None),
        };
        if slot.tunnels.is_empty() {
            slots.remove(key);
        }
        done.send_replace(Some(answer));
        filed
    }

    /// Counts the limit of the newest tunnel that makes another one necessary.
    fn count_full(&self, slot: &Slot) {
        if let Some(limit) = slot.tunnels.last().and_then(|tunnel| tunnel.full(self.settings.streams_ever)) {
            self.settings.hits.hit(limit);
        }
    }

    /// Sees to it that the pool has a place for another tunnel, where one is to be dialled for `key`.
    fn make_room(&self, key: &TunnelKey) -> Result<(), Failure> {
        let idlest = {
            let slots = self.slots.borrow();
            let count = |slot: &Slot| slot.tunnels.len() + usize::from(slot.dialling.is_some());
            let dialling = slots.get(key).is_some_and(|slot| slot.dialling.is_some());
            if dialling || slots.values().map(count).sum::<usize>() < self.settings.tunnels_max {
                return Ok(());
            }
            let tunnels =
                slots.iter().flat_map(|(key, slot)| slot.tunnels.iter().map(move |tunnel| (key, tunnel)));
            tunnels
                .filter(|(_, tunnel)| tunnel.live.streams.get() == 0)
                .min_by_key(|(_, tunnel)| tunnel.live.last_used.get())
                .map(|(key, tunnel)| (key.clone(), Rc::clone(&tunnel.live)))
        };
        self.settings.hits.hit(Limit::Tunnels);
        let Some((key, live)) = idlest else {
            let max = self.settings.tunnels_max;
            return Err(Failure::new(
                Reason::LimitReached,
                format!("{max} tunnels are open and in use: raise --workers"),
            ));
        };
        live.closed.set(true);
        self.evict_closed(&key);
        Ok(())
    }

    fn evict_closed(&self, key: &TunnelKey) {
        let mut slots = self.slots.borrow_mut();
        if let Some(slot) = slots.get_mut(key) {
            slot.tunnels.retain(|tunnel| !tunnel.live.closed.get());
            if slot.tunnels.is_empty() && slot.dialling.is_none() {
                slots.remove(key);
            }
        }
    }
}
