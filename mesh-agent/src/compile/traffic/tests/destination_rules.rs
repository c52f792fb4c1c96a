use std::sync::Arc;

use super::*;
use crate::compile::traffic::destination_rule::{Resolved, Unsaid, resolve};
use crate::model::traffic::Defaults;

fn unsaid(defaults: &Defaults) -> Unsaid<'_> {
    Unsaid { balance: &LoadBalance::LeastRequest, locality: &defaults.locality, subject_alt_names: &[] }
}

fn destination_rule(spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: reviews, namespace: shop}}\nspec: {{host: reviews, {spec}}}\n"
    )
}

fn resolved(spec: &str) -> Resolved {
    let compiled = compile(&destination_rule(spec));
    let errors: Vec<_> = compiled.diagnostics.iter().filter(|one| one.severity == Severity::Error).collect();
    assert!(errors.is_empty(), "{spec}: {errors:?}");
    match compiled.objects.into_iter().next() {
        Some((_, Object::DestinationRule(facts))) => {
            resolve(&[&facts], unsaid(&Defaults::default())).unwrap()
        }
        other => panic!("{spec}: {other:?}"),
    }
}

fn policy(policy: &str) -> TrafficPolicy {
    resolved(&format!("trafficPolicy: {{{policy}}}")).policy.for_port(80).as_ref().clone()
}

#[test]
fn every_algorithm() {
    let ring = |key: HashKey, size: u32| LoadBalance::Hash {
        key,
        algorithm: HashAlgorithm::RingHash { minimum_ring_size: size },
    };
    for (text, expected) in [
        ("simple: ROUND_ROBIN", LoadBalance::RoundRobin),
        ("simple: RANDOM", LoadBalance::Random),
        ("simple: LEAST_REQUEST", LoadBalance::LeastRequest),
        ("simple: LEAST_CONN", LoadBalance::LeastRequest),
        ("simple: PASSTHROUGH", LoadBalance::Passthrough),
        ("simple: UNSPECIFIED", LoadBalance::LeastRequest),
        ("warmupDurationSecs: 1s", LoadBalance::LeastRequest),
        ("consistentHash: {httpHeaderName: X-User}", ring(HashKey::Header("x-user".into()), 1024)),
        ("consistentHash: {useSourceIp: true, minimumRingSize: 10}", ring(HashKey::SourceAddress, 10)),
        (
            "consistentHash: {httpQueryParameterName: q, ringHash: {minimumRingSize: 2}}",
            ring(HashKey::QueryParameter("q".into()), 2),
        ),
        (
            "consistentHash: {httpCookie: {name: c, path: /, ttl: 0s}}",
            ring(
                HashKey::Cookie { name: "c".into(), path: Some("/".into()), ttl: Some(Duration::ZERO) },
                1024,
            ),
        ),
        (
            "consistentHash: {useSourceIp: true, maglev: {}}",
            LoadBalance::Hash {
                key: HashKey::SourceAddress,
                algorithm: HashAlgorithm::Maglev { table_size: 65_537 },
            },
        ),
    ] {
        assert_eq!(policy(&format!("loadBalancer: {{{text}}}")).balance, expected, "{text}");
    }
}

#[test]
fn the_pool_s_limits_where_zero_is_none() {
    let full = policy(
        "connectionPool: {tcp: {maxConnections: 1, connectTimeout: 2s, maxConnectionDuration: 3s, idleTimeout: 4s}, \
         http: {http1MaxPendingRequests: 5, http2MaxRequests: 6, maxRequestsPerConnection: 7, maxRetries: 8, idleTimeout: 9s, \
         h2UpgradePolicy: UPGRADE, maxConcurrentStreams: 10}}",
    );
    assert_eq!(
        full.pool,
        PoolLimits {
            max_connections: Some(1),
            max_pending: Some(5),
            max_requests: Some(6),
            max_retries: Some(8),
            max_requests_per_connection: Some(7),
            max_concurrent_streams: Some(10),
            connect_timeout: Duration::from_secs(2),
            tcp_idle: Duration::from_secs(4),
            http_idle: Duration::from_secs(9),
            max_connection_duration: Some(Duration::from_secs(3)),
            h2_upgrade: H2Upgrade::Upgrade,
        }
    );
    // Where HTTP says nothing of its own, TCP's idle time is for both.
    let idle = policy("connectionPool: {tcp: {idleTimeout: 4s}}").pool;
    assert_eq!((idle.tcp_idle, idle.http_idle), (Duration::from_secs(4), Duration::from_secs(4)));
    let zero =
        policy("connectionPool: {tcp: {maxConnections: 0}, http: {maxRetries: 0, http2MaxRequests: 0}}");
    assert_eq!(zero.pool, PoolLimits::default());
    assert_eq!(zero.pool.connect_timeout, Duration::from_secs(10));
    assert_eq!(zero.pool.http_idle, Duration::from_secs(3600));
}

