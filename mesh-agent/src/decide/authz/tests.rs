use super::*;

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in pairs {
        map.append(*name, value.parse().unwrap());
    }
    map
}

#[test]
fn the_client_is_the_last_address_that_was_forwarded_or_else_who_connected() {
    let source: IpAddr = "10.0.0.9".parse().unwrap();
    for (lines, wanted) in [
        (&[][..], "10.0.0.9"),
        (&["1.2.3.4"], "1.2.3.4"),
        (&["6.6.6.6, 1.2.3.4"], "1.2.3.4"),
        (&["6.6.6.6", "fd00::1"], "fd00::1"),
        (&["1.2.3.4, somebody"], "10.0.0.9"),
        (&[""], "10.0.0.9"),
    ] {
        let pairs: Vec<_> = lines.iter().map(|line| ("x-forwarded-for", *line)).collect();
        assert_eq!(remote_ip(&headers(&pairs), source), wanted.parse::<IpAddr>().unwrap(), "{lines:?}");
    }
}

#[test]
fn a_rule_asks_about_requests_only_on_the_ports_that_it_speaks_of() {
    let methods = Values { any: vec![StringMatch::Exact("GET".into())], none: vec![] };
    let ports = |ports: &[u16]| Values { any: ports.to_vec(), none: vec![] };
    let get = Operation { methods, ports: ports(&[80]), ..Operation::default() };
    let plain = Operation { ports: ports(&[90]), ..Operation::default() };
    let rule = |to: &[&Operation]| AuthzRule {
        to: to.iter().map(|one| (*one).clone()).collect(),
        ..AuthzRule::default()
    };
    assert!(asks_http(&rule(&[&get]), 80) && !asks_http(&rule(&[&get]), 90));
    // The connection alone would skip an ALLOW rule with any field of HTTP.
    assert!(asks_http(&rule(&[&get, &plain]), 90));
    assert!(!asks_http(&rule(&[&plain]), 90));
    let when = AuthzRule { when: vec![Condition::DestinationPort(ports(&[81]))], ..rule(&[&get]) };
    assert!(!asks_http(&when, 80));
}
