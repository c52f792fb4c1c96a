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
fn a_kernel_below_the_floor_is_named_with_what_is_needed() {
    for old in ["5.14.21-default", "4.19.0-27-amd64", "2.6.78", "unknown"] {
        let error = check_release(old).unwrap_err().to_string();
        assert_eq!(
            error,
            format!("this kernel is {old}, capture needs 5.15 or newer: upgrade the node's kernel")
        );
    }
    for (release, has_set_retval) in
        [("5.15.0", false), ("5.17.9", false), ("5.18.0", true), ("6.1.0-rc3", true)]
    {
        assert_eq!(check_release(release).unwrap().has_set_retval, has_set_retval, "{release}");
    }
}

#[test]
fn a_cgroup_below_the_root_and_a_folder_that_is_none_are_refused() {
    let root = cgroup_root(None).unwrap();
    let group = root.join(format!("nodemesh-host-test-{}", std::process::id()));
    fs::create_dir(&group).unwrap();
    let found = cgroup_root(Some(&group));
    fs::remove_dir(&group).unwrap();
    assert!(matches!(&found, Err(CaptureError::NotCgroupRoot { path }) if *path == group), "{found:?}");
    assert!(matches!(cgroup_root(Some(Path::new("/tmp"))), Err(CaptureError::NoCgroupV2)));
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
    let root = |path: &Path| path == Path::new("/host/cgroup");
    assert_eq!(choose_cgroup2(mounts, &|_| true, &root), Some("/host/cgroup".into()));
    assert_eq!(
        choose_cgroup2(mounts, &|_| true, &|_| false),
        Some("/sys/fs/cgroup".into()),
        "named in the error"
    );
    assert_eq!(choose_cgroup2("proc /proc proc rw 0 0\n", &|_| true, &|_| false), None);
}
