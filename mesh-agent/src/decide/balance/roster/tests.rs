use std::collections::BTreeMap;
use std::time::Duration;

use super::*;
use crate::decide::fixture::{Mesh, workload};
use crate::model::traffic::{HashAlgorithm, HashKey, Locality, Outlier};

/// Endpoints on nodes `n0`, `n1`, ...; all ready.
fn endpoints(count: u8) -> Vec<Endpoint> {
    (0..count)
        .map(|index| Endpoint {
            address: ([10, 0, 0, index], 80).into(),
            workload: None,
            ready: true,
            node: format!("n{index}").into(),
            weight: 1,
        })
        .collect()
}

#[derive(Default)]
struct Stand {
    loads: Vec<u32>,
    ejected: Vec<usize>,
    ages: Vec<u64>,
}

impl Standing for Stand {
    fn load(&self, endpoint: usize) -> u32 {
        self.loads.get(endpoint).copied().unwrap_or_default()
    }

    fn is_ejected(&self, endpoint: usize) -> bool {
        self.ejected.contains(&endpoint)
    }

    fn any_ejected(&self) -> bool {
        !self.ejected.is_empty()
    }

    fn age_ms(&self, endpoint: usize) -> u64 {
        self.ages.get(endpoint).copied().unwrap_or(u64::MAX)
    }
}

fn with(balance: LoadBalance) -> TrafficPolicy {
    TrafficPolicy { balance, ..TrafficPolicy::default() }
}

fn hashed() -> LoadBalance {
    LoadBalance::Hash {
        key: HashKey::SourceAddress,
        algorithm: HashAlgorithm::RingHash { minimum_ring_size: 1024 },
    }
}

fn outlier(min_health_percent: u32) -> Option<Outlier> {
    Some(Outlier {
        consecutive_5xx: 5,
        consecutive_gateway: 0,
        consecutive_local: 5,
        split_local: false,
        interval: Duration::from_secs(10),
        base_ejection: Duration::from_secs(30),
        max_ejection_percent: 100,
        min_health_percent,
    })
}

fn roster(endpoints: &[Endpoint], policy: &TrafficPolicy) -> Roster {
    Roster::new(&Mesh::default(), &workload("shop", "web", "n0", "10.9.0.1"), endpoints, policy)
}

/// How often each endpoint is picked.
fn counts(roster: &Roster, stand: &Stand, count: usize, draw: impl Fn(u64) -> Draw<'static>) -> Vec<u32> {
    let mut counts = vec![0; count];
    for step in 0..10_000 {
        if let Some(index) = roster.pick(stand, &draw(step)) {
            counts[index] += 1;
        }
    }
    counts
}

fn random(step: u64) -> Draw<'static> {
    Draw { random: mix(step), turn: step, hash: Some(mix(!step)), ..Draw::default() }
}

const ALL: fn() -> [LoadBalance; 5] = || {
    [
        LoadBalance::RoundRobin,
        LoadBalance::Random,
        LoadBalance::LeastRequest,
        LoadBalance::Passthrough,
        hashed(),
    ]
};

#[test]
fn a_weight_is_a_share_for_every_algorithm() {
    let mut list = endpoints(3);
    (list[0].weight, list[1].weight) = (2, 7);
    for balance in ALL() {
        let roster = roster(&list, &with(balance.clone()));
        let all = counts(&roster, &Stand::default(), 3, random);
        for (count, weight) in all.iter().zip([2, 7, 1]) {
            assert!(count.abs_diff(weight * 1000) < 330, "{balance:?}: {all:?}");
        }
        // What the heaviest leaves goes to the others by their weights.
        let left = counts(&roster, &Stand { ejected: vec![1], ..Stand::default() }, 3, random);
        assert_eq!(left[1], 0, "{balance:?}");
        assert!(left[0].abs_diff(6_667) < 450, "{balance:?}: {left:?}");
    }
    // Seven times the weight, ten times the load: the lighter one has less to do for its weight.
    let busy = Stand { loads: vec![0, 70, 7], ..Stand::default() };
    let roster = roster(&list, &with(LoadBalance::LeastRequest));
    assert!(counts(&roster, &busy, 3, random)[0] > 3_000);
}

#[test]
fn every_algorithm_spreads_over_all_that_is_ready_and_not_ejected() {
    let mut list = endpoints(5);
    list[1].ready = false;
    for balance in ALL() {
        let roster = roster(&list, &with(balance.clone()));
        let counts = counts(&roster, &Stand { ejected: vec![3], ..Stand::default() }, 5, random);
        assert_eq!((counts[1], counts[3]), (0, 0), "{balance:?}");
        for index in [0, 2, 4] {
            assert!((2_500..4_300).contains(&counts[index]), "{balance:?}: {counts:?}");
        }
        assert_eq!((roster.len(), roster.is_empty()), (4, false));
    }
}