#[test]
fn outlier_detection_is_on_when_it_is_there() {
    assert_eq!(policy("loadBalancer: {}").outlier, None);
    let defaults = Outlier {
        consecutive_5xx: 5,
        consecutive_gateway: 0,
        consecutive_local: 5,
        split_local: false,
        interval: Duration::from_secs(10),
        base_ejection: Duration::from_secs(30),
        max_ejection_percent: 10,
        min_health_percent: 0,
    };
    assert_eq!(policy("outlierDetection: {}").outlier, Some(defaults.clone()));
    assert_eq!(
        policy("outlierDetection: {consecutiveErrors: 3}").outlier,
        Some(Outlier { consecutive_5xx: 3, ..defaults.clone() })
    );
    assert_eq!(
        policy("outlierDetection: {consecutiveErrors: 3, consecutive5xxErrors: 0}").outlier,
        Some(Outlier { consecutive_5xx: 0, ..defaults.clone() }),
        "0 switches it off, and the newer name wins"
    );
    assert_eq!(
        policy(
            "outlierDetection: {consecutiveGatewayErrors: 1, consecutiveLocalOriginFailures: 2, \
             splitExternalLocalOriginErrors: true, interval: 5m, baseEjectionTime: 1m, maxEjectionPercent: 50, minHealthPercent: 40}"
        )
        .outlier,
        Some(Outlier {
            consecutive_5xx: 5,
            consecutive_gateway: 1,
            consecutive_local: 2,
            split_local: true,
            interval: Duration::from_secs(300),
            base_ejection: Duration::from_secs(60),
            max_ejection_percent: 50,
            min_health_percent: 40,
        })
    );
    let found = findings(&destination_rule("trafficPolicy: {outlierDetection: {consecutiveErrors: 3}}"));
    assert!(found[0].contains("consecutiveErrors: is deprecated"), "{found:?}");
}

#[test]
fn locality_warmup_tls_and_budget() {
    let locality = |text: &str, more: &str| {
        policy(&format!("loadBalancer: {{localityLbSetting: {{{text}}}}}{more}")).locality
    };
    let outlier = ", outlierDetection: {}";
    assert!(!policy("loadBalancer: {}").locality.enabled, "nothing ejects, so nothing fails over");
    assert!(policy("outlierDetection: {}").locality.enabled, "the mesh's default");
    assert!(!locality("enabled: false", outlier).enabled);
    assert!(!locality("failover: [{from: a, to: b}]", "").enabled);
    let shares = locality("distribute: [{from: a/b/*, to: {'a/b/*': 80, 'a/c/*': 20}}]", "");
    assert!(shares.enabled, "shares need no ejection");
    assert_eq!(shares.distribute, [("a/b/*".into(), vec![("a/b/*".into(), 80), ("a/c/*".into(), 20)])]);
    assert_eq!(locality("failover: [{from: a, to: b}]", outlier).failover, [("a".into(), "b".into())]);
    assert_eq!(
        locality("failoverPriority: [topology.kubernetes.io/region, 'v=1']", outlier).priority,
        [("topology.kubernetes.io/region".into(), None), ("v".into(), Some("1".into()))]
    );
    let warm = |text: &str| policy(&format!("loadBalancer: {{{text}}}")).warmup.unwrap();
    let minute = Duration::from_secs(60);
    assert_eq!(
        warm("warmup: {duration: 60s}"),
        Warmup { duration: minute, minimum_percent: 10, aggression: 1.0 }
    );
    assert_eq!(
        warm("warmup: {duration: 60s, minimumPercent: 50, aggression: 2}"),
        Warmup { duration: minute, minimum_percent: 50, aggression: 2.0 }
    );
    assert_eq!(policy("tls: {mode: DISABLE}").tls, ClientTls::Disable);
    assert_eq!(policy("tls: {mode: ISTIO_MUTUAL}").tls, ClientTls::Mutual);
    assert_eq!(
        policy("retryBudget: {}").retry_budget,
        Some(RetryBudget { percent: Millionths(200_000), min_retries: 3 })
    );
    assert_eq!(
        policy("retryBudget: {percent: {value: 10}, minRetryConcurrency: 1}").retry_budget,
        Some(RetryBudget { percent: Millionths(100_000), min_retries: 1 })
    );
}

