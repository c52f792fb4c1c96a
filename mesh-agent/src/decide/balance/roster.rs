//! The endpoints of one destination as one client uses them: divided by locality, with tables for consistent hashing,
//! made once for each list of endpoints and then only read. Owns: the choice of an endpoint by every algorithm of
//! `LoadBalance`, panic (`minHealthPercent`) and slow start (`warmup`). Never: knows by itself how endpoints stand.
//! Called by `proxy`, which keeps a roster until the list or the policy changes.

use super::hash::{Table, mix};
use super::locality::{Chosen, Groups, Health, Place, by_priority, by_share, divide};
use super::p2c::of_two;
use super::weighted::{Weights, spread};
use crate::decide::Snapshot;
use crate::model::traffic::{LoadBalance, TrafficPolicy, Warmup};
use crate::model::{Endpoint, Labels, Workload};

/// How endpoints stand at this moment, by their place in the list that the roster was made from.
pub trait Standing {
    /// Requests or connections under way.
    fn load(&self, endpoint: usize) -> u32;
    /// Ejected by outlier detection.
    fn is_ejected(&self, endpoint: usize) -> bool;
    /// Whether any is ejected at all. False makes a choice cheap.
    fn any_ejected(&self) -> bool;
    /// How long ago the endpoint came, in milliseconds; asked only where the policy has a warmup.
    fn age_ms(&self, endpoint: usize) -> u64;
}

/// What one choice depends on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Draw<'a> {
    /// 64 random bits.
    pub random: u64,
    /// Counts the choices of the destination, for round robin.
    pub turn: u64,
    /// Of the policy's hash key (`hash_key`); none where the request has no such key.
    pub hash: Option<u64>,
    /// Endpoints that this request or connection has tried.
    pub tried: &'a [usize],
    /// Whether one that was tried is better than none.
    pub again: bool,
}

/// See the module's header.
#[derive(Clone, Debug)]
pub struct Roster {
    balance: LoadBalance,
    minimum_health: u32,
    warmup: Option<Warmup>,
    groups: Vec<Group>,
    /// Of the groups, where they are shares and no priorities.
    shares: Option<Vec<u32>>,
}

#[derive(Clone, Debug)]
struct Group {
    /// Places in the list of endpoints.
    members: Vec<u32>,
    /// None where they are equal.
    weights: Option<Weights>,
    table: Option<Table>,
}

/// Further draws that slow start may take for one choice.
const WARMUP_DRAWS: u64 = 16;

impl Roster {
    /// Endpoints that are not ready are left out. Costs time and memory in proportion to them (and to the hash table).
    pub fn new<S: Snapshot + ?Sized>(
        world: &S,
        client: &Workload,
        endpoints: &[Endpoint],
        policy: &TrafficPolicy,
    ) -> Self {
        let groups = groups(world, client, endpoints, policy);
        let (shares, groups) = match groups {
            Groups::Priorities(groups) => (None, groups),
            Groups::Shares(groups) => {
                let (shares, groups) = groups.into_iter().unzip();
                (Some(shares), groups)
            }
        };
        let table = |members: &[u32]| match policy.balance {
            LoadBalance::Hash { algorithm, .. } => {
                let addresses: Vec<_> = members
                    .iter()
                    .filter_map(|index| endpoints.get(*index as usize))
                    .map(|one| (one.address, one.weight))
                    .collect();
                Some(Table::new(&addresses, algorithm))
            }
            _ => None,
        };
        let weights = |members: &[u32]| {
            let each = members.iter().filter_map(|index| endpoints.get(*index as usize));
            Weights::new(&each.map(|one| one.weight).collect::<Vec<_>>())
        };
        let group = |members: Vec<u32>| Group { table: table(&members), weights: weights(&members), members };
        Self {
            groups: groups.into_iter().map(group).collect(),
            shares,
            minimum_health: policy.outlier.as_ref().map_or(0, |outlier| outlier.min_health_percent),
            warmup: policy
                .warmup
                .clone()
                .filter(|_| matches!(policy.balance, LoadBalance::RoundRobin | LoadBalance::LeastRequest)),
            balance: policy.balance.clone(),
        }
    }

