//! Near before far: which endpoints of a destination are used first, or in which shares (reference section 4.4; Istio's
//! `localityLbSetting`). Owns: the groups, and how much of the load each gets while some of its endpoints are ejected
//! (Envoy's priorities: a group keeps all its load until fewer than 5 of 7 of its endpoints are left).
//! Never: picks inside a group. Called by `roster`.

use std::sync::Arc;

use crate::model::Labels;
use crate::model::traffic::Locality;

/// Envoy's overprovisioning factor, in percent.
const OVERPROVISION: u64 = 140;

/// Labels that say where a workload is; its locality and node answer for them.
const REGION: &str = "topology.kubernetes.io/region";
const ZONE: &str = "topology.kubernetes.io/zone";
const SUBZONE: &str = "topology.istio.io/subzone";
const HOSTNAME: &str = "kubernetes.io/hostname";

/// Where a client or an endpoint is.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// `region/zone/subzone`, as far as it is known.
    pub locality: &'a str,
    pub node: &'a str,
    pub labels: &'a Labels,
}

impl<'a> Place<'a> {
    fn parts(&self) -> [&'a str; 3] {
        parts(self.locality)
    }

    fn label(&self, key: &str) -> &'a str {
        let [region, zone, subzone] = self.parts();
        match key {
            REGION => region,
            ZONE => zone,
            SUBZONE => subzone,
            HOSTNAME => self.node,
            key => self.labels.get(key).map_or("", String::as_str),
        }
    }
}

fn parts(locality: &str) -> [&str; 3] {
    let mut parts = locality.splitn(3, '/');
    std::array::from_fn(|_| parts.next().unwrap_or_default())
}

/// How a destination's endpoints are divided. Numbers are places in the list of endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Groups {
    /// The first is used while it is healthy enough. Never empty.
    Priorities(Vec<Vec<u32>>),
    /// (share, endpoints); shares are relative to each other.
    Shares(Vec<(u32, Vec<u32>)>),
}

/// Divides endpoints as the client's settings say. Failover needs outlier detection: without it nothing is ever found to
/// have failed, and a far endpoint would never be used.
pub fn divide<'a>(
    settings: &Locality,
    outlier: bool,
    client: &Place<'_>,
    endpoints: impl Iterator<Item = (u32, Place<'a>)>,
) -> Groups {
    let shares = settings.distribute.iter().find(|(from, _)| covers(from, client.locality));
    if !settings.distribute.is_empty() {
        return match shares {
            Some((_, to)) => distribute(to, endpoints),
            None => Groups::Priorities(vec![endpoints.map(|(index, _)| index).collect()]),
        };
    }
    let by_label = !settings.priority.is_empty();
    if !settings.enabled || !outlier || (!by_label && client.locality.is_empty()) {
        return Groups::Priorities(vec![endpoints.map(|(index, _)| index).collect()]);
    }
    let rank = |place: &Place<'_>| {
        if by_label {
            label_rank(&settings.priority, client, place)
        } else {
            rank(&settings.failover, client, place)
        }
    };
    let mut ranked: Vec<(usize, u32)> = endpoints.map(|(index, place)| (rank(&place), index)).collect();
    // Stable, and ranks that nobody has are left out.
    ranked.sort_by_key(|(rank, _)| *rank);
    let groups = ranked.chunk_by(|one, other| one.0 == other.0);
    let groups: Vec<Vec<u32>> = groups.map(|group| group.iter().map(|(_, index)| *index).collect()).collect();
    Groups::Priorities(if groups.is_empty() { vec![Vec::new()] } else { groups })
}

/// Same subzone, same zone, same region, the region that takes over, the rest.
fn rank(failover: &[(Arc<str>, Arc<str>)], client: &Place<'_>, place: &Place<'_>) -> usize {
    let (own, other) = (client.parts(), place.parts());
    let same = own.iter().zip(&other).take_while(|(own, other)| own == other).count();
    if same > 0 {
        return 3 - same;
    }
    let ours = failover.iter().find(|(from, _)| **from == *own[0]);
    match ours {
        Some((_, to)) if **to != *other[0] => 4,
        _ => 3,
    }
}

/// The more of the labels are equal, from the first on, the better.
fn label_rank(priority: &[(Arc<str>, Option<Arc<str>>)], client: &Place<'_>, place: &Place<'_>) -> usize {
    let equal = priority
        .iter()
        .take_while(|(key, value)| value.as_deref().unwrap_or_else(|| client.label(key)) == place.label(key))
        .count();
    priority.len() - equal
}

