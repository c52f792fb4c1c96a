use super::*;
use crate::model::connection::{ConnMatch, ConnRule, SniPattern, WeightedDestination};

const TO: &str = "route: [{destination: {host: db}}]";

/// The only rule of `{hosts: [..], tcp|tls: [{ENTRY}]}`.
fn only(list: &str, entry: &str) -> ConnRule {
    let spec = format!("{{hosts: [db, '*.example.com'], {list}: [{{{entry}}}]}}");
    let mut facts = facts(&spec);
    let rules = if list == "tls" { &mut facts.tls } else { &mut facts.tcp };
    ConnRule::clone(&rules.remove(0))
}

fn one(list: &str, matched: &str) -> ConnMatch {
    only(list, &format!("match: [{{{matched}}}], {TO}")).matches.remove(0)
}

#[test]
fn every_condition_of_a_connection() {
    let none = ConnMatch::default;
    let labels = || [("app".to_owned(), "web".to_owned())].into();
    let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    for (text, expected) in [
        ("port: 5432", ConnMatch { port: Some(5432), ..none() }),
        ("sourceLabels: {app: web}", ConnMatch { source_labels: labels(), ..none() }),
        ("sourceNamespace: shop", ConnMatch { source_namespace: Some("shop".into()), ..none() }),
        (
            "destinationSubnets: [10.1.0.0/16, 10.2.0.1, 'fd00::/8']",
            ConnMatch { subnets: nets(&["10.1.0.0/16", "10.2.0.1/32", "fd00::/8"]), ..none() },
        ),
        // Unlike HTTP's, sources are looked at whatever gateways are named.
        ("gateways: [mesh], sourceLabels: {app: web}", ConnMatch { source_labels: labels(), ..none() }),
    ] {
        assert_eq!(one("tcp", text), expected, "{text}");
        let sni = vec![SniPattern::Exact("a.example.com".into())];
        let named = one("tls", &format!("sniHosts: [A.example.com], {text}"));
        assert_eq!(named, ConnMatch { sni, ..expected }, "{text}");
    }
    let exact = |name: &str| SniPattern::Exact(name.into());
    for (hosts, expected) in [
        ("['*.example.com']", vec![SniPattern::Under(".example.com".into())]),
        (
            "['*.a.example.com', a.b.example.com]",
            vec![SniPattern::Under(".a.example.com".into()), exact("a.b.example.com")],
        ),
        ("[db]", vec![exact("db")]),
        ("[db.shop.svc.cluster.local]", vec![exact("db.shop.svc.cluster.local")]),
    ] {
        assert_eq!(one("tls", &format!("sniHosts: {hosts}")).sni, expected, "{hosts}");
    }
    let any = facts(&format!("{{hosts: ['*'], tls: [{{match: [{{sniHosts: ['*', a.b]}}], {TO}}}]}}"));
    assert_eq!(any.tls[0].matches[0].sni, [SniPattern::Any, exact("a.b")]);
}

#[test]
fn destinations_have_weights_subsets_and_ports() {
    let to = |weight: u32, host: &str, port: Option<u16>, subset: Option<&str>| WeightedDestination {
        weight,
        backend: Backend::Host {
            host: format!("{host}.shop.svc.cluster.local").into(),
            port,
            subset: subset.map(Into::into),
            timeout: None,
        },
    };
    for (text, expected) in [
        ("[{destination: {host: db}}]", vec![to(1, "db", None, None)]),
        ("[{destination: {host: db}, weight: 0}]", vec![to(1, "db", None, None)]),
        (
            "[{destination: {host: db, subset: v1}, weight: 90}, {destination: {host: other, port: {number: 81}}, weight: 10}, {destination: {host: none}}]",
            vec![to(90, "db", None, Some("v1")), to(10, "other", Some(81), None)],
        ),
    ] {
        let rule = only("tcp", &format!("route: {text}"));
        assert_eq!(rule.backends, expected, "{text}");
        assert!(rule.matches.is_empty());
        assert_eq!(rule.origin.to_string(), "VirtualService shop/reviews tcp[0]");
    }
}

#[test]
fn what_is_for_gateways_only_is_left_out() {
    let spec = format!(
        "{{hosts: [db], tcp: [{{match: [{{gateways: [edge]}}], {TO}}}, {{match: [{{gateways: [edge]}}, {{port: 80}}], {TO}}}]}}"
    );
    let facts = facts(&spec);
    assert_eq!(facts.tcp.len(), 1);
    assert_eq!(facts.tcp[0].matches.len(), 1);
    assert_eq!(&*facts.tcp[0].origin.rule, "tcp[1]");
}

