//! What is told of pods' namespaces, and what is forgotten. The namespace is the test's own: entering it needs root, as
//! everything of capture does.

use super::*;

fn id(name: &str) -> WorkloadId {
    WorkloadId(format!("shop/{name}/uid").into())
}

/// The CNI plugin's word holds before any address is known elsewhere, and as long as the addresses agree.
#[test]
fn what_was_told_holds_while_it_fits() {
    let netns = Arc::new(NetNs::current().unwrap());
    let [v4, v6, other]: [IpAddr; 3] =
        ["10.0.0.7".parse().unwrap(), "fd00::7".parse().unwrap(), "10.0.0.8".parse().unwrap()];
    let mut namespaces = PodNamespaces::default();
    namespaces.told(&id("one"), vec![v4, v6], Arc::clone(&netns)).unwrap();
    for known in [&[][..], &[v4], &[v6, v4]] {
        let (found, addresses) = namespaces.get(&id("one"), known).unwrap();
        assert_eq!((found, addresses), (Namespace::Open(Arc::clone(&netns)), vec![v4, v6]), "{known:?}");
    }
    assert!(namespaces.get(&id("one"), &[other]).is_none());
    assert!(namespaces.get(&id("two"), &[]).is_none());
}

/// What is let go of is closed: a namespace that the agent holds open does not end with its pod.
#[test]
fn what_is_forgotten_is_closed() {
    let netns = Arc::new(NetNs::current().unwrap());
    let mut namespaces = PodNamespaces::default();
    for name in ["one", "two"] {
        namespaces.told(&id(name), Vec::new(), Arc::clone(&netns)).unwrap();
    }
    namespaces.forget(&id("one"));
    assert_eq!(Arc::strong_count(&netns), 2);
    namespaces.retain(|other| *other != id("two"));
    assert_eq!(Arc::strong_count(&netns), 1);
}
