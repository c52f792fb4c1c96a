//! Publishes worlds: readers load the current one without a lock, waiters are told of a new one.

use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::World;

/// Called with the new version after it can be loaded; must return at once (wake somebody, do no work).
pub type OnPublish = Box<dyn Fn(u64) + Send + Sync>;

/// The current world. A source publishes whole worlds, the resolver the addresses of names, which every later world
/// takes along; any number of readers.
pub struct WorldStore {
    current: ArcSwap<World>,
    /// Held by whoever makes the next world of the current one; readers never meet it.
    next: Mutex<()>,
    listeners: ArcSwap<Vec<Arc<OnPublish>>>,
}

impl WorldStore {
    pub fn new(world: World) -> Self {
        Self {
            current: ArcSwap::from_pointee(world),
            next: Mutex::new(()),
            listeners: ArcSwap::from_pointee(Vec::new()),
        }
    }

    /// The world as it is now. A connection or a request loads once and decides from that.
    pub fn load(&self) -> Arc<World> {
        self.current.load_full()
    }

    /// Publishes a world under the next version, which is returned.
    pub fn publish(&self, mut world: World) -> u64 {
        let turn = self.next.lock();
        let current = self.current.load();
        world.adopt(&current.resolved);
        let version = current.version.saturating_add(1);
        self.put(world, version);
        drop(turn);
        self.tell(version);
        version
    }

    /// Publishes the addresses of names; returns whether any endpoint is another now.
    pub fn resolve(&self, answers: &[(Arc<str>, Arc<[IpAddr]>)]) -> bool {
        let turn = self.next.lock();
        let mut world = World::clone(&self.current.load());
        let changed = answers.iter().fold(false, |changed, (name, all)| world.resolve(name, all) | changed);
        if !changed {
            return false;
        }
        let version = world.version.saturating_add(1);
        self.put(world, version);
        drop(turn);
        self.tell(version);
        true
    }

    fn put(&self, mut world: World, version: u64) {
        world.version = version;
        self.current.store(Arc::new(world));
    }

    fn tell(&self, version: u64) {
        for listener in self.listeners.load().iter() {
            listener(version);
        }
    }

    /// Adds a listener for the life of the store.
    pub fn on_publish(&self, listener: OnPublish) {
        let listener = Arc::new(listener);
        self.listeners.rcu(|all| {
            let mut all = Vec::clone(all);
            all.push(Arc::clone(&listener));
            all
        });
    }
}