#[test]
fn a_subset_inherits_field_by_field_and_a_port_s_settings_replace_wholesale() {
    let found = resolved(
        "trafficPolicy: {loadBalancer: {simple: RANDOM}, connectionPool: {tcp: {maxConnections: 1}}, retryBudget: {}, \
           portLevelSettings: [{port: {number: 81}, connectionPool: {tcp: {maxConnections: 2}}}]}, \
         subsets: [{name: v1, labels: {version: v1}, trafficPolicy: {connectionPool: {http: {maxRetries: 3}}}}, \
           {name: v2, labels: {version: v2}}, \
           {name: v3, labels: {version: v3}, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}, \
             portLevelSettings: [{port: {number: 81}, tls: {mode: DISABLE}}]}}]",
    );
    let pool = |policy: &TrafficPolicy| (policy.pool.max_connections, policy.pool.max_retries);
    let whole = found.policy.for_port(80);
    assert_eq!((&whole.balance, pool(whole)), (&LoadBalance::Random, (Some(1), None)));
    let port = found.policy.for_port(81);
    assert_eq!(
        (&port.balance, pool(port), port.retry_budget.is_some()),
        (&LoadBalance::LeastRequest, (Some(2), None), true),
        "what the port leaves out is the default, but for the budget"
    );
    let subset = |at: usize, port: u16| found.subsets[at].2.for_port(port);
    let one = subset(0, 80);
    assert_eq!((&one.balance, pool(one)), (&LoadBalance::Random, (None, Some(3))), "field by field");
    let one = subset(0, 81);
    assert_eq!(
        (&one.balance, pool(one)),
        (&LoadBalance::LeastRequest, (None, Some(3))),
        "over the rule's settings for that port"
    );
    assert_eq!(subset(1, 80), whole);
    let three = subset(2, 81);
    assert_eq!(
        (&three.balance, pool(three), &three.tls),
        (&LoadBalance::LeastRequest, (None, None), &ClientTls::Disable)
    );
    assert_eq!(subset(2, 80).balance, LoadBalance::RoundRobin);
}

#[test]
fn of_several_rules_for_a_host_subsets_come_together_and_the_oldest_policy_stays() {
    let facts = |name: &str, spec: &str| {
        let text = destination_rule(spec).replace("name: reviews,", &format!("name: {name},"));
        match compile(&text).objects.into_iter().next() {
            Some((_, Object::DestinationRule(facts))) => facts,
            other => panic!("{other:?}"),
        }
    };
    let a = facts("a", "subsets: [{name: v1, labels: {version: v1}}]");
    let b = facts(
        "b",
        "trafficPolicy: {loadBalancer: {simple: RANDOM}}, subsets: [{name: v1, labels: {version: x}}]",
    );
    let c = facts(
        "c",
        "trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}, subsets: [{name: v2, labels: {a: b}}]",
    );
    let found = resolve(&[&a, &b, &c], unsaid(&Defaults::default())).unwrap();
    assert_eq!(&*found.object.name, "b");
    assert_eq!(found.policy.for_port(80).balance, LoadBalance::Random);
    let subsets: Vec<_> = found
        .subsets
        .iter()
        .map(|(name, labels, policy)| (&**name, labels.len(), &policy.for_port(1).balance))
        .collect();
    assert_eq!(subsets, [("v1", 1, &LoadBalance::Random), ("v2", 1, &LoadBalance::Random)]);
    assert_eq!(found.subsets[0].1["version"], "v1", "of two subsets with one name the older stays");
}

