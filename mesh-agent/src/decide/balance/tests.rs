use super::*;

fn endpoints(ready: &[bool]) -> Vec<Endpoint> {
    let one = |(index, ready): (usize, &bool)| Endpoint {
        address: ([10, 0, 0, u8::try_from(index).unwrap()], 80).into(),
        workload: None,
        ready: *ready,
        node: "".into(),
        weight: 1,
    };
    ready.iter().enumerate().map(one).collect()
}

#[test]
fn round_robin_visits_each_ready_endpoint_in_turn() {
    let endpoints = endpoints(&[true, false, true, true]);
    let picked: Vec<_> = (0..6).map(|turn| round_robin(&endpoints, turn, &[])).collect();
    assert_eq!(picked, [Some(0), Some(2), Some(3), Some(0), Some(2), Some(3)]);
    assert_eq!(round_robin(&endpoints, u64::MAX, &[0, 3]), Some(2));
}

#[test]
fn nothing_is_picked_when_nothing_is_ready_or_all_was_tried() {
    for endpoints in [endpoints(&[]), endpoints(&[false, false])] {
        assert_eq!(round_robin(&endpoints, 1, &[]), None);
        assert_eq!(least_request(&endpoints, 1, &[], |_| 0), None);
    }
    assert_eq!(least_request(&endpoints(&[true, true]), 7, &[0, 1], |_| 0), None);
}

#[test]
fn least_request_takes_the_less_loaded_of_two_different_endpoints() {
    let endpoints = endpoints(&[true, true]);
    // With two endpoints both are always drawn, so the loaded one is never taken.
    for random in (0..64).map(|bits| 1_u64 << bits).chain([0, u64::MAX]) {
        assert_eq!(least_request(&endpoints, random, &[], |index| [9, 3][index]), Some(1), "{random}");
        assert_eq!(least_request(&endpoints, random, &[1], |index| [9, 3][index]), Some(0), "{random}");
    }
}

#[test]
fn least_request_spreads_evenly_when_loads_are_equal() {
    let endpoints = endpoints(&[true; 5]);
    let mut counts = [0_u32; 5];
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..50_000 {
        // xorshift64: only an even stream of bits is wanted.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        counts[least_request(&endpoints, random, &[], |_| 0).unwrap()] += 1;
    }
    assert!(counts.iter().all(|count| (9_000..11_000).contains(count)), "{counts:?}");
}

proptest::proptest! {
    #[test]
    fn a_pick_is_always_ready_and_untried(
        ready in proptest::collection::vec(proptest::bool::ANY, 0..8),
        tried in proptest::collection::vec(0_usize..8, 0..4),
        random: u64,
    ) {
        let endpoints = endpoints(&ready);
        let left = usable(&endpoints, &tried).count();
        for pick in [round_robin(&endpoints, random, &tried), least_request(&endpoints, random, &tried, |i| i as u64)] {
            proptest::prop_assert_eq!(pick.is_some(), left > 0);
            if let Some(index) = pick {
                proptest::prop_assert!(ready[index] && !tried.contains(&index));
            }
        }
    }
}
