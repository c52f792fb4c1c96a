use super::*;

const UID: &str = "1b4e28ba-2fa1-11d2-883f-0016d3cca427";
const ID: &str = "7e0a6a2f8b9b6f0d3c5a1e2d4f60718293a4b5c6d7e8f90112233445566778aa";

fn pod(uid: &str) -> Option<Owner> {
    Some(Owner::Pod(uid.to_owned()))
}

#[test]
fn every_form_that_kubelets_and_runtimes_write_is_read() {
    let under = UID.replace('-', "_");
    for path in [
        format!("0::/kubepods/burstable/pod{UID}/{ID}"),
        format!("0::/kubepods/pod{UID}/{ID}"),
        format!("12:pids:/kubepods/besteffort/pod{UID}/{ID}"),
        format!(
            "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{under}.slice/cri-containerd-{ID}.scope"
        ),
        format!("0::/kubepods.slice/kubepods-pod{under}.slice/crio-{ID}.scope/container"),
        format!(
            "1:name=systemd:/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{under}.slice:cri-containerd:{ID}"
        ),
        format!(
            "0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{under}.slice/docker-{ID}.scope"
        ),
        format!("0::/system.slice/kubelet/kubepods/pod{UID}/{ID}"),
        // From inside a cgroup namespace.
        format!("0::/../../pod{UID}/{ID}"),
        format!("0::/../pod{}/x", UID.to_uppercase()),
    ] {
        assert_eq!(owner(&path), pod(UID), "{path}");
    }
}

#[test]
fn a_static_pods_uid_has_no_dashes() {
    let uid = "0123456789abcdef0123456789abcdef";
    assert_eq!(owner(&format!("0::/kubepods/burstable/pod{uid}/{ID}")), pod(uid));
}

#[test]
fn a_container_is_known_by_its_id_where_no_group_names_the_pod() {
    for path in [
        format!("0::/k8s.io/{ID}"),
        format!("0::/system.slice/docker-{ID}.scope"),
        format!("5:cpu:/{ID}/sub"),
    ] {
        assert_eq!(owner(&path), Some(Owner::Container(ID.to_owned())), "{path}");
    }
}

#[test]
fn the_pod_is_found_in_whichever_hierarchy_names_it() {
    let text = format!("13:misc:/\n12:pids:/{ID}\n4:cpu,cpuacct:/kubepods/pod{UID}/{ID}\n0::/\n");
    assert_eq!(owner(&text), pod(UID));
}

#[test]
fn a_name_that_a_pod_gave_to_a_group_of_its_own_does_not_count() {
    let victim = "99999999-2fa1-11d2-883f-0016d3cca427";
    let path = format!("0::/kubepods/pod{UID}/{ID}/pod{victim}");
    assert_eq!(owner(&path), pod(UID));
    let path = format!("0::/k8s.io/{ID}/pod{victim}");
    assert_eq!(owner(&path), Some(Owner::Container(ID.to_owned())), "the container's group is the outer one");
}

#[test]
fn processes_of_the_node_belong_to_nobody() {
    for path in [
        "0::/",
        "0::/system.slice/kubelet.service",
        "0::/user.slice/user-0.slice/session-1.scope",
        "0::/kubepods.slice",
        "0::/kubepods/burstable/podman",
        "0::/tripod1b4e28ba-2fa1-11d2-883f-0016d3cca427",
        "0::/pod1b4e28ba-2fa1-11d2-883f-0016d3cca42",
        "garbage",
        "",
    ] {
        assert_eq!(owner(path), None, "{path}");
    }
}
