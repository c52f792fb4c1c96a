use std::sync::LazyLock;

use super::*;

static NONE: LazyLock<Labels> = LazyLock::new(Labels::new);

fn at(locality: &str) -> Place<'_> {
    Place { locality, node: "", labels: &NONE }
}

fn list<'a>(localities: &'a [&'a str]) -> impl Iterator<Item = (u32, Place<'a>)> {
    (0..).zip(localities.iter().map(|locality| at(locality)))
}

fn text(text: &str) -> Arc<str> {
    text.into()
}

const WORLD: [&str; 6] = ["eu/a/1", "eu/a/2", "eu/b/1", "us/a/1", "asia/a/1", ""];

#[test]
fn failover_goes_from_subzone_to_zone_to_region_to_the_world() {
    let settings = Locality { enabled: true, ..Locality::default() };
    let groups = divide(&settings, true, &at("eu/a/1"), list(&WORLD));
    assert_eq!(groups, Groups::Priorities(vec![vec![0], vec![1], vec![2], vec![3, 4, 5]]));
    // A rank that nobody has is no group.
    let groups = divide(&settings, true, &at("eu/a/1"), list(&["us/a/1", "eu/b/1"]));
    assert_eq!(groups, Groups::Priorities(vec![vec![1], vec![0]]));
    let to_us = Locality { failover: vec![(text("eu"), text("us"))], ..settings.clone() };
    let groups = divide(&to_us, true, &at("eu/a/1"), list(&WORLD));
    assert_eq!(groups, Groups::Priorities(vec![vec![0], vec![1], vec![2], vec![3], vec![4, 5]]));
    let groups = divide(&to_us, true, &at("asia/a/1"), list(&WORLD));
    assert_eq!(groups, Groups::Priorities(vec![vec![4], vec![0, 1, 2, 3, 5]]), "nothing is said of asia");
}

#[test]
fn without_outlier_detection_or_a_place_of_ones_own_all_endpoints_are_alike() {
    let all = Groups::Priorities(vec![vec![0, 1, 2, 3, 4, 5]]);
    let on = Locality { enabled: true, ..Locality::default() };
    assert_eq!(divide(&on, false, &at("eu/a/1"), list(&WORLD)), all);
    assert_eq!(divide(&on, true, &at(""), list(&WORLD)), all);
    assert_eq!(divide(&Locality::default(), true, &at("eu/a/1"), list(&WORLD)), all);
    assert_eq!(divide(&on, true, &at("eu/a/1"), list(&[])), Groups::Priorities(vec![vec![]]));
}

#[test]
fn failover_by_labels_counts_how_many_are_equal_from_the_first_on() {
    let labels = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<Labels>()
    };
    let own = labels(&[("cell", "7"), ("ring", "a")]);
    let others = [
        labels(&[("cell", "8"), ("ring", "a")]),
        labels(&[("cell", "7"), ("ring", "b")]),
        own.clone(),
        labels(&[]),
    ];
    let place = |labels, node| Place { locality: "eu/a/1", node, labels };
    let divide_by = |priority: Vec<(Arc<str>, Option<Arc<str>>)>| {
        let settings = Locality { enabled: true, priority, ..Locality::default() };
        let endpoints =
            (0..).zip(others.iter().zip(["n1", "n2", "n1", "n2"]).map(|(labels, node)| place(labels, node)));
        divide(&settings, true, &place(&own, "n1"), endpoints)
    };
    assert_eq!(
        divide_by(vec![(text("cell"), None), (text("ring"), None)]),
        Groups::Priorities(vec![vec![2], vec![1], vec![0, 3]])
    );
    assert_eq!(
        divide_by(vec![(text("ring"), Some(text("b")))]),
        Groups::Priorities(vec![vec![1], vec![0, 2, 3]])
    );
    assert_eq!(divide_by(vec![(text("nobody-has-it"), None)]), Groups::Priorities(vec![vec![0, 1, 2, 3]]));
    let node = vec![(text(ZONE), None), (text(HOSTNAME), None)];
    assert_eq!(divide_by(node), Groups::Priorities(vec![vec![0, 2], vec![1, 3]]));
}

#[test]
fn shares_are_by_the_first_entry_that_covers_and_the_rest_is_not_used() {
    let to = vec![(text("eu/a/*"), 80), (text("eu/*"), 15), (text("us/a/1"), 5), (text("mars/*"), 50)];
    let settings = Locality {
        enabled: true,
        distribute: vec![(text("us/*"), vec![]), (text("eu/*"), to)],
        ..Locality::default()
    };
    let groups = divide(&settings, false, &at("eu/b/1"), list(&WORLD));
    assert_eq!(groups, Groups::Shares(vec![(80, vec![0, 1]), (15, vec![2]), (5, vec![3])]));
    let elsewhere = divide(&settings, false, &at("asia/a/1"), list(&WORLD));
    assert_eq!(elsewhere, Groups::Priorities(vec![vec![0, 1, 2, 3, 4, 5]]));
}