/// An endpoint belongs to the first entry that covers its locality; one that none covers is not used.
fn distribute<'a>(to: &[(Arc<str>, u32)], endpoints: impl Iterator<Item = (u32, Place<'a>)>) -> Groups {
    let mut shares: Vec<(u32, Vec<u32>)> = to.iter().map(|(_, share)| (*share, Vec::new())).collect();
    for (index, place) in endpoints {
        let entry = to.iter().position(|(pattern, _)| covers(pattern, place.locality));
        if let Some((_, members)) = entry.and_then(|entry| shares.get_mut(entry)) {
            members.push(index);
        }
    }
    shares.retain(|(share, members)| *share > 0 && !members.is_empty());
    Groups::Shares(shares)
}

/// `region/zone/*`, `region/*`, `*`, or a locality from its beginning.
fn covers(pattern: &str, locality: &str) -> bool {
    let mut own = locality.split('/');
    for part in pattern.split('/') {
        match (part, own.next()) {
            ("*", _) => return true,
            (part, Some(own)) if part == own => {}
            _ => return false,
        }
    }
    true
}

/// How many endpoints a group has, and how many of them are not ejected.
#[derive(Clone, Copy, Debug)]
pub struct Health {
    pub all: usize,
    pub healthy: usize,
}

impl Health {
    /// Percent of its load that the group can take.
    fn capacity(self) -> u64 {
        (OVERPROVISION * self.healthy as u64).checked_div(self.all as u64).unwrap_or(0).min(100)
    }

    /// Whether fewer than `minimum` percent are healthy.
    pub fn is_below(self, minimum: u32) -> bool {
        (self.healthy as u64) * 100 < (self.all as u64) * u64::from(minimum)
    }
}

/// A group that was chosen, and whether its ejected endpoints are used as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chosen {
    pub group: usize,
    pub panic: bool,
}

/// Chooses among priorities as Envoy does: `load(i) = min(what is left, capacity(i) * 100 / sum of capacities)`.
pub fn by_priority(health: &[Health], minimum: u32, random: u64) -> Chosen {
    let total = health.iter().map(|one| one.capacity()).sum::<u64>().min(100);
    if total == 0 {
        // Nothing is healthy. In panic everything is used, group by group as large as they are.
        let sizes: Vec<u64> = health.iter().map(|one| one.all as u64).collect();
        let group = if minimum > 0 { weighted(&sizes, random).unwrap_or(0) } else { 0 };
        return Chosen { group, panic: minimum > 0 };
    }
    let mut left = 100;
    let mut loads: Vec<u64> = Vec::with_capacity(health.len());
    for one in health {
        let load = (one.capacity() * 100 / total).min(left);
        left -= load;
        loads.push(load);
    }
    // What rounding lost is for the first that can take any.
    if let Some(first) = loads.iter_mut().find(|load| **load > 0) {
        *first += left;
    }
    let group = weighted(&loads, random).unwrap_or(0);
    // Together the groups can take everything: then none is in panic.
    let panic = total < 100 && health.get(group).is_some_and(|one| one.is_below(minimum));
    Chosen { group, panic }
}

/// Chooses among shares, each as far as its group can take it.
pub fn by_share(shares: &[u32], health: &[Health], minimum: u32, random: u64) -> Option<Chosen> {
    let whole = health.iter().fold(Health { all: 0, healthy: 0 }, |sum, one| Health {
        all: sum.all + one.all,
        healthy: sum.healthy + one.healthy,
    });
    let panic = whole.is_below(minimum);
    let capacity = |one: &Health| if panic { 100 } else { one.capacity() };
    let weights: Vec<u64> =
        shares.iter().zip(health).map(|(share, one)| u64::from(*share) * capacity(one)).collect();
    weighted(&weights, random).map(|group| Chosen { group, panic })
}

/// The place that a random number falls into; none where every weight is zero.
pub fn weighted(weights: &[u64], random: u64) -> Option<usize> {
    let total: u64 = weights.iter().sum();
    let mut at = random.checked_rem(total)?;
    weights.iter().position(|weight| {
        let here = at < *weight;
        at = at.saturating_sub(*weight);
        here
    })
}

#[cfg(test)]
mod tests;
