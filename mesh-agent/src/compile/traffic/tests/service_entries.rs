//! ServiceEntry and WorkloadEntry (Istio's `service_entry.proto`, `workload_entry.proto` and its validation).

use super::*;
use crate::compile::traffic::{EntryAddress, EntryEndpoints, NameUse, ServiceEntryFacts};

const PORTS: &str = "ports: [{number: 80, name: http, protocol: HTTP}]";

fn text(kind: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: e, namespace: shop}}\nspec: {{{spec}}}\n"
    )
}

fn entry(spec: &str) -> ServiceEntryFacts {
    let compiled = compile(&text("ServiceEntry", &format!("{spec}, {PORTS}")));
    match compiled.objects.into_iter().next() {
        Some((_, Object::ServiceEntry(facts))) => *facts,
        other => panic!("{spec}: {other:?}, {:?}", compiled.diagnostics),
    }
}

#[test]
fn where_connections_go_says_the_resolution() {
    let name = |name: &str| EntryAddress::Name(name.into());
    for (spec, names, listed) in [
        ("hosts: ['*.example.com']", None, None),
        ("hosts: [a.example.com], resolution: NONE", None, None),
        ("hosts: ['*.example.com'], resolution: DYNAMIC_DNS", None, None),
        ("hosts: [a.example.com], resolution: DNS", Some(NameUse::All), None),
        ("hosts: [a.example.com], resolution: DNS_ROUND_ROBIN", Some(NameUse::First), None),
        (
            "hosts: ['*.example.com'], resolution: DNS, endpoints: [{address: B.example.com.}]",
            Some(NameUse::All),
            Some(name("b.example.com")),
        ),
        (
            "hosts: [a], resolution: STATIC, endpoints: [{address: '::ffff:192.0.2.1'}]",
            None,
            Some(EntryAddress::Ip([192, 0, 2, 1].into())),
        ),
    ] {
        let facts = entry(spec);
        assert_eq!(facts.names, names, "{spec}");
        match (facts.endpoints, listed) {
            (EntryEndpoints::Listed(all), Some(address)) => assert_eq!(all[0].address, address, "{spec}"),
            (EntryEndpoints::Host, None) => assert!(names.is_some(), "{spec}"),
            (EntryEndpoints::AsDialled, None) => assert!(names.is_none(), "{spec}"),
            (other, _) => panic!("{spec}: {other:?}"),
        }
    }
    let facts = entry(
        "hosts: [a], resolution: STATIC, subjectAltNames: [b.example], endpoints: [{address: 192.0.2.1, weight: 0}]",
    );
    assert_eq!(facts.subject_alt_names, [Arc::from("b.example")]);
    let EntryEndpoints::Listed(listed) = facts.endpoints else { panic!("no endpoints") };
    assert_eq!((listed[0].weight, &*listed[0].service_account), (1, "default"));
}

/// Everything that is refused, by the field that is to blame.
#[test]
fn what_cannot_be_honoured_is_refused_by_its_field() {
    let listed = |endpoint: &str| format!("hosts: [a], resolution: STATIC, endpoints: [{endpoint}], {PORTS}");
    for (kind, spec, field) in [
        ("ServiceEntry", format!("hosts: ['*'], {PORTS}"), "spec.hosts[0]"),
        ("ServiceEntry", format!("hosts: ['*.a.com'], resolution: DNS, {PORTS}"), "spec.hosts[0]"),
        (
            "ServiceEntry",
            format!("hosts: [a.com, '*.a.com'], resolution: DNS_ROUND_ROBIN, {PORTS}"),
            "spec.hosts[1]",
        ),
        ("ServiceEntry", format!("hosts: [a], addresses: [10.0.0.0/8], {PORTS}"), "spec.addresses[0]"),
        ("ServiceEntry", "hosts: [a]".to_owned(), "spec.ports"),
        ("ServiceEntry", format!("hosts: [a], resolution: STATIC, {PORTS}"), "spec.endpoints"),
        (
            "ServiceEntry",
            format!("hosts: [a], endpoints: [{{address: 192.0.2.1}}], {PORTS}"),
            "spec.endpoints",
        ),
        (
            "ServiceEntry",
            format!(
                "hosts: [a], resolution: DNS_ROUND_ROBIN, endpoints: [{{address: a.b}}, {{address: b.c}}], {PORTS}"
            ),
            "spec.endpoints",
        ),
        (
            "ServiceEntry",
            format!("hosts: [a], workloadSelector: {{labels: {{a: b}}}}, {PORTS}"),
            "spec.workloadSelector",
        ),
        ("ServiceEntry", listed("{address: b.example.com}"), "spec.endpoints[0].address"),
        ("ServiceEntry", listed("{address: 'unix:///run/a.sock'}"), "spec.endpoints[0].address"),
        ("ServiceEntry", listed("{address: '*.example.com'}"), "spec.endpoints[0].address"),
        (
            "ServiceEntry",
            listed("{address: 192.0.2.1, ports: {https: 443}}"),
            "spec.endpoints[0].ports.https",
        ),
        (
            "ServiceEntry",
            listed("{address: 192.0.2.1, ports: {http: 70000}}"),
            "spec.endpoints[0].ports.http",
        ),
        ("ServiceEntry", listed("{address: 192.0.2.1, locality: a/b/c/d}"), "spec.endpoints[0].locality"),
        (
            "ServiceEntry",
            listed("{address: 192.0.2.1, serviceAccount: a/b}"),
            "spec.endpoints[0].serviceAccount",
        ),
        ("WorkloadEntry", "address: nowhere".to_owned(), "spec.address"),
    ] {
        let compiled = compile(&text(kind, &spec));
        assert!(compiled.objects.is_empty(), "{spec}: {:?}", compiled.objects);
        let found = compiled.diagnostics.iter().find(|one| one.field == field);
        assert!(found.is_some_and(|one| !one.remedy.is_empty()), "{spec}: {:?}", compiled.diagnostics);
    }
}
