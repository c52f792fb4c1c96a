use proptest::prelude::*;

use super::*;
use crate::decide::fixture::{Mesh, from_blocks, from_principal, policy, workload};
use crate::model::PeerAuth;
use crate::model::policy::{AuthzRule, AuthzScope, Condition, Operation, Source, StringMatch, Values};

fn facts<'a>(peer: Option<&'a Identity>, source: &str) -> ConnFacts<'a> {
    let destination = "10.1.0.1:8080".parse().unwrap();
    ConnFacts { peer, source_ip: source.parse().unwrap(), destination }
}

fn mesh(policies: Vec<AuthzPolicy>) -> Mesh {
    Mesh { authz: policies.into_iter().map(std::sync::Arc::new).collect(), ..Mesh::default() }
}

/// CVE-2024-47825: a CIDR deny was lost under a narrower allow.
#[test]
fn a_deny_of_any_width_beats_an_allow_of_any_width() {
    let dst = workload("shop", "web", "n1", "10.1.0.1");
    for deny in ["0.0.0.0/0", "10.0.0.0/8", "10.2.3.4/32"] {
        for allow in ["0.0.0.0/0", "10.0.0.0/8", "10.2.3.4/32"] {
            let world = mesh(vec![
                policy("a", AuthzAction::Allow, vec![from_blocks(&[allow], &[])]),
                policy("b", AuthzAction::Deny, vec![from_blocks(&[deny], &[])]),
            ]);
            let verdict = judge(&world, &dst, &facts(None, "10.2.3.4"));
            assert_eq!(verdict.reason, Some(Reason::PolicyDenied), "deny {deny} allow {allow}");
        }
    }
}

/// CVE-2020-16844: a TCP DENY with a `*-suffix` principal never denied. Every shape, both actions.
#[test]
fn every_shape_of_a_principal_works_in_deny_and_in_allow() {
    let dst = workload("shop", "web", "n1", "10.1.0.1");
    let peer = Identity::new("cluster.local", "shop", "api").unwrap();
    let text = |text: &str| std::sync::Arc::from(text);
    for (pattern, matches) in [
        (StringMatch::Exact(text("cluster.local/ns/shop/sa/api")), true),
        (StringMatch::Exact(text("cluster.local/ns/shop/sa/ap")), false),
        (StringMatch::Prefix(text("cluster.local/ns/sho")), true),
        (StringMatch::Prefix(text("cluster.local/ns/shops")), false),
        (StringMatch::Suffix(text("/sa/api")), true),
        (StringMatch::Suffix(text("-api")), false),
        (StringMatch::Present, true),
    ] {
        let deny = mesh(vec![policy("p", AuthzAction::Deny, vec![from_principal(pattern.clone())])]);
        let allow = mesh(vec![policy("p", AuthzAction::Allow, vec![from_principal(pattern.clone())])]);
        assert_eq!(judge(&deny, &dst, &facts(Some(&peer), "10.2.3.4")).allowed, !matches, "DENY {pattern:?}");
        assert_eq!(
            judge(&allow, &dst, &facts(Some(&peer), "10.2.3.4")).allowed,
            matches,
            "ALLOW {pattern:?}"
        );
        // Plaintext has no principal: neither matches.
        assert!(judge(&deny, &dst, &facts(None, "10.2.3.4")).allowed);
        assert!(!judge(&allow, &dst, &facts(None, "10.2.3.4")).allowed);
    }
}

#[test]
fn a_broken_policy_denies_whatever_others_allow_and_an_audit_never_does() {
    let dst = workload("shop", "web", "n1", "10.1.0.1");
    for action in [AuthzAction::Allow, AuthzAction::Deny, AuthzAction::Custom] {
        let broken = AuthzPolicy { invalid: Some("spec: ?".to_owned()), ..policy("z", action, vec![]) };
        let world = mesh(vec![policy("a", AuthzAction::Allow, vec![AuthzRule::default()]), broken]);
        let verdict = judge(&world, &dst, &facts(None, "10.2.3.4"));
        assert_eq!(verdict.reason, Some(Reason::PolicyInvalid), "{action:?}");
        assert_eq!(verdict.rule.unwrap().policy.name.as_ref(), "z");
    }
    let audit = AuthzPolicy { invalid: Some("?".to_owned()), ..policy("z", AuthzAction::Audit, vec![]) };
    let matching = policy("y", AuthzAction::Audit, vec![AuthzRule::default()]);
    assert!(judge(&mesh(vec![audit, matching]), &dst, &facts(None, "10.2.3.4")).allowed);
}

