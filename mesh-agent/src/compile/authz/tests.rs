use super::*;
use crate::compile::fixture::{self, findings};
use crate::model::policy::{PathTemplate, Values};

fn one(spec: &str) -> AuthzPolicy {
    policy(&fixture::authz("p", spec))
}

fn policy(text: &str) -> AuthzPolicy {
    match fixture::compile(text).objects.pop() {
        Some((_, Object::AuthorizationPolicy(policy))) => policy,
        other => panic!("{other:?}"),
    }
}

/// What an author gets wrong, and the field that the finding names.
const BROKEN: &[(&str, &str)] = &[
    ("{action: PERMIT}", "spec.action"),
    ("{sepc: 1}", "spec.sepc"),
    ("{rules: [{form: []}]}", "spec.rules[0].form"),
    ("{rules: [{from: []}]}", "spec.rules[0].from"),
    ("{rules: [{to: []}]}", "spec.rules[0].to"),
    ("{rules: [{when: []}]}", "spec.rules[0].when"),
    ("{rules: [{from: }]}", "spec.rules[0].from"),
    ("{rules: [null]}", "spec.rules[0]"),
    ("{rules: }", "spec.rules"),
    ("{rules: [{from: [{}]}]}", "spec.rules[0].from[0].source"),
    ("{rules: [{from: [{source: {}}]}]}", "spec.rules[0].from[0].source"),
    ("{rules: [{from: [{source: {principals: []}}]}]}", "spec.rules[0].from[0].source.principals"),
    ("{rules: [{from: [{source: {notPrincipals: []}}]}]}", "spec.rules[0].from[0].source.notPrincipals"),
    ("{rules: [{from: [{source: {principals: ['']}}]}]}", "spec.rules[0].from[0].source.principals[0]"),
    (
        "{rules: [{from: [{source: {principals: ['spiffe://a/ns/b/sa/c']}}]}]}",
        "spec.rules[0].from[0].source.principals[0]",
    ),
    (
        "{rules: [{from: [{source: {ipBlocks: ['10.0.0.0/33']}}]}]}",
        "spec.rules[0].from[0].source.ipBlocks[0]",
    ),
    (
        "{rules: [{from: [{source: {ipBlocks: ['10.0.0.0/8', x]}}]}]}",
        "spec.rules[0].from[0].source.ipBlocks[1]",
    ),
    (
        "{rules: [{from: [{source: {serviceAccounts: ['shop/*']}}]}]}",
        "spec.rules[0].from[0].source.serviceAccounts[0]",
    ),
    (
        "{rules: [{from: [{source: {serviceAccounts: ['a/b/c']}}]}]}",
        "spec.rules[0].from[0].source.serviceAccounts[0]",
    ),
    (
        "{rules: [{from: [{source: {serviceAccounts: [a], namespaces: [b]}}]}]}",
        "spec.rules[0].from[0].source.serviceAccounts",
    ),
    (
        "{rules: [{from: [{source: {remoteIpBlocks: [x]}}]}]}",
        "spec.rules[0].from[0].source.remoteIpBlocks[0]",
    ),
    ("{rules: [{to: [{operation: {ports: ['0']}}]}]}", "spec.rules[0].to[0].operation.ports[0]"),
    ("{rules: [{to: [{operation: {ports: ['80-90']}}]}]}", "spec.rules[0].to[0].operation.ports[0]"),
    ("{rules: [{to: [{operation: {ports: ['+80']}}]}]}", "spec.rules[0].to[0].operation.ports[0]"),
    ("{rules: [{to: [{operation: {ports: [80]}}]}]}", "spec.rules[0].to[0].operation.ports[0]"),
    ("{rules: [{to: [{operation: {ports: '80'}}]}]}", "spec.rules[0].to[0].operation.ports"),
    ("{rules: [{to: [{operation: {methods: []}}]}]}", "spec.rules[0].to[0].operation.methods"),
    ("{rules: [{to: [{operation: {notHosts: ['']}}]}]}", "spec.rules[0].to[0].operation.notHosts[0]"),
    ("{rules: [{when: [{key: 'request.headers[a b]', values: [a]}]}]}", "spec.rules[0].when[0].key"),
    ("{rules: [{when: [{key: remote.ip, values: [here]}]}]}", "spec.rules[0].when[0].values[0]"),
    ("{rules: [{when: [{key: source.planet, values: [a]}]}]}", "spec.rules[0].when[0].key"),
    ("{rules: [{when: [{key: 'request.headers[]', values: [a]}]}]}", "spec.rules[0].when[0].key"),
    ("{rules: [{when: [{key: source.ip}]}]}", "spec.rules[0].when[0]"),
    ("{rules: [{when: [{values: [a]}]}]}", "spec.rules[0].when[0]"),
    ("{rules: [{when: [{key: source.ip, values: []}]}]}", "spec.rules[0].when[0].values"),
    ("{selector: {matchExpressions: []}}", "spec.selector.matchExpressions"),
    ("{selector: {matchLabels: {app: 'web*'}}}", "spec.selector.matchLabels.app"),
    ("{selector: {matchLabels: {app: 1}}}", "spec.selector.matchLabels.app"),
    ("{targetRefs: []}", "spec.targetRefs"),
    ("{targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: g}]}", "spec.targetRefs[0].kind"),
    ("{targetRefs: [{kind: Service, name: s, namespace: other}]}", "spec.targetRefs[0].namespace"),
    ("{selector: {matchLabels: {a: b}}, targetRefs: [{kind: Service, name: s}]}", "spec.targetRefs"),
    ("{action: CUSTOM, rules: [{}]}", "spec.provider.name"),
    ("{provider: {name: x}}", "spec.provider"),
];

