use super::*;

#[test]
fn releases_are_read_as_distributions_write_them() {
    assert_eq!(parse_release("6.18.44-fc-v669"), (6, 18));
    assert_eq!(parse_release("5.15.0-1061-aws"), (5, 15));
    assert_eq!(parse_release("5.4"), (5, 4));
    assert_eq!(parse_release("6.1-rc3"), (6, 1));
    assert_eq!(parse_release("unknown"), (0, 0));
}

#[test]
fn a_folder_outside_the_bpf_file_system_is_refused() {
    let error = bpf_dir(Path::new("/run/nodemesh-no-bpffs/x")).unwrap_err();
    assert!(matches!(error, CaptureError::NotBpffs { .. }), "{error}");
    assert!(!Path::new("/run/nodemesh-no-bpffs").exists());
}

/// Inside a container the first mount is the container's own group, which no program can be attached to the root of.
#[test]
fn the_root_is_found_beside_a_containers_own_group() {
    let mounts = "cgroup /sys/fs/cgroup cgroup2 ro 0 0\ncgroup2 /host/cgroup cgroup2 ro 0 0\n";
    let inner = |path: &Path| path == Path::new("/sys/fs/cgroup");
    assert_eq!(choose_cgroup2(mounts, inner), Some("/host/cgroup".into()));
    assert_eq!(choose_cgroup2(mounts, |_| true), Some("/sys/fs/cgroup".into()), "named in the error");
    assert_eq!(choose_cgroup2("proc /proc proc rw 0 0\n", |_| false), None);
}
