//! A bounded queue that is fair between networks and, within a network, between accounts.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
};

/// Where a password comes from. Requests of one network take turns with those of others, and requests for one account with those for
/// other accounts of the same network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Source {
    /// The client's network: the first 24 bits of an IPv4 address or 64 of an IPv6 address, which one client often has as a whole.
    network: Ipv6Addr,
    /// Stands for the account.
    account: u64,
}

impl Source {
    /// A client that asks for an account.
    #[must_use]
    pub(crate) fn new(client: IpAddr, account: u64) -> Self {
        let (address, prefix) = match client.to_canonical() {
            IpAddr::V4(address) => (address.to_ipv6_mapped(), 96 + 24),
            IpAddr::V6(address) => (address, 64),
        };
        Self { network: Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << (128 - prefix))), account }
    }

    /// The operator at the command line.
    #[must_use]
    pub(crate) const fn operator() -> Self {
        Self { network: Ipv6Addr::LOCALHOST, account: 0 }
    }
}

/// Waiting items. Small enough that every operation may look at all of them.
pub(super) struct FairQueue<T> {
    limit: usize,
    items: Vec<(Source, T)>,
    /// When networks, and accounts of networks, last had a turn. Only of those that have waiting items or had one of the last turns.
    networks: HashMap<Ipv6Addr, u64>,
    accounts: HashMap<Source, u64>,
    turns: u64,
}

impl<T> FairQueue<T> {
    /// A queue for at most `limit` items.
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, items: Vec::new(), networks: HashMap::new(), accounts: HashMap::new(), turns: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Adds an item. A full queue returns the one that has to give way: the newest item of the account with most items in the network
    /// with most items, which may be the one that was to be added.
    pub(super) fn push(&mut self, source: Source, item: T) -> Option<T> {
        self.items.push((source, item));
        if self.items.len() <= self.limit {
            return None;
        }
        let network = self.busiest(|source| source.network, |_| true);
        let account = self.busiest(|source| *source, |source| Some(source.network) == network);
        let newest = self.items.iter().rposition(|(source, _)| Some(*source) == account)?;
        Some(self.items.remove(newest).1)
    }

    /// The group with most items among those that `includes`; of several, the one whose newest item came last.
    fn busiest<G: Copy + Eq + std::hash::Hash>(&self, group: impl Fn(&Source) -> G, includes: impl Fn(&Source) -> bool) -> Option<G> {
        let mut counts: HashMap<G, (usize, usize)> = HashMap::new();
        for (position, (source, _)) in self.items.iter().enumerate().filter(|(_, (source, _))| includes(source)) {
            let count = counts.entry(group(source)).or_default();
            *count = (count.0 + 1, position);
        }
        counts.into_iter().max_by_key(|(_, count)| *count).map(|(group, _)| group)
    }

    /// Takes the next item: of the network, and there of the account, whose last turn is longest ago; the oldest of those.
    pub(super) fn pop(&mut self) -> Option<T> {
        let last_turn = |(source, _): &(Source, T)| {
            (self.networks.get(&source.network).copied().unwrap_or(0), self.accounts.get(source).copied().unwrap_or(0))
        };
        let (next, _) = self.items.iter().enumerate().min_by_key(|(_, item)| last_turn(item))?;
        let (source, item) = self.items.remove(next);
        self.turns += 1;
        self.networks.insert(source.network, self.turns);
        self.accounts.insert(source, self.turns);
        self.forget_old_turns();
        Some(item)
    }

    /// Bounds what is remembered. Who had no turn for as many turns as the queue has places counts as new.
    fn forget_old_turns(&mut self) {
        if self.accounts.len() > 2 * self.limit {
            let oldest = self.turns.saturating_sub(self.limit as u64);
            self.networks.retain(|_, turn| *turn > oldest);
            self.accounts.retain(|_, turn| *turn > oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(address: &str, account: u64) -> Source {
        Source::new(address.parse().unwrap(), account)
    }

    fn drain<T>(queue: &mut FairQueue<T>) -> Vec<T> {
        std::iter::from_fn(|| queue.pop()).collect()
    }

    #[test]
    fn a_client_has_the_network_of_its_address() {
        assert_eq!(source("192.0.2.1", 1), source("192.0.2.255", 1));
        assert_eq!(source("192.0.2.1", 1), source("::ffff:192.0.2.7", 1));
        assert_eq!(source("2001:db8::1", 1), source("2001:db8::ffff:1", 1));
        for (one, other) in [("192.0.2.1", "192.0.3.1"), ("2001:db8::1", "2001:db8:0:1::1"), ("192.0.2.1", "2001:db8::1")] {
            assert_ne!(source(one, 1), source(other, 1));
        }
    }

    #[test]
    fn networks_take_turns_and_so_do_their_accounts() {
        let mut queue = FairQueue::new(100);
        for n in 0..4 {
            assert_eq!(queue.push(source("192.0.2.1", 1), format!("attack {n}")), None);
        }
        for (address, account, item) in
            [("192.0.2.9", 2, "neighbour"), ("198.51.100.1", 3, "elsewhere"), ("198.51.100.1", 3, "elsewhere again")]
        {
            assert_eq!(queue.push(source(address, account), item.to_owned()), None);
        }
        let order = ["attack 0", "elsewhere", "neighbour", "elsewhere again", "attack 1", "attack 2", "attack 3"];
        assert_eq!(drain(&mut queue), order);
    }

    #[test]
    fn a_full_queue_turns_away_those_who_fill_it() {
        let mut queue = FairQueue::new(4);
        for n in 0..4 {
            assert_eq!(queue.push(source("192.0.2.1", n % 2), n), None);
        }
        // The network that fills the queue gives way, and there the newest item of the account with most.
        assert_eq!(queue.push(source("192.0.2.1", 0), 10), Some(10));
        assert_eq!(queue.push(source("198.51.100.1", 5), 11), Some(3));
        assert_eq!(queue.push(source("192.0.2.1", 7), 12), Some(2));
        let mut left = drain(&mut queue);
        left.sort_unstable();
        assert_eq!(left, [0, 1, 11, 12]);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut queue = FairQueue::new(8);
        for n in 0..10_000 {
            let address = IpAddr::from(std::net::Ipv4Addr::from_bits(n << 8));
            queue.push(Source::new(address, u64::from(n)), n);
            queue.pop();
        }
        assert!(queue.accounts.len() <= 17 && queue.networks.len() <= 17);
    }
}
