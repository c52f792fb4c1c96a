use super::*;

fn members(count: u16) -> Vec<SocketAddr> {
    (0..count).map(|index| ([10, 0, (index >> 8) as u8, (index & 255) as u8], 8080).into()).collect()
}

const KINDS: [HashAlgorithm; 2] =
    [HashAlgorithm::RingHash { minimum_ring_size: 1024 }, HashAlgorithm::Maglev { table_size: 65_537 }];

/// The same with weights that are all one.
fn equal(members: &[SocketAddr]) -> Vec<(SocketAddr, u32)> {
    members.iter().map(|member| (*member, 1)).collect()
}

fn keys() -> impl Iterator<Item = u64> {
    (0_u32..20_000).map(|key| hash(format!("user-{key}").as_bytes()))
}

/// Which address each key goes to.
fn homes(
    members: &[SocketAddr],
    kind: HashAlgorithm,
    usable: impl Fn(u32) -> bool + Copy,
) -> Vec<SocketAddr> {
    let table = Table::new(&equal(members), kind);
    keys().map(|key| members[table.get(key, members.len(), usable).unwrap() as usize]).collect()
}

#[test]
fn the_hash_is_the_same_for_ever() {
    // Agents of two versions have to agree: these may never change.
    assert_eq!(hash(b""), 0xf52a_15e9_a9b5_e89b);
    assert_eq!(hash(b"10.0.0.1:8080_0"), 0x4d56_1d3a_12b2_bde9);
}

#[test]
fn a_key_stays_with_its_member_whatever_the_order_of_the_list() {
    for kind in KINDS {
        let list = members(7);
        let mut turned = list.clone();
        turned.rotate_left(3);
        let moved = homes(&list, kind, |_| true)
            .iter()
            .zip(homes(&turned, kind, |_| true))
            .filter(|(one, other)| **one != *other)
            .count();
        // Maglev's members take turns in the order of the list, so a few slots depend on it.
        assert!(moved <= 20_000 / 50, "{kind:?}: {moved}");
    }
}

#[test]
fn keys_are_spread_evenly() {
    for (kind, most) in KINDS.into_iter().zip([1.5, 1.15]) {
        let list = members(10);
        let all = homes(&list, kind, |_| true);
        for member in &list {
            let share = all.iter().filter(|home| *home == member).count() as f64 / 2_000.0;
            assert!((2.0 - most..most).contains(&share), "{kind:?} {member}: {share}");
        }
    }
}

#[test]
fn when_a_member_goes_little_else_than_its_own_keys_move() {
    for (kind, most) in KINDS.into_iter().zip([0, 20_000 / 20]) {
        let list = members(10);
        let gone = list[4];
        let fewer: Vec<_> = list.iter().copied().filter(|member| *member != gone).collect();
        let before = homes(&list, kind, |_| true);
        let after = homes(&fewer, kind, |_| true);
        let moved = before.iter().zip(&after).filter(|(one, other)| one != other && **one != gone).count();
        assert!(moved <= most, "{kind:?}: {moved} of others moved");
        assert!(!after.contains(&gone));
    }
}

#[test]
fn when_a_member_is_out_nothing_but_its_own_keys_move_and_they_are_spread() {
    for kind in KINDS {
        let list = members(5);
        let before = homes(&list, kind, |_| true);
        let after = homes(&list, kind, |member| member != 2);
        for (one, other) in before.iter().zip(&after) {
            assert!(*one == list[2] || one == other, "{kind:?}");
            assert_ne!(*other, list[2]);
        }
        for member in list.iter().filter(|member| **member != list[2]) {
            let gained =
                before.iter().zip(&after).filter(|(one, other)| **one == list[2] && *other == member).count();
            assert!(gained > 300, "{kind:?} {member}: {gained}");
        }
    }
}

#[test]
fn tables_have_the_size_that_was_asked_for() {
    let ring = |count, least| match Table::new(
        &equal(&members(count)),
        HashAlgorithm::RingHash { minimum_ring_size: least },
    ) {
        Table::Ring(ring) => ring.len(),
        Table::Maglev(_) => unreachable!(),
    };
    assert_eq!((ring(3, 1024), ring(3000, 1024), ring(1, 0), ring(0, 9)), (1536, 3000, 1, 0));
    let maglev = |size| match Table::new(&equal(&members(3)), HashAlgorithm::Maglev { table_size: size }) {
        Table::Maglev(table) => table.len(),
        Table::Ring(_) => unreachable!(),
    };
    assert_eq!((maglev(65_537), maglev(8), maglev(0)), (65_537, 11, 2));
}

#[test]
fn nothing_comes_of_nothing() {
    for kind in KINDS {
        assert_eq!(Table::new(&[], kind).get(7, 0, |_| true), None);
        assert_eq!(Table::new(&equal(&members(3)), kind).get(7, 3, |_| false), None);
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_is_usable_is_found(count in 1_u16..20, out in proptest::collection::vec(0_u32..20, 0..20), key: u64) {
        let list = members(count);
        for kind in [HashAlgorithm::RingHash { minimum_ring_size: 64 }, HashAlgorithm::Maglev { table_size: 101 }] {
            let usable = |member: u32| !out.contains(&member);
            let found = Table::new(&equal(&list), kind).get(key, list.len(), usable);
            proptest::prop_assert_eq!(found.is_some(), (0..u32::from(count)).any(usable));
            proptest::prop_assert!(found.is_none_or(usable));
        }
    }
}
