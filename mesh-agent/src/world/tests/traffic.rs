//! Whose rules and policies hold for whom (reference sections 4.3 and 4.4).

use std::time::Duration;

use super::*;
use crate::compile::{Kind, ObjectKey};
use crate::decide::Destination;
use crate::model::route::{Backend, RuleAction};
use crate::model::traffic::LoadBalance;

const NETWORKING: &str = "apiVersion: networking.istio.io/v1\n";

/// A VirtualService that answers with its own name, so that one sees which rule took a request.
fn routes(namespace: &str, name: &str, spec: &str) -> String {
    let http = format!("http: [{{name: {namespace}-{name}, directResponse: {{status: 200}}}}]");
    let spec = if spec.contains("http:") { spec.to_owned() } else { format!("{spec}, {http}") };
    format!(
        "{NETWORKING}kind: VirtualService\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{spec}}}\n"
    )
}

fn rule(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "{NETWORKING}kind: DestinationRule\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{spec}}}\n"
    )
}

const REVIEWS: &str = "reviews.shop.svc.cluster.local";

/// The names of the rules that this pod (`NAMESPACE/NAME`) meets at a port of reviews.
fn met(world: &World, client: &str, port: u16) -> Vec<String> {
    let service = world.service_by_host(REVIEWS, "shop").unwrap();
    let (namespace, name) = client.split_once('/').unwrap();
    let source = world.pod(namespace, name).unwrap();
    world.http_rules(source, service, port).iter().map(|rule| rule.origin.rule.to_string()).collect()
}

fn web(world: &World) -> Vec<String> {
    met(world, "shop/web", 80)
}

#[test]
fn export_to_says_which_clients_meet_the_rules() {
    for (spec, own, other) in [
        ("hosts: [reviews]", true, true),
        ("hosts: [reviews], exportTo: ['*']", true, true),
        ("hosts: [reviews], exportTo: [.]", true, false),
        ("hosts: [reviews], exportTo: [other]", false, true),
        ("hosts: [reviews], exportTo: [., other]", true, true),
        ("hosts: [reviews], exportTo: ['~']", false, false),
    ] {
        let world = world(&[routes("shop", "a", spec)]);
        assert_eq!(met(&world, "shop/web", 80).len(), usize::from(own), "{spec}");
        assert_eq!(met(&world, "other/ext", 80).len(), usize::from(other), "{spec}");
        let service = world.service_by_host(REVIEWS, "shop").unwrap();
        assert_eq!(world.has_http_rules(service), own || other, "{spec}");
    }
}

#[test]
fn a_short_host_means_the_namespace_of_the_rule_and_not_of_the_client() {
    let elsewhere = world(&[routes("other", "a", "hosts: [reviews]")]);
    assert!(met(&elsewhere, "other/ext", 80).is_empty() && web(&elsewhere).is_empty());
    let full = world(&[routes("other", "a", &format!("hosts: [{REVIEWS}]"))]);
    assert_eq!(web(&full), ["other-a"], "anybody may write rules for a host by its full name");
    let dotted = world(&[routes("shop", "a", "hosts: [reviews.shop]")]);
    assert!(web(&dotted).is_empty(), "a name with a dot is not completed");
}

#[test]
fn of_the_hosts_that_cover_a_service_the_narrowest_counts_and_of_one_host_the_oldest_comes_first() {
    let matched = |name: &str, created: &str| {
        routes(
            "shop",
            name,
            &format!("hosts: [reviews], http: [{{name: {name}, match: [{{method: {{exact: {name}}}}}], directResponse: {{status: 200}}}}]"),
        )
        .replace("namespace: shop", &format!("namespace: shop, creationTimestamp: '{created}'"))
    };
    let mut world = world(&[
        routes("shop", "all", "hosts: ['*']"),
        routes("shop", "wide", "hosts: ['*.cluster.local']"),
        routes("shop", "wild", "hosts: ['*.shop.svc.cluster.local']"),
    ]);
    assert_eq!(web(&world), ["shop-wild"]);
    put(&mut world, &matched("b", "2024-01-01T00:00:00Z"));
    put(&mut world, &matched("a", "2025-01-01T00:00:00Z"));
    assert_eq!(web(&world), ["b", "a"], "one host's rules are merged, the oldest first");
    let all = matched("c", "2024-06-01T00:00:00Z").replace("match: [{method: {exact: c}}], ", "");
    put(&mut world, &all);
    assert_eq!(web(&world), ["b", "c"], "nothing follows a rule that takes everything");
    for name in ["a", "b", "c", "wild"] {
        let key = ObjectKey { kind: Kind::VirtualService, namespace: "shop".into(), name: name.into() };
        assert!(world.apply(Change::Removed(key.clone())));
        assert!(!world.apply(Change::Removed(key)), "nothing is left to remove");
    }
    assert_eq!(web(&world), ["shop-wide"]);
}

