//! A client's HTTP connection and what is known of it from one request to the next. Owns: that memory, valid for one
//! version of the world. Never: answers a request. Called by `proxy::http`.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use tokio::net::TcpStream;

use super::cluster::Cluster;
use super::pool::Lease;
use super::target::{Of, Target};
use crate::model::route::HttpRule;
use crate::model::{Identity, Reason, Service, Workload};
use crate::observe::{Conn, RequestHandles};
use crate::proxy::outbound::Chosen;
use crate::proxy::worker::{LocalPod, Worker};
use crate::world::World;

/// Which end of the mesh this agent is for the connection.
pub enum Side {
    /// A pod of this node calls.
    Outbound {
        source: Arc<Workload>,
        /// What it dialled.
        original: SocketAddr,
        /// Where a rule for connections sends all its requests.
        chosen: Option<Chosen>,
    },
    /// Somebody calls a pod of this node.
    Inbound {
        /// None = plaintext.
        peer: Option<Identity>,
        destination: SocketAddr,
    },
}

/// See the module's header.
pub struct Downstream {
    pub worker: Rc<Worker>,
    pub pod: Arc<LocalPod>,
    pub conn: Rc<Conn>,
    pub client: SocketAddr,
    pub side: Side,
    /// Requests whose answers are not complete.
    pub in_flight: Rc<Cell<u32>>,
    /// Requests so far, and how many of them the client gave up before there was an answer.
    pub asked: Cell<u32>,
    pub given_up: Cell<u32>,
    /// An answer broke off: the client must not take the connection's end for the answer's.
    pub broken: Cell<bool>,
    /// The application's connection, made before the first request.
    first: RefCell<Option<TcpStream>>,
    /// The endpoint that the table shows.
    shown: Cell<*const Target>,
    switched: RefCell<Option<Lease>>,
    /// The request that goes on as stream 1 of HTTP/2.
    first_stream: RefCell<Option<bytes::Bytes>>,
    known: RefCell<Known>,
}

/// Where requests for one authority go.
#[derive(Clone)]
pub struct Place {
    pub service: Option<Arc<Service>>,
    pub port: u16,
    pub rules: Arc<[Arc<HttpRule>]>,
    /// Without a rule.
    pub cluster: Rc<Cluster>,
}

/// What has been looked up in one world. Small: a client's connection calls few hosts.
#[derive(Default)]
struct Known {
    version: u64,
    /// By authority, where it matters.
    places: Vec<(Option<Box<str>>, Place)>,
    clusters: Vec<(BackendKey, Rc<Cluster>)>,
    targets: Vec<Rc<Target>>,
    /// For requests that reach no endpoint.
    nowhere: Option<Rc<RequestHandles>>,
}

/// A route's backend, by the address of its text.
pub type BackendKey = (*const u8, Option<u16>, *const u8);

/// Entries of each list of [`Known`]; then it begins anew.
const KNOWN_MAX: usize = 128;

