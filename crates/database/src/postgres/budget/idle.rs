//! Idle connections: kept by class, reused, and evicted to make room.

use std::{collections::BTreeMap, hash::Hash, time::Instant};

use super::{
    Budget, Task,
    database::{CLASSES, Class, Held, Idle},
};

/// Idle connections of all databases by class, the least recently used first.
pub(super) type ByClass<K> = [BTreeMap<u64, K>; CLASSES.len()];

impl<K: Hash + Eq + Clone, S> Budget<K, S> {
    /// Takes the connection of the database that was used last.
    pub(super) fn take_idle(&mut self, key: &K, now: Instant) -> Option<Held<S>> {
        let Idle { held, class, returned, .. } = self.databases.get_mut(key)?.idle.pop()?;
        self.idle[class as usize].remove(&returned);
        Some(Held { reused: true, busy_since: now, ..held })
    }

    /// Keeps a connection that has no more work.
    pub(super) fn keep_idle(&mut self, key: &K, held: Held<S>, now: Instant) {
        self.returns += 1;
        let returned = self.returns;
        let database = self.databases.entry(key.clone()).or_default();
        let class = if database.connections > 1 { Class::Further } else { Class::of_only_one(&held) };
        database.idle.push(Idle { held, class, returned, since: now });
        self.idle[class as usize].insert(returned, key.clone());
        // Those used often leave some of the budget to others, which may become such.
        if self.idle[Class::Often as usize].len() > self.limits.total * 4 / 5
            && let Some((&returned, key)) = self.idle[Class::Often as usize].first_key_value()
        {
            let key = key.clone();
            self.reclassify(&key, returned, Class::Often, Class::Once);
        }
    }

    /// Makes room for one more connection, which counts from now on. Returns the idle connection to be closed for it, if any;
    /// nothing when all are in use or may not be evicted.
    pub(super) fn make_room(&mut self, may_evict: impl Fn(&Idle<S>) -> bool) -> Option<Option<S>> {
        if self.open < self.limits.total {
            self.open += 1;
            return Some(None);
        }
        for class in CLASSES {
            while let Some((&returned, key)) = self.idle[class as usize].first_key_value() {
                let key = key.clone();
                let database = self.databases.get_mut(&key)?;
                let position = database.idle.iter().position(|idle| idle.returned == returned)?;
                if class == Class::Further && database.connections == 1 {
                    // It has become its database's only one since it was classified.
                    let class = Class::of_only_one(&database.idle[position].held);
                    self.reclassify(&key, returned, Class::Further, class);
                    continue;
                }
                if !may_evict(&database.idle[position]) {
                    break;
                }
                let idle = database.idle.remove(position);
                self.idle[class as usize].remove(&returned);
                self.evictions += 1;
                self.disconnect(&key);
                return Some(Some(idle.held.session));
            }
        }
        None
    }

    /// Closes the chosen idle connections.
    pub(super) fn close_idle(&mut self, which: impl Fn(&K, &Idle<S>) -> bool, tasks: &mut Vec<Task<K, S>>) {
        let keys: Vec<K> = self.databases.iter().filter(|(_, database)| !database.idle.is_empty()).map(|(key, _)| key.clone()).collect();
        for key in keys {
            let Some(database) = self.databases.get_mut(&key) else { continue };
            for idle in database.idle.extract_if(.., |idle| which(&key, idle)).collect::<Vec<_>>() {
                self.idle[idle.class as usize].remove(&idle.returned);
                tasks.push(Task::Close(idle.held.session));
                self.disconnect(&key);
            }
        }
    }

    fn reclassify(&mut self, key: &K, returned: u64, from: Class, to: Class) {
        let idle = self.databases.get_mut(key).and_then(|database| database.idle.iter_mut().find(|idle| idle.returned == returned));
        if let Some(idle) = idle {
            idle.class = to;
            self.idle[to as usize].insert(returned, key.clone());
        }
        self.idle[from as usize].remove(&returned);
    }
}
