//! How a world follows changes: each alone, in any order.

use proptest::prelude::*;

use super::*;
use crate::compile::{Kind, Object, ObjectKey};

fn key(kind: Kind, namespace: &str, name: &str) -> ObjectKey {
    ObjectKey { kind, namespace: namespace.into(), name: name.into() }
}

#[test]
fn a_namespace_takes_its_pods_in_and_out_of_the_mesh() {
    let mut world = world(&[]);
    assert!(pod(&world, "web").enrolled && !world.pod("other", "ext").unwrap().enrolled);
    world.apply(Change::Removed(key(Kind::Namespace, "", "shop")));
    assert!(!pod(&world, "web").enrolled);
    assert!(!world.workload_at([10, 1, 0, 1].into()).unwrap().enrolled, "every view agrees");
    put(&mut world, SHOP.split("---").next().unwrap());
    assert!(pod(&world, "web").enrolled);
}

#[test]
fn host_network_and_ended_pods_own_no_address() {
    for (name, field) in [("a", "spec: {hostNetwork: true, containers: []}"), ("b", "spec: {containers: []}")]
    {
        let phase = if name == "b" { "Succeeded" } else { "Running" };
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop}}\n{field}\nstatus: {{phase: {phase}, podIPs: [{{ip: 10.1.0.77}}]}}\n"
        );
        let world = world(&[text]);
        assert!(world.workload_at([10, 1, 0, 77].into()).is_none(), "{name}");
        assert!(!pod(&world, name).enrolled);
    }
}

#[test]
fn of_two_pods_with_one_address_the_newer_owns_it_until_it_goes() {
    let pod_at = |name: &str, time: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, creationTimestamp: '{time}'}}\nstatus: {{podIPs: [{{ip: 10.1.0.50}}]}}\n"
        )
    };
    let mut world = world(&[pod_at("new", "2025-01-01T00:00:00Z"), pod_at("old", "2024-01-01T00:00:00Z")]);
    let owner = |world: &World| world.workload_at([10, 1, 0, 50].into()).map(|pod| pod.name.to_string());
    assert_eq!(owner(&world).as_deref(), Some("new"));
    world.apply(Change::Removed(key(Kind::Pod, "shop", "new")));
    assert_eq!(owner(&world).as_deref(), Some("old"));
    world.apply(Change::Removed(key(Kind::Pod, "shop", "old")));
    assert_eq!(owner(&world), None);
}

#[test]
fn a_pod_made_again_under_its_name_is_another_workload() {
    let with = |uid: &str, address: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: p, namespace: shop, uid: {uid}}}\nstatus: {{podIPs: [{{ip: {address}}}]}}\n"
        )
    };
    let mut world = world(&[with("u1", "10.1.0.60")]);
    let first = pod(&world, "p").id.clone();
    put(&mut world, &with("u2", "10.1.0.61"));
    assert!(world.workload(&first).is_none());
    assert!(world.workload_at([10, 1, 0, 60].into()).is_none());
    assert_eq!(&*world.workload_at([10, 1, 0, 61].into()).unwrap().id.0, "shop/p/u2");
}

#[test]
fn a_published_world_is_told_of_and_never_changes() {
    let store = WorldStore::new(world(&[]));
    let seen = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let told = Arc::clone(&seen);
    store.on_publish(Box::new(move |version| told.store(version, std::sync::atomic::Ordering::SeqCst)));
    let before = store.load();
    let mut next = (*before).clone();
    next.apply(Change::Removed(key(Kind::Pod, "shop", "web")));
    assert_eq!(store.publish(next), 1);
    assert_eq!(seen.load(std::sync::atomic::Ordering::SeqCst), 1);
    assert!(before.pod("shop", "web").is_some() && store.load().pod("shop", "web").is_none());
}

#[test]
fn findings_between_objects_are_told() {
    let world = world(&[
        authz("p", "{rules: [{}], targetRefs: [{kind: Service, name: nobody}]}"),
        peer("shop", "a", "{}"),
        peer("shop", "b", "{}"),
    ]);
    let found: Vec<_> = world.check(|key| format!("file of {key}")).iter().map(ToString::to_string).collect();
    assert!(found[0].contains("Service shop/nobody does not exist"), "{found:?}");
    assert!(found[1].contains("PeerAuthentication shop/b") && found[1].contains("PeerAuthentication shop/a"));
}

/// A few objects that touch each other, as choices of what to put or remove.
fn changes() -> impl Strategy<Value = Vec<(usize, bool)>> {
    proptest::collection::vec((0_usize..10, proptest::bool::weighted(0.7)), 1..40)
}

fn pool() -> Vec<(ObjectKey, Object)> {
    let extra = r"apiVersion: v1
kind: Pod
metadata: {name: late, namespace: shop, creationTimestamp: '2025-01-01T00:00:00Z', labels: {app: reviews}}
spec: {nodeName: n2, containers: []}
status: {podIPs: [{ip: 10.1.0.2}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: reviews-2, namespace: shop, labels: {kubernetes.io/service-name: reviews}}
addressType: IPv4
endpoints: [{addresses: [10.1.0.2]}, {addresses: [10.1.0.1]}, {addresses: [10.2.0.9]}]
ports: [{name: http, port: 8081}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: reviews-1, namespace: shop, labels: {kubernetes.io/service-name: elsewhere}}
addressType: IPv4
endpoints: [{addresses: [10.1.0.2]}]
ports: [{name: http, port: 8081}]
";
    let mut all = compile(SHOP).objects;
    all.extend(compile(extra).objects);
    all
}

/// All that readers can see.
fn view(world: &World) -> Vec<String> {
    let mut lines: Vec<String> = world.workloads().map(|workload| format!("{workload:?}")).collect();
    lines.extend(world.services().map(|service| format!("{service:?}")));
    for last in ["10.1.0.1", "10.1.0.2", "10.2.0.1", "10.2.0.9", "10.96.0.1"] {
        let address = last.parse().unwrap();
        lines.push(format!("{last} {:?} {:?}", world.workload_at(address), world.service_at(address)));
    }
    for workload in world.workloads() {
        lines.push(format!("{} {}", workload.id, world.serves("shop", "reviews", workload)));
    }
    lines
}

proptest! {
    #[test]
    fn change_by_change_ends_where_building_anew_ends(steps in changes()) {
        let pool = pool();
        let mut world = World::new(MeshSettings::default());
        let mut last: std::collections::BTreeMap<ObjectKey, Object> = Default::default();
        for (index, put) in steps {
            let (key, object) = pool[index].clone();
            if put {
                last.insert(key.clone(), object.clone());
                world.apply(Change::Put(key, Box::new(object)));
            } else {
                last.remove(&key);
                world.apply(Change::Removed(key));
            }
        }
        let mut anew = World::new(MeshSettings::default());
        // Worst order: what is derived comes before what it is derived from.
        for (key, object) in last.into_iter().rev() {
            anew.apply(Change::Put(key, Box::new(object)));
        }
        prop_assert_eq!(view(&world), view(&anew));
    }
}