#[test]
fn whatever_is_not_understood_makes_the_policy_deny_and_names_the_field() {
    for (spec, field) in BROKEN {
        let compiled = fixture::compile(&fixture::authz("p", spec));
        let [(_, Object::AuthorizationPolicy(policy))] = compiled.objects.as_slice() else {
            panic!("{spec}")
        };
        assert!(policy.invalid.is_some(), "{spec} was accepted");
        assert!(policy.rules.is_empty() && policy.action == AuthzAction::Deny, "{spec}");
        let found = compiled.diagnostics.iter().find(|d| d.field == *field);
        let found =
            found.unwrap_or_else(|| panic!("{spec}: {field} is not named: {:?}", compiled.diagnostics));
        assert_eq!(
            (found.object.as_str(), found.source.as_str()),
            ("AuthorizationPolicy shop/p", "test.yaml:1")
        );
        assert!(!found.message.is_empty() && !found.remedy.is_empty() && !found.effect.is_empty(), "{spec}");
    }
}

#[test]
fn every_unknown_field_is_named_not_only_the_first() {
    let text = fixture::authz("p", "{one: 1, rules: [{two: 2}]}");
    let found = findings(&text);
    assert!(
        found.iter().any(|f| f.contains("spec.one")) && found.iter().any(|f| f.contains("spec.rules[0].two"))
    );
    let text = text.replace("spec:", "spce:");
    assert!(policy(&text).invalid.is_some(), "a slip above spec");
}

#[test]
fn a_broken_policy_denies_as_narrowly_as_can_be_told() {
    let selected = one("{selector: {matchLabels: {app: web}}, bad: 1}").scope;
    assert_eq!(selected.selector.unwrap().get("app").unwrap(), "web");
    assert_eq!(one("{selector: {matchLabels: {app: [web]}}}").scope.selector, None);
    let attached = one("{targetRefs: [{kind: Service, name: web}], bad: 1}").scope;
    assert_eq!(attached.services, ["web".into()]);
    let gateway = one("{targetRefs: [{kind: Gateway, name: g}]}").scope;
    assert_eq!((gateway.services.len(), gateway.namespace.as_deref()), (0, Some("shop")));
    let root = policy(&fixture::authz("p", "{bad: 1}").replace("namespace: shop", "namespace: istio-system"));
    assert_eq!(root.scope.namespace, None, "mesh-wide");
    assert_eq!(one("{action: AUDIT, bad: 1}").action, AuthzAction::Audit);
}

#[test]
fn only_served_versions_of_the_right_group_are_understood() {
    for (version, good) in [
        ("security.istio.io/v1", true),
        ("security.istio.io/v1beta1", true),
        ("security.istio.io/v1alpha1", false),
        ("security.istio.io/v2", false),
        ("networking.istio.io/v1", false),
        ("v1", false),
    ] {
        let text = fixture::authz("p", "{rules: [{}]}").replace("security.istio.io/v1", version);
        assert_eq!(policy(&text).invalid.is_none(), good, "{version}");
    }
    let slip = policy(&fixture::authz("p", "{rules: [{}]}").replace("kind: Auth", "kind: Autho"));
    assert!(slip.invalid.is_some(), "an unknown kind of the security group");
}

/// CVE-2025-64715: an empty set was read as an absent field.
#[test]
fn an_empty_list_never_becomes_no_restriction() {
    let fields =
        ["principals", "namespaces", "serviceAccounts", "ipBlocks", "trustDomains", "requestPrincipals"];
    for field in fields {
        for action in ["ALLOW", "DENY"] {
            let spec = format!("{{action: {action}, rules: [{{from: [{{source: {{{field}: []}}}}]}}]}}");
            assert!(one(&spec).invalid.is_some(), "{spec}");
        }
    }
    // No rules at all is Istio's own «nothing», not an empty list of restrictions.
    let nothing = one("{rules: []}");
    assert!(nothing.invalid.is_none() && nothing.rules.is_empty() && nothing.action == AuthzAction::Allow);
}

