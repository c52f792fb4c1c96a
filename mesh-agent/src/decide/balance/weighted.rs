//! Shares of unequal size: endpoints with weights (WorkloadEntry `weight`). Owns: how a turn or a random number becomes
//! one of them. Costs a binary search; where some may not be used, a walk over all. Called by `roster`.

/// The weights of a group's members, where they are not all the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weights {
    each: Box<[u32]>,
    /// The sum of the weights up to each member.
    ends: Box<[u64]>,
}

impl Weights {
    /// None where all are equal: then everybody has the same share without them.
    pub fn new(each: &[u32]) -> Option<Self> {
        let first = each.first()?;
        if each.iter().all(|weight| weight == first) {
            return None;
        }
        let ends = each.iter().scan(0, |sum, weight| {
            *sum += u64::from(*weight);
            Some(*sum)
        });
        Some(Self { each: each.into(), ends: ends.collect() })
    }

    pub fn of(&self, place: usize) -> u32 {
        self.each.get(place).copied().unwrap_or(0)
    }

    /// The sum of what may be used.
    pub fn total(&self, usable: Option<&dyn Fn(usize) -> bool>) -> u64 {
        match usable {
            None => self.ends.last().copied().unwrap_or(0),
            Some(usable) => self.usable(usable).map(|(_, weight)| weight).sum(),
        }
    }

    /// The member at a point below the total.
    pub fn at(&self, point: u64, usable: Option<&dyn Fn(usize) -> bool>) -> Option<usize> {
        let Some(usable) = usable else {
            let place = self.ends.partition_point(|end| *end <= point);
            return (place < self.ends.len()).then_some(place);
        };
        let mut left = point;
        self.usable(usable).find_map(|(place, weight)| {
            let here = left < weight;
            left = left.saturating_sub(weight);
            here.then_some(place)
        })
    }

    fn usable<'a>(&'a self, usable: &'a dyn Fn(usize) -> bool) -> impl Iterator<Item = (usize, u64)> + 'a {
        self.each
            .iter()
            .enumerate()
            .filter(move |(place, _)| usable(*place))
            .map(|(place, weight)| (place, u64::from(*weight)))
    }
}

/// The point of a turn: in as many turns as the total every point comes once, and neighbours come far apart, so that a
/// heavy member does not get all its turns in a row.
pub fn spread(turn: u64, total: u64) -> Option<u64> {
    let turn = turn.checked_rem(total)?;
    // The golden section of the total, or the next number above it that has no factor in common with it.
    let golden = (u128::from(total) * 618 / 1000).max(1);
    let golden = u64::try_from(golden).unwrap_or(1);
    let step = (golden..=total).find(|step| common(*step, total) == 1).unwrap_or(1);
    u64::try_from(u128::from(turn) * u128::from(step) % u128::from(total)).ok()
}

fn common(mut one: u64, mut other: u64) -> u64 {
    while other != 0 {
        (one, other) = (other, one % other);
    }
    one
}

/// Weights as whole numbers whose sum is at most `most`, at least 1 each (or as many as there are members): as they are
/// without their common factor where that is few enough.
pub fn reduced(weights: &[u32], most: u64) -> Vec<u32> {
    let factor = weights.iter().fold(0, |factor, weight| common(u64::from(*weight), factor)).max(1);
    let sum: u64 = weights.iter().map(|weight| u64::from(*weight) / factor).sum();
    let scaled = |weight: &u32| {
        let weight = u64::from(*weight) / factor;
        let weight = if sum > most { weight.saturating_mul(most) / sum } else { weight };
        u32::try_from(weight).unwrap_or(u32::MAX).max(1)
    };
    weights.iter().map(scaled).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_member_gets_its_weight_in_turns_and_not_all_at_once() {
        for weights in [&[1, 9][..], &[3, 1, 2], &[7, 7, 1], &[100, 1], &[u32::MAX / 4, 1]] {
            let all = Weights::new(weights).unwrap();
            let total = all.total(None);
            if total > 1000 {
                assert_eq!(spread(total, total), Some(0), "the next round begins");
                continue;
            }
            let picks: Vec<usize> =
                (0..total).map(|turn| all.at(spread(turn, total).unwrap(), None).unwrap()).collect();
            for (place, weight) in weights.iter().enumerate() {
                let got = picks.iter().filter(|pick| **pick == place).count();
                assert_eq!(got, *weight as usize, "{weights:?}: {picks:?}");
            }
        }
        let all = Weights::new(&[3, 3, 1]).unwrap();
        let picks: Vec<usize> = (0..7).map(|turn| all.at(spread(turn, 7).unwrap(), None).unwrap()).collect();
        assert!(picks.windows(3).all(|three| three[0] != three[1] || three[1] != three[2]), "{picks:?}");
    }

    #[test]
    fn what_may_not_be_used_leaves_its_share_to_the_others() {
        let all = Weights::new(&[2, 5, 3]).unwrap();
        let usable: &dyn Fn(usize) -> bool = &|place| place != 1;
        assert_eq!(all.total(Some(usable)), 5);
        let found: Vec<_> = (0..6).map(|point| all.at(point, Some(usable))).collect();
        assert_eq!(found, [Some(0), Some(0), Some(2), Some(2), Some(2), None]);
        assert_eq!((all.at(9, None), all.at(10, None)), (Some(2), None));
        assert_eq!((Weights::new(&[4, 4]), Weights::new(&[])), (None, None));
        assert_eq!(spread(3, 0), None);
    }

    #[test]
    fn weights_lose_what_they_have_in_common_and_what_is_too_much() {
        assert_eq!(reduced(&[10, 30, 20], 100), [1, 3, 2]);
        assert_eq!(reduced(&[1, 1_000_000], 100), [1, 99]);
        assert_eq!(reduced(&[5], 100), [1]);
    }
}
