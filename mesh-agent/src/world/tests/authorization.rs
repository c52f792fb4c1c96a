//! Reference section 4.1, one test for each numbered rule that has a meaning on a connection.

use super::*;

const ALLOW_WEB: &str = "{rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]}]}";
const DENY_WEB: &str =
    "{action: DENY, rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]}]}";
const CUSTOM_WEB: &str =
    "{action: CUSTOM, provider: {name: x}, rules: [{from: [{source: {principals: ['*/sa/web']}}]}]}";

fn reasons(policies: &[(&str, &str)]) -> (Option<Reason>, Option<Reason>) {
    let texts: Vec<String> = policies.iter().map(|(name, spec)| authz(name, spec)).collect();
    let world = world(&texts);
    (from(&world, Some("web"), 8080).reason, from(&world, Some("api"), 8080).reason)
}

/// One policy with these rules: does the client `web` (or plaintext) match them on port 8080?
fn matches(rules: &str, client: Option<&str>) -> bool {
    let world = world(&[authz("p", &format!("{{action: DENY, rules: [{rules}]}}"))]);
    !from(&world, client, 8080).allowed
}

#[test]
fn rule_1_custom_then_deny_then_allow_and_audit_never() {
    use Reason::{PolicyDenied, PolicyNotAllowed};
    assert_eq!(reasons(&[]), (None, None), "nothing restricts");
    assert_eq!(reasons(&[("a", ALLOW_WEB)]), (None, Some(PolicyNotAllowed)));
    assert_eq!(reasons(&[("a", ALLOW_WEB), ("d", DENY_WEB)]), (Some(PolicyDenied), Some(PolicyNotAllowed)));
    assert_eq!(reasons(&[("d", DENY_WEB)]), (Some(PolicyDenied), None));
    assert_eq!(
        reasons(&[("a", "{rules: [{}]}"), ("c", CUSTOM_WEB)]),
        (Some(PolicyDenied), None),
        "no provider"
    );
    assert_eq!(reasons(&[("u", "{action: AUDIT, rules: [{}]}")]), (None, None));
    assert_eq!(reasons(&[("u", "{action: AUDIT, rules: [{}]}"), ("a", ALLOW_WEB)]).1, Some(PolicyNotAllowed));
}

#[test]
fn rule_2_no_rules_and_one_empty_rule() {
    use Reason::{PolicyDenied, PolicyNotAllowed};
    assert_eq!(reasons(&[("a", "{}")]).0, Some(PolicyNotAllowed), "allow nothing");
    assert_eq!(reasons(&[("a", "{rules: []}")]).0, Some(PolicyNotAllowed));
    assert_eq!(reasons(&[("a", "{rules: [{}]}")]).0, None, "allow all");
    assert_eq!(reasons(&[("a", "{action: DENY, rules: [{}]}")]).0, Some(PolicyDenied), "deny all");
    assert_eq!(reasons(&[("a", "{action: DENY}")]).0, None, "deny nothing");
    let bare =
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a, namespace: shop}\n";
    assert_eq!(from(&world(&[bare.to_owned()]), Some("web"), 8080).reason, Some(PolicyNotAllowed), "no spec");
}

#[test]
fn rule_3_fields_are_anded_values_are_ored() {
    let web = Some("web");
    for (rule, want) in [
        ("{from: [{source: {namespaces: [x, shop]}}]}", true),
        ("{from: [{source: {namespaces: [shop], principals: [x]}}]}", false),
        ("{from: [{source: {namespaces: [x]}}, {source: {namespaces: [shop]}}]}", true),
        ("{from: [{source: {namespaces: [shop]}}], to: [{operation: {ports: ['1']}}]}", false),
        ("{to: [{operation: {ports: ['1']}}, {operation: {ports: ['8080', '2']}}]}", true),
        ("{to: [{operation: {ports: ['8080'], notPorts: ['8080']}}]}", false),
        ("{to: [{operation: {notPorts: ['1', '2']}}]}", true),
        ("{when: [{key: source.namespace, values: [shop]}, {key: destination.port, values: ['1']}]}", false),
        ("{when: [{key: source.namespace, values: [shop], notValues: [shop]}]}", false),
        ("{when: [{key: source.namespace, notValues: [x]}]}", true),
        ("{when: [{key: source.ip, values: [10.1.0.0/24]}]}", true),
        ("{when: [{key: source.ip, values: [10.1.0.0/24], notValues: [10.1.0.1]}]}", false),
        (
            "{when: [{key: destination.ip, values: [10.1.0.2]}, {key: destination.port, values: ['8080']}]}",
            true,
        ),
        ("{when: [{key: source.principal, values: ['cluster.local/ns/shop/*']}]}", true),
        ("{when: [{key: source.serviceAccount, values: [web]}]}", true),
        ("{when: [{key: source.trustDomain, values: [cluster.local]}]}", true),
        ("{when: [{key: source.trustDomain, values: [other]}]}", false),
        ("{from: [{source: {ipBlocks: [10.1.0.1], notIpBlocks: [10.1.0.0/30]}}]}", false),
        ("{from: [{source: {trustDomains: ['cluster.*']}}]}", true),
    ] {
        assert_eq!(matches(rule, web), want, "{rule}");
    }
}