#[test]
fn round_robin_takes_turns_and_least_request_the_less_loaded() {
    let list = endpoints(3);
    let turns = roster(&list, &with(LoadBalance::RoundRobin));
    let order: Vec<_> =
        (0..4).map(|turn| turns.pick(&Stand::default(), &Draw { turn, ..Draw::default() })).collect();
    assert_eq!(order, [Some(0), Some(1), Some(2), Some(0)]);
    let least = roster(&list, &with(LoadBalance::LeastRequest));
    let counts = counts(&least, &Stand { loads: vec![9, 1, 9], ..Stand::default() }, 3, random);
    // Drawn in two of three pairs, and the winner of each of them.
    assert!((6_400..6_900).contains(&counts[1]), "{counts:?}");
}

#[test]
fn a_key_has_one_endpoint_until_that_is_ejected_or_tried() {
    let list = endpoints(6);
    let roster = roster(&list, &with(hashed()));
    for key in 0..200 {
        let draw = |random| Draw { random, hash: Some(mix(key)), ..Draw::default() };
        let home = roster.pick(&Stand::default(), &draw(1)).unwrap();
        assert_eq!(roster.pick(&Stand::default(), &draw(2)), Some(home));
        let out = Stand { ejected: vec![home], ..Stand::default() };
        let next = roster.pick(&out, &draw(3)).unwrap();
        assert_ne!(next, home);
        let tried = [home];
        assert_eq!(roster.pick(&Stand::default(), &Draw { tried: &tried, ..draw(4) }), Some(next));
    }
    let without = counts(&roster, &Stand::default(), 6, |step| Draw { hash: None, ..random(step) });
    assert!(without.iter().all(|count| (1_400..2_000).contains(count)), "no key: {without:?}");
}

#[test]
fn what_was_tried_is_used_again_only_where_it_is_better_than_nothing() {
    for balance in ALL() {
        let roster = roster(&endpoints(3), &with(balance.clone()));
        for step in 0..50 {
            let once = roster.pick(&Stand::default(), &Draw { tried: &[0, 2], ..random(step) });
            assert_eq!(once, Some(1), "{balance:?}");
            let all = Draw { tried: &[0, 1, 2], ..random(step) };
            assert_eq!(roster.pick(&Stand::default(), &all), None);
            assert!(roster.pick(&Stand::default(), &Draw { again: true, ..all }).is_some());
        }
    }
    let nobody = roster(&[], &with(LoadBalance::Random));
    assert_eq!(nobody.pick(&Stand::default(), &random(1)), None);
    assert!(nobody.is_empty());
}

#[test]
fn below_the_least_health_ejected_endpoints_are_used_as_well() {
    let stand = Stand { ejected: vec![0, 1, 2], ..Stand::default() };
    for (minimum, panic) in [(0, false), (25, false), (26, true), (50, true)] {
        let policy = TrafficPolicy { outlier: outlier(minimum), ..with(LoadBalance::Random) };
        let counts = counts(&roster(&endpoints(4), &policy), &stand, 4, random);
        assert_eq!(counts[0] > 0, panic, "{minimum}: {counts:?}");
    }
    let all_out = Stand { ejected: vec![0, 1], ..Stand::default() };
    let pick = |minimum| {
        let policy = TrafficPolicy { outlier: outlier(minimum), ..with(LoadBalance::Random) };
        roster(&endpoints(2), &policy).pick(&all_out, &random(1))
    };
    assert_eq!(pick(0), None);
    assert!(pick(1).is_some());
}

fn world(localities: &[&str]) -> Mesh {
    let names = (0..).map(|index| format!("n{index}"));
    Mesh {
        localities: names.zip(localities.iter().map(|text| (*text).to_owned())).collect::<BTreeMap<_, _>>(),
        ..Mesh::default()
    }
}

#[test]
fn near_endpoints_keep_the_load_until_too_few_of_them_are_left() {
    let mesh = world(&["eu/a/1", "eu/a/1", "eu/a/1", "eu/b/1", "us/a/1"]);
    let client = workload("shop", "web", "n0", "10.9.0.1");
    let list = endpoints(5);
    let policy = TrafficPolicy {
        outlier: outlier(0),
        locality: Locality { enabled: true, ..Locality::default() },
        ..TrafficPolicy::default()
    };
    let roster = Roster::new(&mesh, &client, &list, &policy);
    let at = |ejected: &[usize]| {
        let stand = Stand { ejected: ejected.to_vec(), ..Stand::default() };
        counts(&roster, &stand, 5, random)
    };
    let near = at(&[]);
    assert_eq!((near[3], near[4]), (0, 0), "{near:?}");
    // Two of three healthy, times 1.4: 93 of 100.
    let most = at(&[0]);
    assert!((500..900).contains(&most[3]) && most[0] == 0 && most[4] == 0, "{most:?}");
    assert_eq!(at(&[0, 1, 2])[3..], [10_000, 0]);
    assert_eq!(at(&[0, 1, 2, 3])[4], 10_000);
    // A retry goes farther away once all that is near was tried.
    assert_eq!(roster.pick(&Stand::default(), &Draw { tried: &[0, 1, 2], ..random(1) }), Some(3));
    assert!(roster.is_current(&mesh, &client, &list, &policy));
    assert!(!roster.is_current(&world(&["us/a/1"; 5]), &client, &list, &policy));
}

