use std::collections::BTreeMap;

use super::*;
use crate::decide::fixture::workload;
use crate::model::PolicyRef;
use crate::model::connection::WeightedDestination;
use crate::model::route::{Backend, RuleRef};

fn rule(name: &str, matches: Vec<ConnMatch>) -> Arc<ConnRule> {
    let object = PolicyRef { kind: "VirtualService", namespace: "shop".into(), name: "v".into() };
    let backend = Backend::Invalid(name.into());
    Arc::new(ConnRule {
        origin: RuleRef { object, rule: name.into() },
        matches,
        backends: vec![WeightedDestination { weight: 1, backend }],
    })
}

/// `KEY=VALUE` of each condition: `sni`, `net`, `port`, `label`, `namespace`; a list by commas.
fn matched(text: &str) -> ConnMatch {
    let mut one = ConnMatch::default();
    for word in text.split_whitespace() {
        let (key, value) = word.split_once('=').unwrap();
        match key {
            "sni" => {
                one.sni = value
                    .split(',')
                    .map(|name| match (name, name.strip_prefix('*')) {
                        ("*", _) => SniPattern::Any,
                        (_, Some(suffix)) => SniPattern::Under(suffix.into()),
                        (name, None) => SniPattern::Exact(name.into()),
                    })
                    .collect();
            }
            "net" => one.subnets = value.split(',').map(|net| net.parse().unwrap()).collect(),
            "port" => one.port = Some(value.parse().unwrap()),
            "label" => one.source_labels = BTreeMap::from([("app".to_owned(), value.to_owned())]),
            "namespace" => one.source_namespace = Some(value.into()),
            other => panic!("{other}"),
        }
    }
    one
}

/// Each rule as its matches, with `|` between them; what takes the connection by its place among them.
fn taken(rules: &[&str], address: &str, sni: Option<&str>) -> Option<usize> {
    let source = workload("shop", "web", "n1", "10.1.0.1");
    let rules: Vec<_> = rules
        .iter()
        .enumerate()
        .map(|(place, text)| {
            let matches = text.split('|').filter(|one| *one != "all").map(matched).collect();
            rule(&place.to_string(), matches)
        })
        .collect();
    let conn = ConnView { address: address.parse().unwrap(), port: 443, sni };
    select(&rules, &source, &conn).map(|rule| rule.origin.rule.parse().unwrap())
}

#[test]
fn the_rules_of_a_connection() {
    for (rules, sni, expected) in [
        // Static conditions.
        (&["port=443"][..], None, Some(0)),
        (&["port=80", "all"], None, Some(1)),
        (&["label=api", "label=web"], None, Some(1)),
        (&["namespace=other", "namespace=shop"], None, Some(1)),
        (&["namespace=other|label=web"], None, Some(0)),
        (&["namespace=shop label=api"], None, None),
        // Names: exact before wildcards, the longest wildcard first, whatever the order.
        (&["sni=a.example"], Some("a.example"), Some(0)),
        (&["sni=a.example"], Some("b.example"), None),
        (&["sni=a.example"], None, None),
        (&["sni=*.example"], Some("a.b.example"), Some(0)),
        (&["sni=*.example"], Some("example"), None),
        (&["sni=*.example"], Some("notexample"), None),
        (&["sni=*.example", "sni=a.example"], Some("a.example"), Some(1)),
        (&["sni=*.example", "sni=*.b.example"], Some("a.b.example"), Some(1)),
        (&["sni=*", "sni=*.example"], Some("a.example"), Some(1)),
        (&["sni=*"], None, Some(0)),
        (&["sni=a.example,b.example"], Some("b.example"), Some(0)),
        (&["sni=a.example label=api", "sni=a.example"], Some("a.example"), Some(1)),
        (&["sni=a.example", "sni=a.example"], Some("a.example"), Some(0)),
        // The address that was dialled is 10.96.0.1.
        (&["net=10.96.0.0/16"], None, Some(0)),
        (&["net=10.97.0.0/16"], None, None),
        (&["net=10.0.0.0/8", "net=10.96.0.0/16"], None, Some(1)),
        (&["net=10.97.0.0/16,10.96.0.1/32"], None, Some(0)),
        (&["net=10.0.0.0/8 sni=a.example", "sni=a.example"], Some("a.example"), Some(0)),
        (&["net=fd00::/8"], None, None),
        // A rule without name and subnet ends the list, but not what stands before it.
        (&["all", "net=10.96.0.0/16"], None, Some(0)),
        (&["net=10.96.0.0/16", "all"], None, Some(0)),
        (&["label=web", "all"], None, Some(0)),
        (&["label=api", "net=10.96.0.0/16"], None, Some(1)),
        (&[], None, None),
    ] {
        assert_eq!(taken(rules, "10.96.0.1", sni), expected, "{rules:?} {sni:?}");
    }
    assert_eq!(taken(&["net=fd00::/8"], "fd00::1", None), Some(0));
}

#[test]
fn backends_are_drawn_by_weight() {
    let all = [("a", 90), ("b", 0), ("c", 10)];
    let drawn = |random| draw(&all, |(_, weight)| *weight, random).map(|(name, _)| *name);
    let count = |name| (0..1000).filter(|random| drawn(*random) == Some(name)).count();
    assert_eq!((count("a"), count("b"), count("c")), (900, 0, 100));
    assert_eq!(draw(&[("a", 0), ("b", 0)], |(_, weight)| *weight, 7), None);
    assert_eq!(draw(&[("a", 0)], |(_, weight)| *weight, 7), Some(&("a", 0)), "the only one");
}