#[test]
fn an_identity_on_the_deny_list_is_refused_as_client_and_as_server_whatever_policy_allows() {
    let dst = workload("shop", "web", "n1", "10.1.0.1");
    let peer = Identity::new("cluster.local", "shop", "api").unwrap();
    for denied in [&peer, &dst.identity] {
        let allow = policy("a", AuthzAction::Allow, vec![AuthzRule::default()]);
        let world = Mesh { denied: vec![denied.clone()], ..mesh(vec![allow]) };
        let facts = facts(Some(&peer), "10.2.3.4");
        assert_eq!(judge(&world, &dst, &facts).reason, Some(Reason::IdentityDenied), "{denied}");
        let steps = explain(&world, &dst, &facts);
        assert_eq!((steps[0].stage, steps[0].verdict.is_some()), (Stage::DenyList, true));
    }
    let other = Mesh { denied: vec![peer], ..mesh(vec![]) };
    assert!(judge(&other, &dst, &facts(None, "10.2.3.4")).allowed);
}

#[test]
fn an_explanation_names_every_policy_and_goes_on_after_the_decision() {
    let dst = workload("shop", "web", "n1", "10.1.0.1");
    let dry = AuthzPolicy { dry_run: true, ..policy("dry", AuthzAction::Deny, vec![AuthzRule::default()]) };
    let world = mesh(vec![
        dry,
        policy("deny", AuthzAction::Deny, vec![from_blocks(&["10.9.0.0/16"], &[]), AuthzRule::default()]),
        policy("allow", AuthzAction::Allow, vec![AuthzRule::default()]),
        policy("audit", AuthzAction::Audit, vec![AuthzRule::default()]),
    ]);
    let steps = explain(&world, &dst, &facts(None, "10.2.3.4"));
    let told: Vec<_> = steps
        .iter()
        .map(|s| {
            (
                s.stage,
                s.policy.as_ref().map(|p| p.name.to_string()),
                s.matched,
                s.enforced,
                s.verdict.is_some(),
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            (Stage::PeerAuthentication, None, false, true, false),
            (Stage::Audit, Some("audit".to_owned()), true, false, false),
            (Stage::Deny, Some("dry".to_owned()), true, false, false),
            (Stage::Deny, Some("deny".to_owned()), false, true, false),
            (Stage::Deny, Some("deny".to_owned()), true, true, true),
            (Stage::Allow, Some("allow".to_owned()), true, false, false),
        ]
    );
}

fn values<T: Clone + std::fmt::Debug + 'static>(
    one: impl Strategy<Value = T> + 'static,
) -> BoxedStrategy<Values<T>> {
    let one = one.boxed();
    (proptest::collection::vec(one.clone(), 0..2), proptest::collection::vec(one, 0..2))
        .prop_map(|(any, none)| Values { any, none })
        .boxed()
}

fn pattern() -> impl Strategy<Value = StringMatch> {
    prop_oneof![
        Just(StringMatch::Present),
        "[ab]{1,2}".prop_map(|text| StringMatch::Exact(format!("td/ns/{text}/sa/a").into())),
        "[ab]{0,2}".prop_map(|text| StringMatch::Prefix(text.into())),
        "[ab]{0,2}".prop_map(|text| StringMatch::Suffix(text.into())),
    ]
}

fn block() -> impl Strategy<Value = ipnet::IpNet> {
    (0_u8..3, 0_u8..=32).prop_map(|(last, length)| {
        ipnet::Ipv4Net::new([10, 0, 0, last].into(), length).unwrap().trunc().into()
    })
}

/// The one text that requests of these tests have, or none.
fn methods(any: bool) -> Values<StringMatch> {
    let get = StringMatch::Exact("GET".into());
    Values { any: if any { vec![get] } else { Vec::new() }, none: Vec::new() }
}

fn rule() -> impl Strategy<Value = AuthzRule> {
    let source =
        (values(pattern()), values(pattern()), values(block()), any::<bool>()).prop_map(|(p, n, b, http)| {
            Source {
                principals: p,
                namespaces: n,
                ip_blocks: b,
                token: if http { vec!["requestPrincipals"] } else { vec![] },
                ..Source::default()
            }
        });
    let operation = (values(8079_u16..8082), any::<bool>()).prop_map(|(ports, http)| Operation {
        ports,
        methods: methods(http),
        ..Operation::default()
    });
    let when = prop_oneof![
        values(block()).prop_map(Condition::SourceIp),
        values(8079_u16..8082).prop_map(Condition::DestinationPort),
        Just(Condition::Header("x".into(), methods(true))),
        Just(Condition::Token("request.auth.presenter".into())),
    ];
    (
        proptest::collection::vec(source, 0..2),
        proptest::collection::vec(operation, 0..2),
        proptest::collection::vec(when, 0..2),
    )
        .prop_map(|(from, to, when)| AuthzRule { from, to, when })
}