#[test]
fn what_a_destination_rule_may_not_say() {
    for (spec, expected) in [
        ("trafficPolicy: {tunnel: {protocol: CONNECT}}", "spec.trafficPolicy.tunnel: is not supported"),
        (
            "trafficPolicy: {proxyProtocol: {version: V1}}",
            "spec.trafficPolicy.proxyProtocol: is not supported",
        ),
        (
            "trafficPolicy: {tls: {mode: SIMPLE, credentialName: a}}",
            "spec.trafficPolicy.tls.credentialName: is not",
        ),
        ("trafficPolicy: {tls: {mode: SIMPLE, caCrl: a}}", "spec.trafficPolicy.tls.caCrl: is not supported"),
        (
            "trafficPolicy: {tls: {mode: SIMPLE, privateKey: a}}",
            "spec.trafficPolicy.tls.privateKey: means nothing",
        ),
        (
            "trafficPolicy: {tls: {mode: MUTUAL, privateKey: a}}",
            "spec.trafficPolicy.tls.clientCertificate: is missing",
        ),
        (
            "trafficPolicy: {tls: {mode: SIMPLE, caCertificates: /a/../../b}}",
            "spec.trafficPolicy.tls.caCertificates: `/a/../../b` leads out",
        ),
        (
            "trafficPolicy: {tls: {mode: SIMPLE, insecureSkipVerify: true, caCertificates: /a}}",
            "spec.trafficPolicy.tls.caCertificates: stands beside insecureSkipVerify",
        ),
        ("trafficPolicy: {tls: {mode: ISTIO_MUTUAL, sni: a}}", "spec.trafficPolicy.tls: has fields"),
        (
            "trafficPolicy: {loadBalancer: {simple: BEST}}",
            "spec.trafficPolicy.loadBalancer.simple: unknown variant",
        ),
        (
            "trafficPolicy: {loadBalancer: {simple: RANDOM, consistentHash: {useSourceIp: true}}}",
            "spec.trafficPolicy.loadBalancer.simple: stands beside",
        ),
        (
            "trafficPolicy: {loadBalancer: {consistentHash: {}}}",
            "spec.trafficPolicy.loadBalancer.consistentHash: says not what",
        ),
        (
            "trafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true, httpHeaderName: a}}}",
            "spec.trafficPolicy.loadBalancer.consistentHash: hashes more",
        ),
        (
            "trafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true, maglev: {tableSize: 10}}}}",
            "spec.trafficPolicy.loadBalancer.consistentHash.maglev.tableSize: 10 is not a prime",
        ),
        (
            "trafficPolicy: {loadBalancer: {simple: RANDOM, warmup: {duration: 1s}}}",
            "spec.trafficPolicy.loadBalancer.warmup: works with",
        ),
        (
            "trafficPolicy: {loadBalancer: {localityLbSetting: {distribute: [{from: a, to: {b: 90}}]}}}",
            "spec.trafficPolicy.loadBalancer.localityLbSetting.distribute[0].to: has shares",
        ),
        (
            "trafficPolicy: {loadBalancer: {localityLbSetting: {failover: [{from: a, to: a}]}}}",
            "spec.trafficPolicy.loadBalancer.localityLbSetting.failover[0]: goes to the region",
        ),
        (
            "trafficPolicy: {loadBalancer: {localityLbSetting: {failover: [{from: a, to: b}], distribute: [{from: a, to: {a: 100}}]}}}",
            "spec.trafficPolicy.loadBalancer.localityLbSetting.distribute: stands beside",
        ),
        (
            "trafficPolicy: {loadBalancer: {localityLbSetting: {failoverPriority: [a], distribute: [{from: a, to: {a: 100}}]}}}",
            "spec.trafficPolicy.loadBalancer.localityLbSetting.distribute: stands beside",
        ),
        (
            "trafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true, maglev: {tableSize: 5000077}}}}",
            "spec.trafficPolicy.loadBalancer.consistentHash.maglev.tableSize: 5000077 is not a prime up to 5000011",
        ),
        (
            "trafficPolicy: {connectionPool: {tcp: {maxConnections: -1}}}",
            "spec.trafficPolicy.connectionPool.tcp.maxConnections: -1 is negative",
        ),
        (
            "trafficPolicy: {outlierDetection: {maxEjectionPercent: 101}}",
            "spec.trafficPolicy.outlierDetection.maxEjectionPercent: 101 is not",
        ),
        (
            "trafficPolicy: {portLevelSettings: [{tls: {mode: DISABLE}}]}",
            "spec.trafficPolicy.portLevelSettings[0].port.number: 0 is not a port",
        ),
        ("subsets: [{labels: {a: b}}]", "spec.subsets[0].name: is missing"),
        (
            "subsets: [{name: a, labels: {a: b}}, {name: a, labels: {a: c}}]",
            "spec.subsets[1].name: `a` is listed",
        ),
        ("trafficpolicy: {}", "spec.trafficpolicy: is not a field"),
    ] {
        let errors = refused(&destination_rule(spec));
        assert!(errors.iter().any(|one| one.starts_with(expected)), "{spec}: {errors:?}");
    }
    assert!(refused(&destination_rule("").replace("host: reviews, ", ""))[0].starts_with("spec.host"));
}