#[test]
fn a_port_keeps_only_the_matches_that_are_for_it() {
    let world = world(&[routes(
        "shop",
        "a",
        "hosts: [reviews], http: [{name: x, match: [{port: 81}], directResponse: {status: 200}}, \
         {name: y, match: [{port: 80, method: {exact: GET}}, {port: 81}], directResponse: {status: 200}}, \
         {name: z, directResponse: {status: 200}}]",
    )]);
    assert_eq!(web(&world), ["y", "z"]);
    assert!(met(&world, "shop/web", 81).is_empty(), "reviews has no such port");
    let service = world.service_by_host(REVIEWS, "shop").unwrap();
    let rules = world.http_rules(pod(&world, "web"), service, 80);
    assert_eq!(rules[0].matches.len(), 1);
}

#[test]
fn a_delegate_s_rules_stand_where_the_root_delegates_and_follow_both_objects() {
    let root = routes(
        "shop",
        "root",
        "hosts: [reviews], http: [{match: [{uri: {prefix: /a}}], timeout: 3s, delegate: {name: inner, namespace: other}}, \
         {name: rest, directResponse: {status: 404}}]",
    );
    let inner = |matched: &str| {
        format!(
            "{NETWORKING}kind: VirtualService\nmetadata: {{name: inner, namespace: other}}\nspec: {{http: [{{name: inner, {matched}directResponse: {{status: 200}}}}]}}\n"
        )
    };
    let mut world = world(&[root]);
    assert_eq!(web(&world), ["rest"], "a delegate that does not exist has no rules");
    put(&mut world, &inner(""));
    assert_eq!(web(&world), ["inner", "rest"]);
    let service = world.service_by_host(REVIEWS, "shop").unwrap();
    let rules = world.http_rules(pod(&world, "web"), service, 80);
    assert_eq!(
        rules[0].timeout,
        Some(Duration::from_secs(3)),
        "what the delegate leaves unsaid is the root's"
    );
    assert_eq!(rules[0].matches.len(), 1);
    put(&mut world, &inner("match: [{uri: {prefix: /b}}], "));
    assert_eq!(web(&world), ["rest"], "outside the root's match");
    put(&mut world, &inner("match: [{uri: {prefix: /a/b}}], "));
    assert_eq!(web(&world), ["inner", "rest"]);
    let key = ObjectKey { kind: Kind::VirtualService, namespace: "other".into(), name: "inner".into() };
    world.apply(Change::Removed(key));
    assert_eq!(web(&world), ["rest"]);
    let hidden = inner("").replace("spec: {", "spec: {exportTo: [.], ");
    put(&mut world, &hidden);
    assert_eq!(web(&world), ["rest"], "it is not exported to the root's namespace");
}

fn balance(world: &World, client: &str) -> LoadBalance {
    let service = world.service_by_host(REVIEWS, "shop").unwrap();
    let (namespace, name) = client.split_once('/').unwrap();
    let to = Destination { service, port: 80, subset: None };
    world.traffic(world.pod(namespace, name).unwrap(), &to).unwrap().balance.clone()
}

fn simple(namespace: &str, name: &str, host: &str, algorithm: &str, more: &str) -> String {
    rule(
        namespace,
        name,
        &format!("host: '{host}', trafficPolicy: {{loadBalancer: {{simple: {algorithm}}}}}{more}"),
    )
}

#[test]
fn a_policy_is_the_client_s_namespace_s_then_the_service_s_then_the_root_s() {
    let mut world = world(&[simple("istio-system", "r", "*.cluster.local", "RANDOM", "")]);
    assert_eq!(balance(&world, "shop/web"), LoadBalance::Random);
    put(&mut world, &simple("shop", "s", "reviews", "PASSTHROUGH", ""));
    assert_eq!(balance(&world, "shop/web"), LoadBalance::Passthrough);
    assert_eq!(balance(&world, "other/ext"), LoadBalance::Passthrough, "the Service's namespace");
    put(&mut world, &simple("other", "o", "*.shop.svc.cluster.local", "ROUND_ROBIN", ""));
    assert_eq!(
        balance(&world, "other/ext"),
        LoadBalance::RoundRobin,
        "its own namespace, though less specific"
    );
    assert_eq!(balance(&world, "shop/web"), LoadBalance::Passthrough);
    put(&mut world, &simple("shop", "s", "reviews", "PASSTHROUGH", ", exportTo: [other]"));
    assert_eq!(balance(&world, "shop/web"), LoadBalance::Random, "not exported to its own namespace");
}