    /// Whether the endpoints are still where they were when the roster was made: a node's labels may change, or become
    /// known later than its pods. Costs nothing where locality does not count.
    pub fn is_current<S: Snapshot + ?Sized>(
        &self,
        world: &S,
        client: &Workload,
        endpoints: &[Endpoint],
        policy: &TrafficPolicy,
    ) -> bool {
        let (locality, failover) = (&policy.locality, policy.outlier.is_some() && policy.locality.enabled);
        if locality.distribute.is_empty() && !failover {
            return true;
        }
        let own = || self.groups.iter().map(|group| &group.members);
        match groups(world, client, endpoints, policy) {
            Groups::Priorities(groups) => self.shares.is_none() && own().eq(groups.iter()),
            Groups::Shares(groups) => {
                let shares = self.shares.iter().flatten();
                own().eq(groups.iter().map(|(_, members)| members))
                    && shares.eq(groups.iter().map(|(share, _)| share))
            }
        }
    }

    /// Ready endpoints that may be used.
    pub fn len(&self) -> usize {
        self.groups.iter().map(|group| group.members.len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.groups.iter().all(|group| group.members.is_empty())
    }

    /// The endpoint for one request or connection, as its place in the list; none when there is none to use.
    pub fn pick(&self, standing: &impl Standing, draw: &Draw<'_>) -> Option<usize> {
        let chosen = self.choose(standing, draw)?;
        let healthy = |panic: bool| move |member: u32| panic || !standing.is_ejected(member as usize);
        let in_group = |group: &Group, panic: bool, retried: bool| {
            let usable = healthy(panic);
            let untried = |member: u32| retried || !draw.tried.contains(&(member as usize));
            self.warm(standing, draw, |draw| {
                self.one_of(group, standing, draw, |member| usable(member) && untried(member))
            })
        };
        let group = self.groups.get(chosen.group)?;
        let found = in_group(group, chosen.panic, false).or_else(|| {
            // Everything near was tried: what is farther comes before what failed.
            let others = self.groups.iter().enumerate().filter(|(index, _)| *index != chosen.group);
            let mut others = others.filter_map(|(_, group)| in_group(group, chosen.panic, false));
            if draw.tried.is_empty() { None } else { others.next() }
        });
        let found = found.or_else(|| if draw.again { in_group(group, chosen.panic, true) } else { None });
        found.map(|member| member as usize)
    }

    /// The group for one choice.
    fn choose(&self, standing: &impl Standing, draw: &Draw<'_>) -> Option<Chosen> {
        let first = Chosen { group: 0, panic: false };
        // One key chooses one group, so that its endpoint stays the same.
        let random = mix(draw.hash.unwrap_or(draw.random) ^ 0x6c6f_6361_6c69_7479);
        let any_ejected = standing.any_ejected();
        if self.shares.is_none() && (!any_ejected || self.groups.len() == 1 && self.minimum_health == 0) {
            return Some(first);
        }
        let health = |group: &Group| {
            let ejected = |member: &&u32| any_ejected && standing.is_ejected(**member as usize);
            let all = group.members.len();
            Health { all, healthy: all - group.members.iter().filter(ejected).count() }
        };
        let health: Vec<Health> = self.groups.iter().map(health).collect();
        match &self.shares {
            None => Some(by_priority(&health, self.minimum_health, random)),
            Some(shares) => by_share(shares, &health, self.minimum_health, random),
        }
    }

    /// Slow start: an endpoint that is still warming up is passed over as often as its age asks for.
    fn warm(
        &self,
        standing: &impl Standing,
        draw: &Draw<'_>,
        pick: impl Fn(&Draw<'_>) -> Option<u32>,
    ) -> Option<u32> {
        let first = pick(draw)?;
        let Some(warmup) = &self.warmup else { return Some(first) };
        let mut found = first;
        for step in 1..=WARMUP_DRAWS {
            let random = mix(draw.random.wrapping_add(step));
            // 53 bits, as a number from 0 to 1.
            let chance = (random >> 11) as f64 / (1_u64 << 53) as f64;
            if chance < warmth(warmup, standing.age_ms(found as usize)) {
                break;
            }
            found = pick(&Draw { random: mix(random), turn: draw.turn.wrapping_add(step), ..*draw })?;
        }
        Some(found)
    }

    fn one_of(
        &self,
        group: &Group,
        standing: &impl Standing,
        draw: &Draw<'_>,
        usable: impl Fn(u32) -> bool + Copy,
    ) -> Option<u32> {
        let members = &group.members;
        if let (Some(table), Some(hash)) = (&group.table, draw.hash) {
            let usable = |place: u32| members.get(place as usize).is_some_and(|member| usable(*member));
            return table
                .get(hash, members.len(), usable)
                .and_then(|place| members.get(place as usize))
                .copied();
        }
        let everything = draw.tried.is_empty() && !standing.any_ejected();
        if let Some(weights) = &group.weights {
            let usable = |place: usize| members.get(place).is_some_and(|member| usable(*member));
            let usable: Option<&dyn Fn(usize) -> bool> = if everything { None } else { Some(&usable) };
            let load = |place: usize| {
                members.get(place).map_or(0, |member| u64::from(standing.load(*member as usize)))
            };
            let place = self.by_weight(weights, draw, usable, load)?;
            return members.get(place).copied();
        }
        let count =
            if everything { members.len() } else { members.iter().filter(|one| usable(**one)).count() };
        let nth = |nth: u64| {
            let nth = usize::try_from(nth).ok()?;
            if everything { members.get(nth) } else { members.iter().filter(|one| usable(**one)).nth(nth) }
                .copied()
        };
        let count = count as u64;
        match self.balance {
            LoadBalance::RoundRobin => nth(draw.turn.checked_rem(count)?),
            LoadBalance::LeastRequest => {
                of_two(count, draw.random, nth, |member: u32| standing.load(member as usize))
            }
            LoadBalance::Random | LoadBalance::Passthrough | LoadBalance::Hash { .. } => {
                nth(draw.random.checked_rem(count)?)
            }
        }
    }
}

impl Roster {
    /// As [`Self::one_of`], where endpoints have shares of their own.
    fn by_weight(
        &self,
        weights: &Weights,
        draw: &Draw<'_>,
        usable: Option<&dyn Fn(usize) -> bool>,
        load: impl Fn(usize) -> u64,
    ) -> Option<usize> {
        let total = weights.total(usable);
        match self.balance {
            LoadBalance::RoundRobin => weights.at(spread(draw.turn, total)?, usable),
            LoadBalance::LeastRequest => {
                // Of two drawn by weight, the one with less to do for its weight; while both are idle, the first.
                let first = weights.at(draw.random.checked_rem(total)?, usable)?;
                let second = weights.at(mix(draw.random).checked_rem(total)?, usable)?;
                let (of_first, of_second) = (
                    load(first).saturating_mul(weights.of(second).into()),
                    load(second).saturating_mul(weights.of(first).into()),
                );
                Some(if of_second < of_first { second } else { first })
            }
            LoadBalance::Random | LoadBalance::Passthrough | LoadBalance::Hash { .. } => {
                weights.at(draw.random.checked_rem(total)?, usable)
            }
        }
    }
}

fn groups<S: Snapshot + ?Sized>(
    world: &S,
    client: &Workload,
    endpoints: &[Endpoint],
    policy: &TrafficPolicy,
) -> Groups {
    let none = Labels::new();
    let ready = (0_u32..).zip(endpoints).filter(|(_, endpoint)| endpoint.ready).map(|(index, endpoint)| {
        let workload = endpoint.workload.as_ref().and_then(|id| world.workload(id));
        let labels = workload.map_or(&none, |workload| &*workload.labels);
        let locality = locality(world, workload.map(AsRef::as_ref), &endpoint.node);
        (index, Place { locality, node: &endpoint.node, labels })
    });
    let own = Place {
        locality: locality(world, Some(client), &client.node),
        node: &client.node,
        labels: &client.labels,
    };
    divide(&policy.locality, policy.outlier.is_some(), &own, ready)
}

/// What a workload says of itself comes before what its node says (Istio's `istio-locality`).
fn locality<'a, S: Snapshot + ?Sized>(world: &'a S, workload: Option<&'a Workload>, node: &str) -> &'a str {
    let own = workload.map(|workload| &*workload.locality).filter(|own| !own.is_empty());
    own.unwrap_or_else(|| world.locality(node))
}

/// The share of its load that an endpoint of this age gets (Envoy's slow start, of which this is the formula).
pub fn warmth(warmup: &Warmup, age_ms: u64) -> f64 {
    let window = warmup.duration.as_millis();
    if u128::from(age_ms) >= window {
        return 1.0;
    }
    let time = age_ms.max(1) as f64 / window as f64;
    let aggression = if warmup.aggression > 0.0 { warmup.aggression } else { 1.0 };
    time.powf(1.0 / aggression).max(f64::from(warmup.minimum_percent) / 100.0).min(1.0)
}

#[cfg(test)]
mod tests;