/// TLS of the agent's own: what is asked for, and the ServiceEntry's names where the rule has none.
#[test]
fn tls_to_servers_outside() {
    let origin = |text: &str| match policy(&format!("tls: {{{text}}}")).tls {
        ClientTls::Originate(origin) => TlsOrigin::clone(&origin),
        other => panic!("{text}: {other:?}"),
    };
    let plain = TlsOrigin {
        namespace: "shop".into(),
        sni: None,
        subject_alt_names: Vec::new(),
        roots: None,
        client: None,
        skip_verify: false,
    };
    for text in
        ["mode: SIMPLE", "mode: SIMPLE, caCertificates: system", "mode: SIMPLE, insecureSkipVerify: false"]
    {
        assert_eq!(origin(text), plain, "{text}");
    }
    let whole = "mode: MUTUAL, sni: a.b, subjectAltNames: [c.d, 'spiffe://e'], caCertificates: /ca, clientCertificate: /crt, privateKey: /key";
    assert_eq!(
        origin(whole),
        TlsOrigin {
            sni: Some("a.b".into()),
            subject_alt_names: vec!["c.d".into(), "spiffe://e".into()],
            roots: Some("/ca".into()),
            client: Some(("/crt".into(), "/key".into())),
            ..plain.clone()
        }
    );
    assert!(origin("mode: SIMPLE, insecureSkipVerify: true").skip_verify);
    let names: [Arc<str>; 1] = ["of.the.entry".into()];
    let compiled = compile(&destination_rule(
        "trafficPolicy: {tls: {mode: SIMPLE}}, subsets: [{name: s, labels: {a: b}, trafficPolicy: {tls: {mode: SIMPLE, subjectAltNames: [own]}}}]",
    ));
    let Some((_, Object::DestinationRule(facts))) = compiled.objects.first() else { panic!("{compiled:?}") };
    let defaults = Defaults::default();
    let found = resolve(&[facts], Unsaid { subject_alt_names: &names, ..unsaid(&defaults) }).unwrap();
    let names = |policy: &TrafficPolicy| match &policy.tls {
        ClientTls::Originate(origin) => origin.subject_alt_names.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(names(found.policy.for_port(80)), ["of.the.entry".into()]);
    assert_eq!(names(found.subsets[0].2.for_port(80)), ["own".into()]);
}