#[test]
fn what_istio_refuses_of_them_is_refused() {
    for (spec, expected) in [
        ("hosts: [db], tcp: [{}]", "spec.tcp[0].route: is missing"),
        ("hosts: [db], tls: [{match: [{sniHosts: [db]}]}]", "spec.tls[0].route: is missing"),
        ("hosts: [db], tls: [{TO}]", "spec.tls[0].match: is missing"),
        ("hosts: [db], tls: [{match: [{port: 443}], TO}]", "spec.tls[0].match[0].sniHosts: is missing"),
        (
            "hosts: [db], tls: [{match: [{sniHosts: [db, a.example.com]}], TO}]",
            "spec.tls[0].match[0].sniHosts[1]: `a.example.com` lies within none of the object's hosts",
        ),
        (
            "hosts: ['*.a.com'], tls: [{match: [{sniHosts: ['*.com']}], TO}]",
            "spec.tls[0].match[0].sniHosts[0]: `*.com` lies within none",
        ),
        (
            "hosts: [db], tls: [{match: [{sniHosts: ['*']}], TO}]",
            "spec.tls[0].match[0].sniHosts[0]: `*` lies within none",
        ),
        (
            "hosts: ['*'], tls: [{match: [{sniHosts: ['a.*.com']}], TO}]",
            "spec.tls[0].match[0].sniHosts[0]: `a.*.com` is not a server's name",
        ),
        (
            "hosts: [db], tcp: [{match: [{destinationSubnets: [10.0.0.0/33]}], TO}]",
            "spec.tcp[0].match[0].destinationSubnets[0]: `10.0.0.0/33` is not an address or a block",
        ),
        (
            "hosts: [db], tcp: [{match: [{port: 70000}], TO}]",
            "spec.tcp[0].match[0].port: 70000 is not a port",
        ),
        (
            "hosts: [db], tcp: [{match: [{sourceSubnet: 10.0.0.0/8}], TO}]",
            "spec.tcp[0].match[0].sourceSubnet: is a field",
        ),
        (
            "hosts: [db], tcp: [{route: [{destination: {host: a}, weight: 0}, {destination: {host: b}}]}]",
            "spec.tcp[0].route: has weights that are all 0",
        ),
        (
            "hosts: [db], tcp: [{route: [{destination: {host: a}, weight: -1}, {destination: {host: b}, weight: 1}]}]",
            "spec.tcp[0].route[0].weight: -1 is negative",
        ),
        ("hosts: [db], tcp: [{route: [{weight: 1}]}]", "spec.tcp[0].route[0].destination.host: is missing"),
        (
            "hosts: [db], tcp: [{match: [{sniHosts: [db]}], TO}]",
            "spec.tcp[0].match[0].sniHosts: is not a field",
        ),
        (
            "http: [{directResponse: {status: 200}}], tcp: [{TO}]",
            "spec.tcp: stands in a VirtualService without hosts",
        ),
        (
            "http: [{directResponse: {status: 200}}], tls: [{TO}]",
            "spec.tls: stands in a VirtualService without hosts",
        ),
    ] {
        let errors = refused(&virtual_service(&format!("{{{}}}", spec.replace("TO", TO))));
        assert!(errors.iter().any(|one| one.starts_with(expected)), "{spec}: {errors:?}");
    }
}

#[test]
fn a_rule_that_no_connection_comes_to_is_reported() {
    let tcp = |matches: &[&str]| rules("tcp", matches);
    let tls = |matches: &[&str]| rules("tls", matches);
    for (text, expected) in [
        (tcp(&["", "port: 80"]), Some("spec.tcp[1]: is never reached: tcp[0] takes its connections")),
        (tcp(&["port: 80", "port: 80"]), Some("spec.tcp[1]")),
        (tcp(&["port: 80", "port: 80, destinationSubnets: [10.0.0.0/8]"]), Some("spec.tcp[1]")),
        (tcp(&["destinationSubnets: [10.0.0.0/8]", "destinationSubnets: [10.0.0.0/8]"]), Some("spec.tcp[1]")),
        (tcp(&["destinationSubnets: [10.0.0.0/8]", "destinationSubnets: [10.1.0.0/16]"]), None),
        (tcp(&["destinationSubnets: [10.0.0.0/8]", ""]), None),
        (tcp(&["sourceLabels: {a: b}", "sourceLabels: {a: b, c: d}"]), Some("spec.tcp[1]")),
        (tcp(&["sourceLabels: {a: b, c: d}", "sourceLabels: {a: b}"]), None),
        (tcp(&["sourceNamespace: a", "sourceNamespace: b"]), None),
        (tls(&["sniHosts: [a.b, c.d]", "sniHosts: [c.d]"]), Some("spec.tls[1]: is never reached: tls[0]")),
        // The narrower name is tried first.
        (tls(&["sniHosts: ['*.b']", "sniHosts: [a.b]"]), None),
        (tls(&["sniHosts: [a.b], port: 443", "sniHosts: [a.b]"]), None),
    ] {
        let found = findings(&text);
        match expected {
            Some(expected) => assert!(found.len() == 1 && found[0].contains(expected), "{text}: {found:?}"),
            None => assert_eq!(found, Vec::<String>::new(), "{text}"),
        }
    }
}

/// A VirtualService with a rule for each of these matches; an empty one is none.
fn rules(list: &str, matches: &[&str]) -> String {
    let rule = |text: &&str| match *text {
        "" => format!("{{{TO}}}"),
        text => format!("{{match: [{{{text}}}], {TO}}}"),
    };
    let rules: Vec<String> = matches.iter().map(rule).collect();
    virtual_service(&format!("{{hosts: ['*'], {list}: [{}]}}", rules.join(", ")))
}
