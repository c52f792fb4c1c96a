//! `loadBalancer`: algorithm, locality, slow start.

use std::sync::Arc;
use std::time::Duration;

use super::{Balancer, text};
use crate::api::istio::networking::{
    ConsistentHashLb, Distribute, LoadBalancerSettings, LocalityLbSetting, SimpleLb, WarmupConfiguration,
};
use crate::compile::traffic::Reader;
use crate::model::traffic::{HashAlgorithm, HashKey, LoadBalance, Locality, Warmup};

/// Istio's default for `minimumRingSize`.
const RING: u32 = 1024;
/// Envoy's limit of a ring.
const RING_MAX: u64 = 8 * 1024 * 1024;
/// Envoy's default table of Maglev, and its largest.
const MAGLEV: u32 = 65_537;
const MAGLEV_MAX: u64 = 5_000_011;

pub(super) fn balancer(reader: &mut Reader<'_>, field: &str, given: &LoadBalancerSettings) -> Balancer {
    if given.simple.is_some() && given.consistent_hash.is_some() {
        reader.fault(&format!("{field}.simple"), "stands beside consistentHash", "keep one of the two");
    }
    let hash = given.consistent_hash.as_ref();
    let balance = match given.simple {
        Some(SimpleLb::LeastConn | SimpleLb::LeastRequest) => Some(LoadBalance::LeastRequest),
        Some(SimpleLb::RoundRobin) => Some(LoadBalance::RoundRobin),
        Some(SimpleLb::Random) => Some(LoadBalance::Random),
        Some(SimpleLb::Passthrough) => Some(LoadBalance::Passthrough),
        None | Some(SimpleLb::Unspecified) => {
            hash.and_then(|hash| consistent(reader, &format!("{field}.consistentHash"), hash))
        }
    };
    let locality = given
        .locality_lb_setting
        .as_ref()
        .map(|one| locality(reader, &format!("{field}.localityLbSetting"), one));
    let older = given
        .warmup_duration_secs
        .clone()
        .map(|duration| WarmupConfiguration { duration: Some(duration), ..WarmupConfiguration::default() });
    let warmup =
        given.warmup.clone().or(older).and_then(|one| warmup(reader, &format!("{field}.warmup"), &one));
    let slow = matches!(balance, None | Some(LoadBalance::RoundRobin | LoadBalance::LeastRequest));
    if warmup.is_some() && !slow {
        let message = "works with ROUND_ROBIN and LEAST_REQUEST only";
        reader.fault(&format!("{field}.warmup"), message, "use one of them, or remove warmup");
    }
    Balancer { balance, locality, warmup }
}

fn consistent(reader: &mut Reader<'_>, field: &str, hash: &ConsistentHashLb) -> Option<LoadBalance> {
    let mut keys = Vec::new();
    keys.extend(
        text(hash.http_header_name.as_ref()).and_then(|name| {
            reader.header_name(&format!("{field}.httpHeaderName"), &name).map(HashKey::Header)
        }),
    );
    if let Some(cookie) = &hash.http_cookie {
        let field = format!("{field}.httpCookie");
        let name = text(cookie.name.as_ref());
        if name.is_none() {
            reader.fault(&format!("{field}.name"), "is missing", "name the cookie");
        }
        if cookie.attributes.iter().flatten().next().is_some() {
            reader.fault(&format!("{field}.attributes"), "is not supported by this version", "remove it");
        }
        let ttl = reader.duration(&format!("{field}.ttl"), cookie.ttl.as_ref());
        keys.extend(name.map(|name| HashKey::Cookie { name, path: text(cookie.path.as_ref()), ttl }));
    }
    if hash.use_source_ip == Some(true) {
        keys.push(HashKey::SourceAddress);
    }
    keys.extend(text(hash.http_query_parameter_name.as_ref()).map(HashKey::QueryParameter));
    let algorithm = algorithm(reader, field, hash);
    let key = keys.pop();
    if key.is_none() || !keys.is_empty() {
        reader.fault(
            field,
            if key.is_none() { "says not what is hashed" } else { "hashes more than one thing" },
            "give it one of httpHeaderName, httpCookie, useSourceIp and httpQueryParameterName",
        );
    }
    Some(LoadBalance::Hash { key: key?, algorithm: algorithm? })
}

fn algorithm(reader: &mut Reader<'_>, field: &str, hash: &ConsistentHashLb) -> Option<HashAlgorithm> {
    if hash.ring_hash.is_some() && hash.maglev.is_some() {
        reader.fault(&format!("{field}.maglev"), "stands beside ringHash", "keep one of the two");
        return None;
    }
    if let Some(maglev) = &hash.maglev {
        let size = maglev.table_size.filter(|size| *size != 0).unwrap_or(u64::from(MAGLEV));
        if size > MAGLEV_MAX || !is_prime(size) {
            reader.fault(
                &format!("{field}.maglev.tableSize"),
                &format!("{size} is not a prime up to {MAGLEV_MAX}"),
                "write a prime, such as 65537",
            );
            return None;
        }
        return u32::try_from(size).ok().map(|table_size| HashAlgorithm::Maglev { table_size });
    }
    let ring = hash.ring_hash.as_ref().and_then(|ring| ring.minimum_ring_size).or(hash.minimum_ring_size);
    let size = ring.filter(|size| *size != 0).unwrap_or(u64::from(RING));
    if size > RING_MAX {
        let message = format!("{size} is more than {RING_MAX}");
        reader.fault(&format!("{field}.ringHash.minimumRingSize"), &message, "write a smaller ring");
        return None;
    }
    u32::try_from(size).ok().map(|minimum_ring_size| HashAlgorithm::RingHash { minimum_ring_size })
}

