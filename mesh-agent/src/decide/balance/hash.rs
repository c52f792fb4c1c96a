//! Consistent hashing: one key goes to one endpoint for as long as that is there, and when endpoints come or go, few
//! keys move. Owns: the hash, the ring (Ketama's way) and the Maglev table (Eisenbud and others, NSDI 2016).
//! The hash is the same on every node and in every version: agents have to agree. Called by `roster`.

use std::io::Write as _;
use std::net::SocketAddr;

use super::weighted::reduced;
use crate::model::traffic::HashAlgorithm;

/// Entries of a ring at most, as in Envoy.
pub const RING_LIMIT: u32 = 8 * 1024 * 1024;
/// Entries of a Maglev table at most, as in Envoy.
pub const TABLE_LIMIT: u32 = 5_000_011;

/// 64 bits of a text: FNV-1a, then mixed so that every bit of it counts for every bit of the outcome.
pub fn hash(bytes: &[u8]) -> u64 {
    let start = 0xcbf2_9ce4_8422_2325_u64;
    mix(bytes.iter().fold(start, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)))
}

/// The finaliser of splitmix64: a permutation of the 64-bit numbers.
pub fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// Members are numbers of the list that the table was made for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Table {
    /// (place on the ring, member), by place.
    Ring(Box<[(u64, u32)]>),
    Maglev(Box<[u32]>),
}

impl Table {
    /// `members` with their weights: each is the home of its share of the keys.
    pub fn new(members: &[(SocketAddr, u32)], algorithm: HashAlgorithm) -> Self {
        match algorithm {
            HashAlgorithm::RingHash { minimum_ring_size } => Self::Ring(ring(members, minimum_ring_size)),
            HashAlgorithm::Maglev { table_size } => Self::Maglev(maglev(members, table_size)),
        }
    }

    /// The member for a hash, and the next ones while `usable` says no: a key whose member is out goes to another, and
    /// no other key moves. None when nothing is usable.
    pub fn get(&self, hash: u64, members: usize, usable: impl Fn(u32) -> bool) -> Option<u32> {
        match self {
            Self::Ring(ring) => {
                let at = ring.partition_point(|(place, _)| *place < hash);
                let (before, after) = ring.split_at_checked(at)?;
                after.iter().chain(before).map(|(_, member)| *member).find(|member| usable(*member))
            }
            Self::Maglev(table) => {
                let slot = |hash: u64| {
                    let at = usize::try_from(hash.checked_rem(table.len() as u64)?).ok()?;
                    table.get(at).copied()
                };
                // Each further draw finds another member with the same chance as a table without the first would.
                let draws = (0..members.saturating_mul(4).max(4)).scan(hash, |hash, _| {
                    let this = *hash;
                    *hash = mix(hash.wrapping_add(0x9e37_79b9_7f4a_7c15));
                    Some(this)
                });
                let drawn = draws.filter_map(slot).find(|member| usable(*member));
                drawn.or_else(|| table.iter().copied().find(|member| usable(*member)))
            }
        }
    }
}

/// Each member in as many places as give the ring its least size, times its weight. A power of two, so that the places of
/// the others stay as they are when members come or go, but for the moments when it doubles.
fn ring(members: &[(SocketAddr, u32)], least: u32) -> Box<[(u64, u32)]> {
    let weights: Vec<u32> = members.iter().map(|(_, weight)| *weight).collect();
    let weights = reduced(&weights, u64::from(RING_LIMIT));
    let shares: u32 = weights.iter().fold(0, |sum: u32, weight| sum.saturating_add(*weight));
    let each = least.min(RING_LIMIT).div_ceil(shares.max(1)).next_power_of_two();
    let mut places = Vec::with_capacity((shares as usize).saturating_mul(each as usize));
    let mut text = Vec::with_capacity(64);
    for (member, ((address, _), weight)) in (0_u32..).zip(members.iter().zip(weights)) {
        for index in 0..each.saturating_mul(weight) {
            write_name(&mut text, address, index);
            places.push((hash(&text), member));
        }
    }
    places.sort_unstable();
    places.into()
}

/// Members take turns to fill a table, each in its own order of slots, so that all get the same number to within one; one
/// of less weight than the heaviest sits out as many turns as it lacks.
fn maglev(members: &[(SocketAddr, u32)], size: u32) -> Box<[u32]> {
    let size = u64::from(prime(size.clamp(2, TABLE_LIMIT)));
    if members.is_empty() {
        return Box::default();
    }
    const FREE: u32 = u32::MAX;
    let mut table = vec![FREE; usize::try_from(size).unwrap_or_default()];
    let mut text = Vec::with_capacity(64);
    let mut named = |address: &SocketAddr, index| {
        write_name(&mut text, address, index);
        hash(&text)
    };
    // Where each member looks next, and how far it goes from there. The size is a prime, so it comes by every slot.
    let mut walks: Vec<(u64, u64)> = members
        .iter()
        .map(|(address, _)| (named(address, 0) % size, named(address, 1) % (size - 1) + 1))
        .collect();
    let heaviest = members.iter().map(|(_, weight)| u64::from(*weight)).max().unwrap_or(1).max(1);
    let mut credits = vec![0_u64; members.len()];
    let mut filled = 0;
    while filled < size {
        for (member, ((next, skip), credit)) in (0_u32..).zip(walks.iter_mut().zip(&mut credits)) {
            *credit += members.get(member as usize).map_or(1, |(_, weight)| u64::from(*weight));
            if *credit < heaviest {
                continue;
            }
            *credit -= heaviest;
            loop {
                let slot = usize::try_from(*next).ok().and_then(|at| table.get_mut(at));
                *next = (*next + *skip) % size;
                match slot {
                    Some(slot) if *slot == FREE => {
                        *slot = member;
                        break;
                    }
                    Some(_) => {}
                    None => break,
                }
            }
            filled += 1;
            if filled == size {
                break;
            }
        }
    }
    table.into()
}

fn write_name(text: &mut Vec<u8>, address: &SocketAddr, index: u32) {
    text.clear();
    // Writing to memory does not fail.
    let _written = write!(text, "{address}_{index}");
}

/// The number itself, or the next prime above it.
fn prime(at_least: u32) -> u32 {
    let is_prime = |number: &u32| {
        (2..).take_while(|factor| factor * factor <= *number).all(|factor| !number.is_multiple_of(factor))
    };
    (at_least..).find(is_prime).unwrap_or(TABLE_LIMIT)
}

#[cfg(test)]
mod tests;