#[test]
fn rule_4_patterns_and_accounts() {
    for (source, want) in [
        ("{principals: [cluster.local/ns/shop/sa/web]}", true),
        ("{principals: ['cluster.local/ns/shop/*']}", true),
        ("{principals: ['*/sa/web']}", true),
        ("{principals: ['*']}", true),
        ("{principals: ['cluster.local/ns/*/sa/web']}", false),
        ("{principals: [cluster-local/ns/shop/sa/web]}", false),
        ("{serviceAccounts: [web]}", true),
        ("{serviceAccounts: [shop/web]}", true),
        ("{serviceAccounts: [other/web]}", false),
        ("{notServiceAccounts: [web]}", false),
    ] {
        assert_eq!(matches(&format!("{{from: [{{source: {source}}}]}}"), Some("web")), want, "{source}");
    }
}

/// CVE-2026-39350: a `.` in an account's name matched any character.
#[test]
fn rule_4_a_dot_in_an_account_is_a_dot() {
    for (name, want) in [("a.b", true), ("a-b", false), ("aXb", false)] {
        let rule = "{from: [{source: {serviceAccounts: [a.b]}}, {source: {principals: ['*/sa/a.b']}}]}";
        assert_eq!(matches(rule, Some(name)), want, "{name}");
    }
}

#[test]
fn rule_5_plaintext_has_no_identity() {
    for (source, want) in [
        ("{principals: ['*']}", false),
        ("{namespaces: ['*']}", false),
        ("{serviceAccounts: [web]}", false),
        ("{trustDomains: ['*']}", false),
        ("{notPrincipals: ['*']}", true),
        ("{notNamespaces: ['*']}", true),
        ("{notServiceAccounts: [web]}", true),
        ("{ipBlocks: [10.1.0.1]}", true),
    ] {
        assert_eq!(matches(&format!("{{from: [{{source: {source}}}]}}"), None), want, "{source}");
    }
}

#[test]
fn rule_6_http_fields_skip_an_allow_rule_and_widen_a_deny_rule() {
    use Reason::{PolicyDenied, PolicyNotAllowed};
    let allow = "{rules: [{from: [{source: {namespaces: [shop]}}], to: [{operation: {methods: [GET]}}]}]}";
    assert_eq!(reasons(&[("a", allow)]).0, Some(PolicyNotAllowed));
    let second =
        "{rules: [{to: [{operation: {paths: ['/x']}}]}, {from: [{source: {serviceAccounts: [web]}}]}]}";
    assert_eq!(reasons(&[("a", second)]), (None, Some(PolicyNotAllowed)), "only the rule is skipped");
    for deny in [
        "{action: DENY, rules: [{from: [{source: {serviceAccounts: [web]}}], to: [{operation: {methods: [GET]}}]}]}",
        "{action: DENY, rules: [{from: [{source: {serviceAccounts: [web]}}], to: [{operation: {notPaths: ['/x']}}]}]}",
        "{action: DENY, rules: [{from: [{source: {serviceAccounts: [web], requestPrincipals: ['*']}}]}]}",
        "{action: DENY, rules: [{when: [{key: 'request.headers[x]', values: [a]}, {key: source.serviceAccount, values: [web]}]}]}",
    ] {
        assert_eq!(reasons(&[("d", deny)]), (Some(PolicyDenied), None), "{deny}");
    }
    let port = "{action: DENY, rules: [{to: [{operation: {methods: [GET], ports: ['1']}}]}]}";
    assert_eq!(reasons(&[("d", port)]).0, None, "the part that is no HTTP still counts");
}