fn is_prime(number: u64) -> bool {
    number > 1
        && (2..)
            .take_while(|divisor| divisor * divisor <= number)
            .all(|divisor| !number.is_multiple_of(divisor))
}

pub(in crate::compile::traffic) fn locality(
    reader: &mut Reader<'_>,
    field: &str,
    given: &LocalityLbSetting,
) -> Locality {
    let some = |given: bool| usize::from(given);
    let ways = some(given.distribute.iter().flatten().next().is_some())
        + some(given.failover.iter().flatten().next().is_some())
        + some(given.failover_priority.iter().flatten().next().is_some());
    // Istio lets failover and failoverPriority stand together, and nothing else.
    if ways > 1 && given.distribute.iter().flatten().next().is_some() {
        let message = "stands beside failover or failoverPriority";
        reader.fault(&format!("{field}.distribute"), message, "keep one of them");
    }
    let mut distribute = Vec::new();
    for (index, one) in given.distribute.iter().flatten().enumerate() {
        distribute.extend(share(reader, &format!("{field}.distribute[{index}]"), one));
    }
    let mut failover = Vec::new();
    for (index, one) in given.failover.iter().flatten().enumerate() {
        let field = format!("{field}.failover[{index}]");
        match (text(one.from.as_ref()), text(one.to.as_ref())) {
            (Some(from), Some(to)) if from == to => {
                reader.fault(&field, "goes to the region it comes from", "name another region");
            }
            (Some(from), Some(to)) if from.contains(['/', '*']) || to.contains(['/', '*']) => {
                reader.fault(&field, "is not between regions", "write regions only, without zones");
            }
            (Some(from), Some(to)) => failover.push((from, to)),
            _ => reader.fault(&field, "is not complete", "write from and to"),
        }
    }
    let priority = given.failover_priority.iter().flatten().map(|label| match label.split_once('=') {
        Some((key, value)) => (Arc::from(key), Some(Arc::from(value))),
        None => (Arc::from(label.as_str()), None),
    });
    Locality { enabled: given.enabled.unwrap_or(true), distribute, failover, priority: priority.collect() }
}

type Share = (Arc<str>, Vec<(Arc<str>, u32)>);

fn share(reader: &mut Reader<'_>, field: &str, given: &Distribute) -> Option<Share> {
    let Some(from) = text(given.from.as_ref()) else {
        reader.fault(&format!("{field}.from"), "is missing", "write region/zone/subzone, or * for all");
        return None;
    };
    let to: Vec<(Arc<str>, u32)> =
        given.to.iter().flatten().map(|(to, weight)| (Arc::from(to.as_str()), *weight)).collect();
    let sum: u64 = to.iter().map(|(_, weight)| u64::from(*weight)).sum();
    if sum != 100 || to.iter().any(|(_, weight)| *weight == 0) {
        reader.fault(
            &format!("{field}.to"),
            "has shares that are not 100 together",
            "write shares of 1 to 100",
        );
        return None;
    }
    for place in to.iter().map(|(place, _)| place).chain([&from]) {
        let bad_star = place.find('*').is_some_and(|at| at + 1 != place.len());
        if bad_star || place.split('/').count() > 3 {
            reader.fault(
                field,
                &format!("`{place}` is not a locality"),
                "write region/zone/subzone; a `*` stands at the end only",
            );
        }
    }
    Some((from, to))
}

fn warmup(reader: &mut Reader<'_>, field: &str, given: &WarmupConfiguration) -> Option<Warmup> {
    let Some(duration) = reader.duration(&format!("{field}.duration"), given.duration.as_ref()) else {
        if given.duration.is_none() {
            reader.fault(&format!("{field}.duration"), "is missing", "say how long an endpoint warms up");
        }
        return None;
    };
    let minimum = given.minimum_percent.unwrap_or(10.0);
    if !(0.0..=100.0).contains(&minimum) {
        let message = format!("{minimum} is not a percentage");
        reader.fault(&format!("{field}.minimumPercent"), &message, "write 0 to 100");
    }
    let aggression = given.aggression.unwrap_or(1.0);
    if aggression < 1.0 || !aggression.is_finite() {
        let message = format!("{aggression} is less than 1");
        reader.fault(&format!("{field}.aggression"), &message, "write 1.0 or more");
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 100")]
    let minimum_percent = minimum.clamp(0.0, 100.0) as u32;
    (duration > Duration::ZERO).then_some(Warmup { duration, minimum_percent, aggression })
}