#[test]
fn the_most_specific_host_counts_and_a_selector_means_clients_of_the_rule_s_namespace() {
    let mut world = world(&[
        simple("shop", "wide", "*.shop.svc.cluster.local", "RANDOM", ""),
        simple("shop", "narrow", "reviews", "PASSTHROUGH", ""),
    ]);
    assert_eq!(balance(&world, "shop/web"), LoadBalance::Passthrough);
    put(
        &mut world,
        &simple("shop", "picky", "reviews", "ROUND_ROBIN", ", workloadSelector: {matchLabels: {app: web}}"),
    );
    assert_eq!(balance(&world, "shop/web"), LoadBalance::RoundRobin);
    assert_eq!(balance(&world, "shop/api"), LoadBalance::Passthrough);
    put(
        &mut world,
        &simple(
            "shop",
            "picky",
            "reviews",
            "ROUND_ROBIN",
            ", workloadSelector: {matchLabels: {app: reviews}}",
        ),
    );
    assert_eq!(balance(&world, "other/ext"), LoadBalance::Passthrough, "a client of another namespace");
}

#[test]
fn a_subset_is_the_endpoints_with_its_labels_and_follows_their_pods() {
    let subsets =
        "host: reviews, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]";
    let mut world = world(&[rule("shop", "r", subsets)]);
    let count = |world: &World, subset: &str| {
        let service = world.service_by_host(REVIEWS, "shop").unwrap();
        let to = Destination { service, port: 80, subset: Some(subset) };
        let found = world.endpoints(pod(world, "web"), &to, [10, 96, 0, 1].into());
        found.map(|endpoints| endpoints.len()).map_err(|error| error.subset.to_string())
    };
    assert_eq!((count(&world, "v1"), count(&world, "v2")), (Ok(1), Ok(0)));
    assert_eq!(count(&world, "v3"), Err("v3".to_owned()));
    let pods: Vec<&str> =
        SHOP.split("---\n").filter(|text| text.contains("name: reviews, namespace")).collect();
    put(&mut world, &pods[0].replace("version: v1", "version: v2"));
    assert_eq!((count(&world, "v1"), count(&world, "v2")), (Ok(0), Ok(1)));
    let service = world.service_by_host(REVIEWS, "shop").unwrap();
    let to = Destination { service, port: 81, subset: None };
    assert!(world.endpoints(pod(&world, "web"), &to, [10, 96, 0, 1].into()).unwrap().is_empty());
}

#[test]
fn a_subset_s_policy_is_for_those_who_name_it() {
    let world = world(&[rule(
        "shop",
        "r",
        "host: reviews, trafficPolicy: {loadBalancer: {simple: RANDOM}}, \
         subsets: [{name: v1, labels: {version: v1}, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}}]",
    )]);
    let service = world.service_by_host(REVIEWS, "shop").unwrap();
    let policy = |subset| {
        let to = Destination { service, port: 80, subset };
        world.traffic(pod(&world, "web"), &to).map(|policy| policy.balance.clone())
    };
    assert_eq!(
        policy(None).unwrap(),
        LoadBalance::Random,
        "the Service's own endpoints are balanced as before"
    );
    assert_eq!(policy(Some("v1")).unwrap(), LoadBalance::RoundRobin);
    assert_eq!(policy(Some("v2")).unwrap_err().subset, "v2".into());
}

/// What a request looks at are the rules of its own host, and other hosts' come and go without a look at them.
#[test]
fn routes_of_other_hosts_cost_a_request_nothing() {
    let named = |name: &str| {
        format!("{{name: {name}, match: [{{method: {{exact: {name}}}}}], directResponse: {{status: 200}}}}")
    };
    let own = routes("shop", "own", &format!("hosts: [reviews], http: [{}, {}]", named("a"), named("b")));
    let mut world = world(&[own, simple("shop", "r", "reviews", "RANDOM", "")]);
    let looked_at = |world: &World| {
        let service = world.service_by_host(REVIEWS, "shop").unwrap();
        let to = Destination { service, port: 80, subset: None };
        let source = pod(world, "web");
        (world.http_rules(source, service, 80), world.traffic(source, &to).unwrap())
    };
    let (rules, policy) = looked_at(&world);
    assert_eq!(rules.len(), 2);
    for number in 0..1_000 {
        let host = format!("host-{number}");
        put(&mut world, &routes("shop", &host, &format!("hosts: [{host}], http: [{}]", named("x"))));
        put(&mut world, &simple("shop", &host, &format!("{host}.shop.svc.cluster.local"), "RANDOM", ""));
    }
    let (after, policy_after) = looked_at(&world);
    assert!(Arc::ptr_eq(&rules, &after), "they have not even been derived again");
    assert!(Arc::ptr_eq(&policy, &policy_after));
}