fn any_policy() -> impl Strategy<Value = AuthzPolicy> {
    let action = prop_oneof![
        Just(AuthzAction::Allow),
        Just(AuthzAction::Deny),
        Just(AuthzAction::Audit),
        Just(AuthzAction::Custom)
    ];
    let flags = (proptest::bool::weighted(0.1), proptest::bool::weighted(0.2), any::<bool>());
    ("[a-e]", action, proptest::collection::vec(rule(), 0..3), flags).prop_map(
        |(name, action, rules, flags)| {
            let (invalid, dry_run, root) = flags;
            let namespace = if root { None } else { Some("shop".into()) };
            let mut policy = policy(&name, action, rules);
            policy.policy.namespace = if root { "istio-system".into() } else { "shop".into() };
            policy.scope = AuthzScope { namespace, selector: None, services: vec![] };
            AuthzPolicy { invalid: invalid.then(|| "?".to_owned()), dry_run, ..policy }
        },
    )
}

fn request<'a>(method: &'a str, headers: &'a http::HeaderMap, port: u16) -> RequestView<'a> {
    RequestView { method, scheme: "http", authority: "web:8080", path: "/", query: None, headers, port }
}

proptest! {
    /// Three layers, one meaning: what a TCP connection may do some request may, and so for each request.
    #[test]
    fn a_connection_and_its_requests_get_one_answer(
        policies in proptest::collection::vec(any_policy(), 0..5),
        peer in proptest::option::of(("[ab]{1,2}", "[ab]{1,2}")),
        last in 0_u8..4,
        port in 8079_u16..8082,
        method in "GET|PUT",
        tenant in proptest::option::of("GET|x"),
    ) {
        let dst = workload("shop", "web", "n1", "10.1.0.1");
        let world = mesh(policies);
        let identity = peer.map(|(namespace, account)| Identity::new("td", &namespace, &account).unwrap());
        let conn = ConnFacts {
            peer: identity.as_ref(),
            source_ip: [10, 0, 0, last].into(),
            destination: ([10, 1, 0, 1], port).into(),
        };
        let headers = tenant.iter().map(|value| (http::HeaderName::from_static("x"), value.parse().unwrap())).collect();
        let facts = HttpFacts { conn, request: request(&method, &headers, port) };
        let tcp = judge(&world, &dst, &conn);
        let one = judge_request(&world, &dst, &facts);
        if !needs_http(&world, &dst, port) {
            prop_assert_eq!(&tcp, &one);
        }
        if tcp.allowed || one.allowed {
            prop_assert_eq!(admit_any_request(&world, &dst, &conn), Ok(()));
        }
        // Nothing of HTTP is known on TCP: no request gets less than the connection would.
        prop_assert!(!tcp.allowed || one.allowed);
        prop_assert_eq!(admit_request(&world, &dst, &facts).is_ok(), one.allowed);
        let steps = explain_request(&world, &dst, &facts);
        let decisive: Vec<_> = steps.iter().filter_map(|step| step.verdict.clone()).collect();
        prop_assert_eq!(decisive, vec![one]);
    }
}

proptest! {
    #[test]
    fn explain_and_judge_agree(
        policies in proptest::collection::vec(any_policy(), 0..5),
        strict: bool,
        peer in proptest::option::of(("[ab]{1,2}", "[ab]{1,2}")),
        last in 0_u8..4,
        port in 8079_u16..8082,
    ) {
        let dst = workload("shop", "web", "n1", "10.1.0.1");
        let mut world = mesh(policies);
        if strict {
            world.peer_auths.push(std::sync::Arc::new(PeerAuth {
                policy: PolicyRef { kind: "PeerAuthentication", namespace: "shop".into(), name: "p".into() },
                selector: None, mode: Some(MtlsMode::Strict), ports: Default::default(), created: 0, invalid: None,
            }));
        }
        let identity = peer.map(|(namespace, account)| Identity::new("td", &namespace, &account).unwrap());
        let facts = ConnFacts {
            peer: identity.as_ref(),
            source_ip: [10, 0, 0, last].into(),
            destination: ([10, 1, 0, 1], port).into(),
        };
        let verdict = judge(&world, &dst, &facts);
        let steps = explain(&world, &dst, &facts);
        let decisive: Vec<_> = steps.iter().filter_map(|step| step.verdict.clone()).collect();
        prop_assert_eq!(&decisive, &vec![verdict.clone()]);
        prop_assert_eq!(verdict.allowed, verdict.reason.is_none());
        // Whatever else holds, an enforced DENY that matches means no.
        let denied = world.authz.iter().any(|policy| {
            policy.action == AuthzAction::Deny && !policy.dry_run
                && (policy.invalid.is_some() || policy.rules.iter().any(|rule| rule_matches(policy.action, rule, &facts, Layer::Tcp).is_ok()))
        });
        prop_assert!(!(denied && verdict.allowed));
    }

    #[test]
    fn a_dry_run_changes_no_verdict(policies in proptest::collection::vec(any_policy(), 0..5), last in 0_u8..4) {
        let dst = workload("shop", "web", "n1", "10.1.0.1");
        let source = format!("10.0.0.{last}");
        let without: Vec<_> = policies.iter().filter(|policy| !policy.dry_run).cloned().collect();
        prop_assert_eq!(
            judge(&mesh(policies), &dst, &facts(None, &source)),
            judge(&mesh(without), &dst, &facts(None, &source))
        );
    }
}