#[test]
fn shares_of_localities_are_kept() {
    let mesh = world(&["eu/a/1", "eu/a/2", "us/a/1", "asia/a/1"]);
    let client = workload("shop", "web", "n0", "10.9.0.1");
    let list = endpoints(4);
    let share = |to: &str, share| (to.into(), share);
    let distribute = vec![("eu/*".into(), vec![share("eu/*", 80), share("us/*", 20)])];
    for balance in ALL() {
        let policy = TrafficPolicy {
            locality: Locality { enabled: true, distribute: distribute.clone(), ..Locality::default() },
            ..with(balance.clone())
        };
        let roster = Roster::new(&mesh, &client, &list, &policy);
        let counts = counts(&roster, &Stand::default(), 4, random);
        assert_eq!(counts[3], 0);
        assert!((1_800..2_200).contains(&counts[2]), "{balance:?}: {counts:?}");
        assert!(roster.is_current(&mesh, &client, &list, &policy));
    }
}

#[test]
fn a_new_endpoint_warms_up() {
    let warmup = Warmup { duration: Duration::from_secs(10), minimum_percent: 10, aggression: 1.0 };
    for (age, wanted) in [(0, 0.1), (500, 0.1), (5_000, 0.5), (10_000, 1.0), (u64::MAX, 1.0)] {
        assert!((warmth(&warmup, age) - wanted).abs() < 1e-3, "{age}");
    }
    let quick = Warmup { aggression: 2.0, ..warmup.clone() };
    assert!((warmth(&quick, 2_500) - 0.5).abs() < 1e-9);
    for balance in [LoadBalance::RoundRobin, LoadBalance::LeastRequest] {
        let policy = TrafficPolicy { warmup: Some(warmup.clone()), ..with(balance.clone()) };
        let roster = roster(&endpoints(4), &policy);
        let stand = Stand { ages: vec![u64::MAX, u64::MAX, u64::MAX, 2_500], ..Stand::default() };
        let counts = counts(&roster, &stand, 4, random);
        // A quarter of what each of the three others gets.
        let share = f64::from(counts[3]) / (f64::from(10_000 - counts[3]) / 3.0);
        assert!((0.18..0.32).contains(&share), "{balance:?}: {counts:?}");
        // Where everything is new, everything is used.
        let new = Stand { ages: vec![0; 4], ..Stand::default() };
        assert!(self::counts(&roster, &new, 4, random).iter().all(|count| *count > 2_000));
    }
}

proptest::proptest! {
    #[test]
    fn a_pick_is_ready_untried_and_not_ejected_and_there_is_one_if_there_can_be(
        ready in proptest::collection::vec(proptest::bool::ANY, 1..8),
        ejected in proptest::collection::vec(0_usize..8, 0..4),
        tried in proptest::collection::vec(0_usize..8, 0..4),
        which in 0_usize..5,
        bits: u64,
    ) {
        let mut list = endpoints(u8::try_from(ready.len()).unwrap());
        list.iter_mut().zip(&ready).for_each(|(endpoint, ready)| endpoint.ready = *ready);
        let policy = TrafficPolicy { outlier: outlier(0), ..with(ALL()[which].clone()) };
        let stand = Stand { ejected: ejected.clone(), ..Stand::default() };
        let draw = Draw { random: bits, turn: bits, hash: Some(bits), tried: &tried, again: false };
        let picked = roster(&list, &policy).pick(&stand, &draw);
        let can = |index: &usize| ready[*index] && !ejected.contains(index) && !tried.contains(index);
        proptest::prop_assert_eq!(picked.is_some(), (0..ready.len()).any(|index| can(&index)));
        proptest::prop_assert!(picked.is_none_or(|index| can(&index)));
    }
}

/// What a workload says of its place comes before what its node says, of the client and of endpoints.
#[test]
fn a_place_of_one_s_own_counts_before_the_node_s() {
    let mut mesh =
        Mesh { localities: BTreeMap::from([("n0".to_owned(), "eu/a".to_owned())]), ..Mesh::default() };
    let place = |name: &str, node: &str, address: &str, locality: &str| {
        let mut workload = (*workload("shop", name, node, address)).clone();
        workload.locality = locality.into();
        workload
    };
    let list: Vec<Endpoint> = [("near", "n1", "10.0.0.1", "us/b"), ("far", "n0", "10.0.0.2", "")]
        .into_iter()
        .map(|(name, node, address, locality)| {
            let workload = place(name, node, address, locality);
            let endpoint = Endpoint {
                workload: Some(workload.id.clone()),
                node: node.into(),
                ..Endpoint::outside((workload.addresses[0], 80).into())
            };
            mesh.workloads.push(std::sync::Arc::new(workload));
            endpoint
        })
        .collect();
    let near = Locality { enabled: true, ..Locality::default() };
    let policy = TrafficPolicy { outlier: outlier(0), locality: near, ..TrafficPolicy::default() };
    for (own, expected) in [("us/b", [10_000, 0]), ("", [0, 10_000])] {
        let roster = Roster::new(&mesh, &place("web", "n0", "10.9.0.1", own), &list, &policy);
        assert_eq!(counts(&roster, &Stand::default(), 2, random), expected, "{own}");
    }
}