#[test]
fn an_account_without_a_namespace_is_of_the_policys_own() {
    let policy = one("{rules: [{from: [{source: {serviceAccounts: [web, other/api]}}]}]}");
    let accounts = &policy.rules[0].from[0].service_accounts.any;
    assert_eq!(accounts, &[("shop".into(), "web".into()), ("other".into(), "api".into())]);
}

#[test]
fn dry_run_takes_only_a_clear_yes() {
    let with = |value: &str| {
        fixture::authz("p", "{}").replace(
            "namespace: shop}",
            &format!("namespace: shop, annotations: {{istio.io/dry-run: {value}}}}}"),
        )
    };
    assert!(policy(&with("'true'")).dry_run);
    assert!(!policy(&with("'false'")).dry_run);
    assert!(!policy(&with("'yes'")).dry_run);
    assert!(findings(&with("'yes'")).iter().any(|f| f.contains("istio.io/dry-run")));
}

#[test]
fn fields_of_requests_are_kept_with_their_values() {
    let text = |text: &str| StringMatch::Exact(text.into());
    let policy = one("{action: DENY, rules: [{from: [{source: {notRemoteIpBlocks: [10.0.0.0/8]}}], \
        to: [{operation: {paths: ['/a*', '/%2fb', '/c/{*}/{**}/d'], notMethods: [GET], hosts: ['Shop.Example'], ports: ['80']}}], \
        when: [{key: 'request.headers[X-Tenant]', values: [Blue]}, {key: remote.ip, values: [10.0.0.1]}, \
        {key: connection.sni, notValues: [a]}]}]}");
    let rule = &policy.rules[0];
    assert_eq!(rule.from[0].remote_ip_blocks.none, ["10.0.0.0/8".parse().unwrap()]);
    let operation = &rule.to[0];
    assert_eq!(
        (&operation.methods.none, &operation.hosts.any),
        (&vec![text("GET")], &vec![text("shop.example")])
    );
    let template = PathTemplate { segments: vec![Some("c".into()), None], rest: Some("/d".into()) };
    assert_eq!(
        operation.paths.any,
        [
            PathPattern::Text(StringMatch::Prefix("/a".into())),
            PathPattern::Text(text("/%2Fb")),
            PathPattern::Template(template)
        ]
    );
    let blue = Values { any: vec![text("Blue")], none: vec![] };
    assert_eq!(rule.when[0], Condition::Header("x-tenant".into(), blue), "a name has no case, a value has");
    assert!(policy.invalid.is_none());
}

#[test]
fn what_never_matches_is_announced() {
    for (spec, said) in [
        ("{rules: [{from: [{source: {requestPrincipals: ['*']}}]}]}", "allows nothing"),
        (
            "{action: DENY, rules: [{when: [{key: 'request.auth.claims[iss]', values: [a]}]}]}",
            "counts as matched",
        ),
        ("{rules: [{to: [{operation: {paths: ['api/*']}}]}]}", "matches no request"),
        ("{rules: [{to: [{operation: {notPaths: ['/api?x=1']}}]}]}", "matches no request"),
    ] {
        let found = findings(&fixture::authz("p", spec));
        assert!(found.iter().any(|f| f.starts_with("warning") && f.contains(said)), "{spec}: {found:?}");
    }
    let good = "{rules: [{to: [{operation: {paths: ['/api/*', '*.html', '*'], methods: [GET]}}]}]}";
    assert_eq!(findings(&fixture::authz("p", good)), Vec::<String>::new());
}

/// The examples of Istio's reference.
#[test]
fn a_template_has_its_operators_alone_in_a_segment_and_two_stars_last() {
    for bad in [
        "/*/baz/{*}",
        "/**/baz/{*}",
        "/{**}/foo/{*}",
        "/{**}/foo/{**}",
        "/foo/{*}.txt",
        "/{a}/{*}",
        "foo/{*}",
    ] {
        let spec = format!("{{rules: [{{to: [{{operation: {{paths: ['{bad}']}}}}]}}]}}");
        let found = findings(&fixture::authz("p", &spec));
        assert!(
            found.iter().any(|f| f.contains("spec.rules[0].to[0].operation.paths[0]")),
            "{bad}: {found:?}"
        );
        assert!(one(&spec).invalid.is_some(), "{bad}");
    }
}
