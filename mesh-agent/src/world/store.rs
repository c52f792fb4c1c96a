//! Publishes worlds: readers load the current one without a lock, waiters are told of a new one.

use std::sync::Arc;

use arc_swap::ArcSwap;

use super::World;

/// Called with the new version after it can be loaded; must return at once (wake somebody, do no work).
pub type OnPublish = Box<dyn Fn(u64) + Send + Sync>;

/// The current world. One publisher at a time; any number of readers.
pub struct WorldStore {
    current: ArcSwap<World>,
    listeners: ArcSwap<Vec<Arc<OnPublish>>>,
}

impl WorldStore {
    pub fn new(world: World) -> Self {
        Self { current: ArcSwap::from_pointee(world), listeners: ArcSwap::from_pointee(Vec::new()) }
    }

    /// The world as it is now. A connection or a request loads once and decides from that.
    pub fn load(&self) -> Arc<World> {
        self.current.load_full()
    }

    /// Publishes a world under the next version, which is returned.
    pub fn publish(&self, mut world: World) -> u64 {
        let version = self.current.load().version.saturating_add(1);
        world.version = version;
        self.current.store(Arc::new(world));
        for listener in self.listeners.load().iter() {
            listener(version);
        }
        version
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
