use super::super::fixture::{put, world};
use crate::decide::Snapshot;

#[test]
fn a_host_is_found_by_every_name_that_a_pod_s_resolver_would_try() {
    let world = world(&[]);
    for (host, from, found) in [
        ("reviews", "shop", true),
        ("reviews", "other", false),
        ("reviews.shop", "other", true),
        ("reviews.shop.svc", "other", true),
        ("reviews.shop.svc.cluster.local", "other", true),
        ("reviews.shop.svc.cluster.local.", "other", true),
        ("Reviews.Shop:80", "other", true),
        ("reviews:80", "shop", true),
        ("reviews.shop.pod", "shop", false),
        ("reviews.shop.svc.cluster", "shop", false),
        ("reviews.shop.svc.example.org", "shop", false),
        ("", "shop", false),
        (".", "shop", false),
    ] {
        assert_eq!(world.service_by_host(host, from).is_some(), found, "{host} from {from}");
    }
}

#[test]
fn a_service_that_is_gone_has_no_host() {
    let mut world = world(&[]);
    let key = crate::compile::ObjectKey {
        kind: crate::compile::Kind::Service,
        namespace: "shop".into(),
        name: "reviews".into(),
    };
    world.apply(super::super::Change::Removed(key));
    assert!(world.service_by_host("reviews.shop", "shop").is_none());
    put(&mut world, super::super::fixture::SHOP);
    assert!(world.service_by_host("reviews.shop", "shop").is_some());
}
