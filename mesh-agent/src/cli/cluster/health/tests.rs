use super::*;

fn from<T: serde::de::DeserializeOwned>(yaml: &str) -> T {
    serde_saphyr::from_str(yaml).unwrap()
}

#[test]
fn the_api_servers_version_is_read_as_it_prints_it() {
    for (text, outcome) in [
        ("v1.36.3", Outcome::Pass),
        ("v1.31.0-gke.12", Outcome::Pass),
        ("v1.30.9+k3s1", Outcome::Fail),
        ("v0.0.0-master+$Format:%H$", Outcome::Fail),
        ("unknown", Outcome::Warn),
    ] {
        assert_eq!(judge_server(text).outcome, outcome, "{text}");
    }
}

#[test]
fn a_node_with_an_old_kernel_fails_and_one_without_linux_is_left_out() {
    let node = |kernel: &str, os: &str| -> Node {
        from(&format!(
            "metadata: {{name: a}}\nstatus: {{nodeInfo: {{kernelVersion: '{kernel}', operatingSystem: {os}, \
             architecture: amd64, bootID: b, containerRuntimeVersion: containerd://2.0, kubeProxyVersion: '', \
             kubeletVersion: v1, machineID: m, osImage: o, systemUUID: u}}}}\n"
        ))
    };
    assert_eq!(judge_node(&node("6.18.1-generic", "linux")).outcome, Outcome::Pass);
    assert_eq!(judge_node(&node("5.10.0", "linux")).outcome, Outcome::Fail);
    assert_eq!(judge_node(&node("10.0.17763", "windows")).outcome, Outcome::Warn);
    assert_eq!(judge_node(&from("metadata: {name: a}")).outcome, Outcome::Warn);
}

/// Ready pods of the old version are no finished rollout, and a status from before the change says nothing.
#[test]
fn a_daemonset_is_well_when_every_node_runs_the_last_version() {
    let set = |generation: i64, ready: i32, updated: i32| -> DaemonSet {
        from(&format!(
            "metadata: {{name: nodemesh-agent, generation: 3}}\nstatus: {{observedGeneration: {generation}, \
             currentNumberScheduled: 2, desiredNumberScheduled: 2, numberMisscheduled: 0, numberReady: {ready}, \
             updatedNumberScheduled: {updated}}}\n"
        ))
    };
    let outcome = |set: Option<&DaemonSet>| judge_daemonset(AGENT, "mesh", set).outcome;
    assert_eq!(outcome(Some(&set(3, 2, 2))), Outcome::Pass);
    assert_eq!(outcome(Some(&set(3, 2, 1))), Outcome::Warn);
    assert_eq!(outcome(Some(&set(3, 1, 2))), Outcome::Fail);
    assert_eq!(outcome(Some(&set(2, 2, 2))), Outcome::Warn);
    assert_eq!(outcome(None), Outcome::Fail);
}

#[test]
fn without_a_ready_controller_no_certificate_is_renewed() {
    let deployment = |ready: i32| -> Deployment {
        from(&format!(
            "metadata: {{name: c}}\nspec: {{replicas: 2, selector: {{}}, template: {{}}}}\nstatus: {{readyReplicas: {ready}}}\n"
        ))
    };
    let outcome = |found: Option<&Deployment>| judge_controller("mesh", found).outcome;
    assert_eq!(outcome(Some(&deployment(2))), Outcome::Pass);
    assert_eq!(outcome(Some(&deployment(1))), Outcome::Warn);
    assert_eq!(outcome(Some(&deployment(0))), Outcome::Fail);
    assert_eq!(outcome(None), Outcome::Fail);
}
