//! What `check` says between objects of traffic.

use super::*;

fn found(texts: &[&str]) -> Vec<String> {
    let texts: Vec<String> =
        texts.iter().map(|text| format!("apiVersion: networking.istio.io/v1\n{text}\n")).collect();
    let world = world(&texts);
    world.check(|key| format!("{}.yaml", key.name)).iter().map(ToString::to_string).collect()
}

#[test]
fn names_that_mean_nothing_and_rules_that_never_hold_are_found() {
    let route = "http: [{route: [{destination: {host: reviews, subset: v1}}]}]";
    for (texts, expected) in [
        (
            vec![
                "kind: VirtualService\nmetadata: {name: a, namespace: shop}\nspec: {hosts: [nothing], http: [{directResponse: {status: 200}}]}",
            ],
            "warning: a.yaml: VirtualService shop/a: spec.hosts[0]: `nothing.shop.svc.cluster.local` is the host of no Service",
        ),
        (
            vec!["kind: DestinationRule\nmetadata: {name: a, namespace: shop}\nspec: {host: nothing}"],
            "warning: a.yaml: DestinationRule shop/a: spec.host: `nothing.shop.svc.cluster.local` is the host of no Service",
        ),
        (
            vec![&*format!(
                "kind: VirtualService\nmetadata: {{name: a, namespace: shop}}\nspec: {{hosts: [reviews], {route}}}"
            )],
            "warning: a.yaml: VirtualService shop/a: spec.http[0].route: no DestinationRule gives reviews.shop.svc.cluster.local a subset `v1`",
        ),
        (
            vec![
                "kind: VirtualService\nmetadata: {name: a, namespace: shop}\nspec: {hosts: [reviews], http: [{route: [{destination: {host: gone}}]}]}",
            ],
            "warning: a.yaml: VirtualService shop/a: spec.http[0].route: gone.shop.svc.cluster.local does not exist",
        ),
        (
            vec![
                "kind: VirtualService\nmetadata: {name: a, namespace: shop}\nspec: {hosts: [reviews], http: [{delegate: {name: b}}]}",
            ],
            "warning: a.yaml: VirtualService shop/a: spec.http[0].delegate: VirtualService shop/b is no delegate",
        ),
        (
            vec![
                "kind: VirtualService\nmetadata: {name: a, namespace: shop}\nspec: {hosts: [reviews], http: [{directResponse: {status: 200}}]}",
                "kind: VirtualService\nmetadata: {name: b, namespace: shop}\nspec: {hosts: [reviews], http: [{directResponse: {status: 200}}]}",
            ],
            "warning: b.yaml: VirtualService shop/b: spec.hosts[0]: reviews.shop.svc.cluster.local is also a host of VirtualService shop/a",
        ),
    ] {
        let all = found(&texts);
        assert!(all.len() == 1 && all[0].starts_with(expected), "{texts:?}: {all:?}");
    }
    let good = [
        "kind: DestinationRule\nmetadata: {name: d, namespace: shop}\nspec: {host: reviews, subsets: [{name: v1, labels: {version: v1}}]}",
        &format!(
            "kind: VirtualService\nmetadata: {{name: a, namespace: shop}}\nspec: {{hosts: [reviews], {route}}}"
        ),
    ];
    assert_eq!(found(&good), Vec::<String>::new());
}
