use super::probe::{Facts, machine};
use super::*;
use crate::admin::Timestamp;

fn good() -> Facts {
    Facts {
        release: Some("6.18.2-amd64".into()),
        capabilities: Some(u64::MAX),
        mounts:
            "sysfs /sys sysfs rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw 0 0\nbpf /sys/fs/bpf bpf rw 0 0\n"
                .into(),
        btf: true,
    }
}

fn style() -> Style {
    Style { colour: false, wide: false, now: Timestamp(0) }
}

#[test]
fn a_good_machine_passes_all() {
    assert!(machine(&good()).iter().all(|check| check.outcome == Outcome::Pass));
}

#[test]
fn each_missing_thing_fails_alone_with_its_remedy() {
    let cases: Vec<(Facts, &str)> = vec![
        (Facts { release: Some("5.10.0-21".into()), ..good() }, "kernel"),
        (Facts { release: Some("4.19".into()), ..good() }, "kernel"),
        (Facts { release: None, ..good() }, "kernel"),
        (Facts { capabilities: Some(!(1 << 12)), ..good() }, "CAP_NET_ADMIN"),
        (Facts { capabilities: Some(!(1 << 21)), ..good() }, "CAP_SYS_ADMIN"),
        (Facts { btf: false, ..good() }, "BTF"),
        (
            Facts {
                mounts: "cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\nbpf /sys/fs/bpf bpf rw 0 0".into(),
                ..good()
            },
            "cgroup v2",
        ),
    ];
    for (facts, name) in cases {
        let failed: Vec<Check> =
            machine(&facts).into_iter().filter(|check| check.outcome == Outcome::Fail).collect();
        assert_eq!(failed.len(), 1, "{name}: {failed:?}");
        assert_eq!(failed[0].name, name);
        assert!(failed[0].remedy.as_ref().is_some_and(|remedy| !remedy.is_empty()));
    }
    let unmounted = Facts { mounts: "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n".into(), ..good() };
    assert_eq!(machine(&unmounted).last().unwrap().outcome, Outcome::Warn);
}

#[test]
fn the_exit_code_tells_a_bad_machine_from_an_absent_agent() {
    let absent = Check::fail("agent", "answers", "no", "start it");
    let broken = Check::fail("machine", "BTF", "no", "other kernel");
    let fine = Check::pass("machine", "kernel", "6.18");
    assert_eq!(exit(std::slice::from_ref(&fine), false), Exit::Good);
    assert_eq!(exit(&[fine.clone(), absent.clone()], true), Exit::Unreachable);
    assert_eq!(exit(&[fine.clone(), broken.clone(), absent], true), Exit::No);
    assert_eq!(exit(&[fine, broken], false), Exit::No);
}

#[test]
fn checks_are_grouped_and_failures_say_what_to_do() {
    let bad = Facts { btf: false, capabilities: Some(0), ..good() };
    let mut checks = machine(&bad);
    checks.push(Check::pass("agent", "answers", "/run/nodemesh/admin.sock"));
    insta::assert_snapshot!("check", draw(&checks, style()));
    insta::assert_snapshot!("check_good", draw(&machine(&good()), style()));
}