#[test]
fn a_pattern_covers_a_locality_from_its_beginning() {
    for (pattern, locality, wanted) in [
        ("*", "", true),
        ("*", "eu/a/1", true),
        ("eu/*", "eu/a/1", true),
        ("eu", "eu/a/1", true),
        ("eu/a", "eu/a/1", true),
        ("eu/a/1", "eu/a/1", true),
        ("eu/a/1", "eu/a", false),
        ("eu/a/2", "eu/a/1", false),
        ("e", "eu/a/1", false),
        ("eu/*", "", false),
    ] {
        assert_eq!(covers(pattern, locality), wanted, "{pattern} {locality}");
    }
}

/// How the load falls, in percent by group, and which groups are in panic.
fn loads(groups: &[(usize, usize)], minimum: u32) -> (Vec<u32>, Vec<bool>) {
    let health: Vec<Health> =
        groups.iter().map(|(healthy, all)| Health { all: *all, healthy: *healthy }).collect();
    let mut loads = vec![0; groups.len()];
    let mut panic = vec![false; groups.len()];
    for random in 0..100 {
        let chosen = by_priority(&health, minimum, random);
        loads[chosen.group] += 1;
        panic[chosen.group] |= chosen.panic;
    }
    (loads, panic)
}

/// The examples of Envoy's documentation of priority levels, two and three of them.
#[test]
fn a_priority_keeps_its_load_until_too_few_of_it_are_healthy() {
    for (first, second, wanted) in [
        (100, 100, [100, 0]),
        (72, 100, [100, 0]),
        (71, 100, [99, 1]),
        (50, 100, [70, 30]),
        (25, 100, [35, 65]),
        (25, 25, [50, 50]),
        (0, 100, [0, 100]),
        (0, 20, [0, 100]),
    ] {
        assert_eq!(loads(&[(first, 100), (second, 100)], 0).0, wanted, "{first} {second}");
    }
    assert_eq!(loads(&[(20, 100), (20, 100), (10, 100)], 0).0, [40, 40, 20]);
    assert_eq!(loads(&[(20, 100), (20, 100), (100, 100)], 0).0, [28, 28, 44]);
    assert_eq!(loads(&[(0, 3), (0, 3)], 0), (vec![100, 0], vec![false, false]), "nobody, and no panic");
}

#[test]
fn panic_is_only_where_the_whole_cannot_take_the_load() {
    assert_eq!(loads(&[(40, 100)], 50).1, [true]);
    assert_eq!(loads(&[(60, 100)], 50).1, [false]);
    assert_eq!(loads(&[(40, 100), (100, 100)], 50).1, [false, false], "together they are healthy enough");
    assert_eq!(loads(&[(5, 100), (65, 100)], 50).1, [true, false]);
    assert_eq!(loads(&[(0, 25), (0, 75)], 50), (vec![25, 75], vec![true, true]), "all of it, by size");
}

#[test]
fn shares_shrink_with_the_health_of_their_group() {
    let spread = |healthy: [usize; 2], minimum| {
        let health = healthy.map(|healthy| Health { all: 10, healthy });
        let mut counts = [0_u32; 2];
        for random in 0..10_000 {
            if let Some(chosen) = by_share(&[80, 20], &health, minimum, random) {
                counts[chosen.group] += 1;
            }
        }
        counts
    };
    assert_eq!(spread([10, 10], 0), [8_000, 2_000]);
    assert_eq!(spread([8, 8], 0), [8_000, 2_000]);
    assert_eq!(spread([0, 10], 0), [0, 10_000]);
    assert_eq!(spread([0, 0], 0), [0, 0]);
    assert_eq!(spread([0, 0], 10), [8_000, 2_000], "panic");
}

proptest::proptest! {
    #[test]
    fn all_load_goes_somewhere_and_never_to_a_group_without_health(
        groups in proptest::collection::vec((0_usize..20, 1_usize..20), 1..5),
    ) {
        let groups: Vec<_> = groups.into_iter().map(|(healthy, all)| (healthy.min(all), all)).collect();
        let (loads, panic) = loads(&groups, 0);
        proptest::prop_assert!(!panic.contains(&true));
        if groups.iter().any(|(healthy, _)| *healthy > 0) {
            for ((healthy, _), load) in groups.iter().zip(&loads) {
                proptest::prop_assert!(*healthy > 0 || *load == 0, "{:?} {:?}", groups, loads);
            }
        }
    }

    #[test]
    fn every_endpoint_is_in_one_group_of_a_failover(localities in proptest::collection::vec("(eu|us)/[ab]/[12]", 0..10)) {
        let localities: Vec<&str> = localities.iter().map(String::as_str).collect();
        let settings = Locality { enabled: true, ..Locality::default() };
        let Groups::Priorities(groups) = divide(&settings, true, &at("eu/a/1"), list(&localities)) else {
            unreachable!()
        };
        let mut all: Vec<u32> = groups.concat();
        all.sort_unstable();
        proptest::prop_assert_eq!(all, (0..localities.len() as u32).collect::<Vec<_>>());
    }
}
