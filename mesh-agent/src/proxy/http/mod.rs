//! HTTP on the data path: hyper at both ends, one function between that reads as the order of the phases
//! (`pipeline::respond`).
//! Owns: what a request goes through, connections to upstreams and their reuse, upgrades, limits.
//! Never: decides (that is `decide`), opens a listener. Called by `proxy::{outbound, inbound}`.
//!
//! Everything here runs on one data-plane worker. A client's connection is a [`downstream::Downstream`]; what it calls is
//! a [`cluster::Cluster`] of endpoints, each reached as a [`target::Target`].

pub mod answer;
mod application;
pub mod attempt;
pub mod body;
pub mod checks;
pub mod client;
pub mod cluster;
pub mod destination;
pub mod downstream;
pub mod exchange;
pub mod forward;
pub mod h2c;
pub mod headers;
pub mod io;
pub mod mirror;
pub mod pipeline;
pub mod pool;
pub mod record;
mod said;
pub mod server;
pub mod sniff;
pub mod target;
pub mod upgrade;

use std::cell::RefCell;
use std::collections::HashMap;

use crate::model::Hits;
use crate::proxy::originate::Originator;

/// One worker's own HTTP state.
pub struct Http {
    pub pool: pool::HttpPool,
    clusters: RefCell<HashMap<cluster::Key, std::rc::Rc<cluster::Cluster>>>,
    loads: cluster::Loads,
    mirrors: std::cell::Cell<usize>,
    /// The changes of files behind TLS of the agent's own that the pool has followed.
    tls_changes: std::cell::Cell<u64>,
}

impl Http {
    pub fn new(hits: Hits) -> Self {
        Self {
            pool: pool::HttpPool::new(pool::KeepMax::default(), hits),
            clusters: RefCell::default(),
            loads: cluster::Loads::default(),
            mirrors: std::cell::Cell::new(0),
            tls_changes: std::cell::Cell::new(0),
        }
    }

    /// Takes connections out of use that were made with files that have changed since.
    pub async fn follow_files(&self, originator: &Originator) {
        originator.look().await;
        let changes = originator.changes();
        if self.tls_changes.replace(changes) != changes {
            self.pool.retain(|key| key.tls.is_none());
        }
    }

    /// Lets go of what nobody has used for long.
    pub fn sweep(&self) {
        self.pool.sweep(server::IDLE_TIMEOUT);
        self.sweep_clusters();
        self.loads.sweep();
    }
}