/// Counts a request until its answer is complete.
pub struct Busy(Rc<Cell<u32>>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

impl Downstream {
    pub fn new(
        worker: &Rc<Worker>,
        pod: &Arc<LocalPod>,
        conn: Conn,
        client: SocketAddr,
        side: Side,
    ) -> Rc<Self> {
        Rc::new(Self {
            worker: Rc::clone(worker),
            pod: Arc::clone(pod),
            conn: Rc::new(conn),
            client,
            side,
            in_flight: Rc::default(),
            asked: Cell::new(0),
            given_up: Cell::new(0),
            broken: Cell::new(false),
            first: RefCell::default(),
            shown: Cell::new(std::ptr::null()),
            switched: RefCell::default(),
            first_stream: RefCell::default(),
            known: RefCell::default(),
        })
    }

    /// Leaves a connection to the application for the first request.
    pub fn leave_first(&self, leg: TcpStream) {
        *self.first.borrow_mut() = Some(leg);
    }

    pub fn take_first(&self) -> Option<TcpStream> {
        self.first.borrow_mut().take()
    }

    /// What the client dialled.
    pub fn dialled(&self) -> SocketAddr {
        match &self.side {
            Side::Outbound { original, .. } => *original,
            Side::Inbound { destination, .. } => *destination,
        }
    }

    /// Has the table show the endpoint that now answers.
    pub fn shows(&self, target: &Rc<Target>) {
        if std::ptr::eq(self.shown.replace(Rc::as_ptr(target)), Rc::as_ptr(target)) {
            return;
        }
        if let Side::Outbound { .. } = &self.side {
            let meta = &target.meta;
            self.conn.set_destination(meta.destination.clone(), meta.path, meta.hbone_address);
        }
    }

    pub fn enter(&self) -> Busy {
        self.in_flight.set(self.in_flight.get() + 1);
        Busy(Rc::clone(&self.in_flight))
    }

    /// The connection goes on as an upstream's of another protocol.
    pub fn switch(&self, lease: Lease) {
        *self.switched.borrow_mut() = Some(lease);
    }

    pub fn take_switched(&self) -> Option<Lease> {
        self.switched.borrow_mut().take()
    }

    /// The connection goes on in HTTP/2 and begins with this request.
    pub fn leave_first_stream(&self, frame: bytes::Bytes) {
        *self.first_stream.borrow_mut() = Some(frame);
    }

    pub fn take_first_stream(&self) -> Option<bytes::Bytes> {
        self.first_stream.borrow_mut().take()
    }

    /// Forgets what another world said.
    pub fn at(&self, world: &World) {
        let mut known = self.known.borrow_mut();
        if known.version != world.version {
            *known = Known { version: world.version, nowhere: known.nowhere.take(), ..Known::default() };
        }
    }

    /// What is known under an authority (none: whatever it is).
    pub fn place(&self, authority: Option<&str>) -> Option<Place> {
        let known = self.known.borrow();
        known.places.iter().find(|(of, _)| of.as_deref() == authority).map(|(_, place)| place.clone())
    }

    pub fn learn_place(&self, authority: Option<&str>, place: &Place) {
        let mut known = self.known.borrow_mut();
        if known.places.len() >= KNOWN_MAX {
            known.places.clear();
            // Their keys are texts of the places' rules.
            known.clusters.clear();
        }
        known.places.push((authority.map(Into::into), place.clone()));
    }

    pub fn backend(&self, key: BackendKey) -> Option<Rc<Cluster>> {
        let known = self.known.borrow();
        known.clusters.iter().find(|(of, _)| *of == key).map(|(_, cluster)| Rc::clone(cluster))
    }

    pub fn learn_backend(&self, key: BackendKey, cluster: &Rc<Cluster>) {
        let mut known = self.known.borrow_mut();
        if known.clusters.len() >= KNOWN_MAX {
            known.clusters.clear();
        }
        known.clusters.push((key, Rc::clone(cluster)));
    }

    /// An endpoint of a Service as this connection reaches it.
    pub fn target(&self, world: &World, endpoint: SocketAddr, of: &Of<'_>) -> Result<Rc<Target>, Reason> {
        let same = |target: &Target| target.endpoint == endpoint && of.means(target) && !target.is_retired();
        if let Some(target) = self.known.borrow().targets.iter().find(|target| same(target)) {
            return Ok(Rc::clone(target));
        }
        let target = Target::outbound(self, world, endpoint, of)?;
        self.learn_target(&target);
        Ok(target)
    }

    /// The application of an inbound connection.
    pub fn application(&self, workload: &Arc<Workload>) -> Option<Rc<Target>> {
        if let Some(target) = self.known.borrow().targets.first() {
            return Some(Rc::clone(target));
        }
        let target = Target::inbound(self, workload)?;
        self.learn_target(&target);
        Some(target)
    }

    fn learn_target(&self, target: &Rc<Target>) {
        let mut known = self.known.borrow_mut();
        if known.targets.len() >= KNOWN_MAX {
            known.targets.clear();
        }
        known.targets.push(Rc::clone(target));
    }

    /// The one cluster of an inbound connection.
    pub fn only(&self, make: impl FnOnce() -> Rc<Cluster>) -> Rc<Cluster> {
        const ONLY: BackendKey = (std::ptr::null(), None, std::ptr::null());
        self.backend(ONLY).unwrap_or_else(|| {
            let cluster = make();
            self.learn_backend(ONLY, &cluster);
            cluster
        })
    }

    /// Counters for requests that reach no endpoint.
    pub fn nowhere(&self) -> Rc<RequestHandles> {
        let mut known = self.known.borrow_mut();
        let handles = known.nowhere.get_or_insert_with(|| {
            Rc::new(RequestHandles::new(self.worker.shared.connections.metrics(), &self.conn.meta()))
        });
        Rc::clone(handles)
    }
}
