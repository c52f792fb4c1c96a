use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn address(last: u8) -> IpAddr {
    [192, 0, 2, last].into()
}

fn some(last: u8, ttl: u64) -> Outcome {
    Outcome::Addresses(vec![address(last)], SECOND * u32::try_from(ttl).unwrap())
}

fn nothing(ttl: u64) -> Outcome {
    Outcome::Nothing(Duration::from_secs(ttl))
}

fn failed() -> Outcome {
    Outcome::Failed("nobody there".to_owned())
}

/// A schedule for one name that has just been asked for.
fn asked(now: Instant) -> Schedule {
    let mut schedule = Schedule::new(8, 8, Hits::default());
    schedule.follow([Arc::from("a.example")].iter(), now);
    assert_eq!(schedule.take_due(now, 8).len(), 1);
    assert!(schedule.take_due(now + REFRESH_MAX, 8).is_empty(), "it is being asked for");
    schedule
}

/// Answer after answer to one name: its addresses then (none = nothing new is said), and the shortest and longest time
/// in milliseconds until it is asked for again.
#[test]
fn what_an_answer_changes_and_when_the_next_is_wanted() {
    type Step = ([Outcome; 2], Option<&'static [u8]>, (u64, u64));
    let cases: &[(&str, &[Step])] = &[
        ("the shorter of two times", &[([some(1, 30), some(2, 20)], Some(&[1, 2]), (20_000, 20_000))]),
        ("what is missing hurries nobody", &[([some(1, 30), nothing(5)], Some(&[1]), (30_000, 30_000))]),
        ("no time is the mesh's", &[([some(1, 0), some(2, 0)], Some(&[1, 2]), (60_000, 60_000))]),
        ("an hour at most", &[([some(1, 9999), some(2, 9999)], Some(&[1, 2]), (3_600_000, 3_600_000))]),
        (
            "a failure keeps what is known, and is repeated with growing pauses",
            &[
                ([some(1, 30), nothing(600)], Some(&[1]), (30_000, 30_000)),
                ([failed(), failed()], None, (500, 1000)),
                ([failed(), failed()], None, (1000, 2000)),
                ([failed(), failed()], None, (2000, 4000)),
                ([some(3, 5), nothing(600)], Some(&[3]), (5000, 5000)),
                ([failed(), failed()], None, (500, 1000)),
            ],
        ),
        (
            "one family fails",
            &[
                ([some(1, 30), some(2, 30)], Some(&[1, 2]), (30_000, 30_000)),
                ([some(4, 30), failed()], Some(&[4, 2]), (500, 1000)),
            ],
        ),
        (
            "a name that goes has no endpoints any more",
            &[
                ([some(1, 30), nothing(600)], Some(&[1]), (30_000, 30_000)),
                ([nothing(0), nothing(600)], Some(&[]), (5000, 5000)),
                ([nothing(20), nothing(30)], Some(&[]), (20_000, 20_000)),
            ],
        ),
    ];
    for (name, steps) in cases {
        let mut now = Instant::now();
        let mut schedule = asked(now);
        for (index, (families, wanted, (least, most))) in steps.iter().enumerate() {
            for random in [0, 1023, 512] {
                let answer = Answer { families: families.clone() };
                let mut copy = Schedule { names: BTreeMap::new(), ..Schedule::new(8, 8, Hits::default()) };
                let known = &schedule.names["a.example"];
                copy.names.insert(
                    "a.example".into(),
                    Known { families: known.families.clone(), due: known.due, ..*known },
                );
                let found = copy.answered("a.example", answer, now, random);
                let found = found.map(|all| all.to_vec());
                let wanted = wanted.map(|all| all.iter().map(|last| address(*last)).collect::<Vec<_>>());
                assert_eq!(found, wanted, "{name}, step {index}");
                let wait = copy.next_due().unwrap() - now;
                let range = Duration::from_millis(*least)..=Duration::from_millis(*most);
                assert!(range.contains(&wait), "{name}, step {index}: {wait:?}");
                if random == 512 {
                    schedule = copy;
                }
            }
            now = schedule.next_due().unwrap();
            assert_eq!(schedule.take_due(now, 8).len(), 1);
        }
    }
}

#[test]
fn names_and_addresses_have_a_limit_each() {
    let now = Instant::now();
    let hits = Hits::default();
    let mut schedule = Schedule::new(2, 3, hits.clone());
    let names: Vec<Arc<str>> = ["a.example", "b.example", "c.example"].map(Arc::from).to_vec();
    assert_eq!(schedule.follow(names.iter(), now), 1);
    assert_eq!(hits.count(Limit::DnsNames), 1);
    assert_eq!(schedule.take_due(now, 1), [Arc::from("a.example")]);
    assert_eq!(schedule.take_due(now, 9), [Arc::from("b.example")]);
    let many = Outcome::Addresses((0..5).map(address).collect(), SECOND);
    let answer = Answer { families: [many, nothing(60)] };
    assert_eq!(schedule.answered("a.example", answer.clone(), now, 0).unwrap().len(), 3);
    assert_eq!(hits.count(Limit::DnsAddresses), 1);
    assert_eq!(schedule.answered("c.example", answer, now, 0), None, "nobody asked");
    // Who goes makes room; who comes back within an answer's time is known.
    assert_eq!(schedule.follow(names[1..].iter(), now), 0);
    assert_eq!(schedule.addresses("a.example"), None);
}