#[test]
fn rules_that_come_before_their_service_hold_once_it_is_there() {
    let mut world = World::new(MeshSettings::default());
    put(&mut world, &routes("shop", "a", "hosts: [reviews]"));
    put(&mut world, &simple("shop", "r", "reviews", "RANDOM", ""));
    put(&mut world, SHOP);
    assert_eq!((web(&world), balance(&world, "shop/web")), (vec!["shop-a".to_owned()], LoadBalance::Random));
}

/// The guide's own manifests, beside a Service of the name they use.
#[test]
fn the_guide_s_canary_goes_to_the_subsets_of_its_hosts() {
    let texts = include_str!("../../compile/golden/traffic.yaml");
    let canary = texts.split("---\n").find(|text| text.contains("canary-deployment")).unwrap();
    let mut world = world(&[canary.to_owned()]);
    put(
        &mut world,
        "apiVersion: v1\nkind: Service\nmetadata: {name: myapp}\nspec: {clusterIPs: [10.96.0.9], ports: [{name: http, port: 80}]}\n",
    );
    let service = world.service_by_host("myapp.default", "shop").unwrap();
    let rules = world.http_rules(pod(&world, "web"), service, 80);
    let subsets = |rule: usize| {
        let RuleAction::Forward(backends) = &rules[rule].action else { panic!() };
        let named = backends.iter().map(|one| match &one.backend {
            Backend::Host { host, subset: Some(subset), .. } => {
                assert_eq!(&**host, "myapp.default.svc.cluster.local");
                (one.weight, subset.to_string())
            }
            other => panic!("{other:?}"),
        });
        named.collect::<Vec<_>>()
    };
    assert_eq!(subsets(0), [(1, "canary".to_owned())]);
    assert_eq!(subsets(1), [(90, "stable".to_owned()), (10, "canary".to_owned())]);
}

fn mesh_config(lines: &[&str]) -> String {
    let lines: String = lines.iter().map(|line| format!("    {line}\n")).collect();
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: nodemesh, namespace: nodemesh-system}}\ndata:\n  mesh: |\n{lines}"
    )
}

/// `meshConfig` says what holds where no DestinationRule says otherwise, for Services with one and without.
#[test]
fn the_mesh_s_defaults_hold_where_nobody_says_otherwise() {
    const SHARES: &str = "localityLbSetting: {distribute: [{from: '*', to: {eu: 100}}]}";
    const REGIONS: &str = "localityLbSetting: {failover: [{from: eu, to: us}]}";
    let policy = |world: &World| {
        let service = world.service_by_host(REVIEWS, "shop").unwrap();
        let to = Destination { service, port: 80, subset: None };
        world.traffic(pod(world, "web"), &to).unwrap().locality.clone()
    };
    let outlier = "host: reviews, trafficPolicy: {outlierDetection: {}}";
    let own = "host: reviews, trafficPolicy: {outlierDetection: {}, loadBalancer: {localityLbSetting: {failoverPriority: [a]}}}";
    for (spec, mesh, enabled, parts) in [
        (None, SHARES, true, (1, 0, 0)),
        // Nothing says which endpoints have failed.
        (None, REGIONS, false, (0, 1, 0)),
        (Some(outlier), REGIONS, true, (0, 1, 0)),
        (Some(outlier), SHARES, true, (1, 0, 0)),
        (Some(outlier), "localityLbSetting: {enabled: false}", false, (0, 0, 0)),
        (Some(own), REGIONS, true, (0, 0, 1)),
        (Some(outlier), "{}", true, (0, 0, 0)),
    ] {
        let mut world = world(&[]);
        if let Some(spec) = spec {
            put(&mut world, &rule("shop", "d", spec));
        }
        put(&mut world, &mesh_config(&[mesh]));
        let found = policy(&world);
        let counts = (found.distribute.len(), found.failover.len(), found.priority.len());
        assert_eq!((found.enabled, counts), (enabled, parts), "{spec:?} {mesh}");
    }
    let mut world = world(&[]);
    assert_eq!(world.defaults().retry.attempts, 2);
    put(&mut world, &mesh_config(&["defaultHttpRetryPolicy: {attempts: 5, retryOn: '5xx'}"]));
    let retry = world.defaults().retry.clone();
    assert_eq!((retry.attempts, retry.on.server_error, retry.on.connect_failure), (5, true, false));
    // One that is refused leaves what was before; none at all is Istio's own.
    put(&mut world, &mesh_config(&["defaultHttpRetryPolicy: {attempts: 1, retryOn: often}"]));
    assert_eq!(world.defaults().retry.attempts, 5);
    world.apply(Change::Removed(crate::compile::mesh_config::key()));
    assert_eq!(world.defaults().retry.attempts, 2);
}