#[test]
fn rule_7_scopes() {
    let deny = |selector: &str| authz("p", &format!("{{action: DENY, rules: [{{}}]{selector}}}"));
    let root = |text: String| text.replace("namespace: shop", "namespace: istio-system");
    let other = |text: String| text.replace("namespace: shop", "namespace: other");
    let app = |name: &str| format!(", selector: {{matchLabels: {{app: {name}}}}}");
    for (text, shop, ext) in [
        (deny(""), true, false),
        (deny(&app("reviews")), true, false),
        (deny(&app("web")), false, false),
        (deny(", selector: {matchLabels: {app: reviews, version: v2}}"), false, false),
        (deny(", selector: {}"), true, false),
        (root(deny("")), true, true),
        (root(deny(&app("reviews"))), true, true),
        (root(deny(&app("web"))), false, false),
        (other(deny("")), false, true),
    ] {
        let world = world(std::slice::from_ref(&text));
        assert_eq!(!from(&world, Some("web"), 8080).allowed, shop, "{text}");
        let dst = world.pod("other", "ext").unwrap();
        let facts = ConnFacts {
            peer: None,
            source_ip: [10, 1, 0, 1].into(),
            destination: ([10, 2, 0, 9], 80).into(),
        };
        assert_eq!(!judge(&world, dst, &facts).allowed, ext, "{text}");
    }
}

#[test]
fn rule_8_a_service_target_covers_its_pods_however_they_are_addressed() {
    let deny =
        authz("p", "{action: DENY, rules: [{}], targetRefs: [{kind: Service, group: '', name: reviews}]}");
    let mut world = world(std::slice::from_ref(&deny));
    assert!(!from(&world, Some("web"), 8080).allowed);
    assert!(!from(&world, Some("web"), 9999).allowed, "also a port that the Service does not have");
    let api = pod(&world, "api");
    let facts =
        ConnFacts { peer: None, source_ip: [10, 1, 0, 1].into(), destination: ([10, 2, 0, 1], 80).into() };
    assert!(judge(&world, api, &facts).allowed, "another pod of the namespace");
    // Without endpoints it is still the Service's pod by its selector.
    let key = |kind| crate::compile::ObjectKey { kind, namespace: "shop".into(), name: "reviews-1".into() };
    world.apply(Change::Removed(key(Kind::EndpointSlice)));
    assert!(!from(&world, Some("web"), 8080).allowed);
}

#[test]
fn rule_10_ports_are_the_pods_not_the_services() {
    let deny = |port: &str| {
        authz("p", &format!("{{action: DENY, rules: [{{to: [{{operation: {{ports: ['{port}']}}}}]}}]}}"))
    };
    assert!(!from(&world(&[deny("8080")]), Some("web"), 8080).allowed);
    assert!(from(&world(&[deny("80")]), Some("web"), 8080).allowed);
}

#[test]
fn rule_11_an_unknown_key_fails_closed() {
    for action in ["ALLOW", "DENY"] {
        let spec = format!("{{action: {action}, rules: [{{when: [{{key: source.mood, values: [good]}}]}}]}}");
        assert_eq!(reasons(&[("a", &spec)]).0, Some(Reason::PolicyInvalid), "{action}");
    }
}

#[test]
fn rule_12_a_dry_run_is_explained_and_not_enforced() {
    let dry = authz("p", "{action: DENY, rules: [{}]}")
        .replace("namespace: shop", "namespace: shop, annotations: {istio.io/dry-run: 'true'}");
    let world = world(&[dry]);
    assert!(from(&world, Some("web"), 8080).allowed);
    let facts =
        ConnFacts { peer: None, source_ip: [10, 1, 0, 1].into(), destination: ([10, 1, 0, 2], 80).into() };
    let steps = crate::decide::inbound::explain(&world, pod(&world, "reviews"), &facts);
    assert!(
        steps.iter().any(|step| step.matched && !step.enforced && step.why.contains("dry run")),
        "{steps:?}"
    );
}
