use super::*;
use core::net::IpAddr;

fn families(text: &str, v6: bool) -> (bool, bool) {
    let found = listen_families(&Address::from(text.parse::<IpAddr>().unwrap()), v6);
    (found.v4, found.v6)
}

#[test]
fn a_listener_serves_the_families_its_address_allows() {
    assert_eq!(families("0.0.0.0", false), (true, false));
    assert_eq!(families("::", true), (true, true));
    assert_eq!(families("10.0.0.1", false), (true, false));
    assert_eq!(families("::ffff:10.0.0.1", true), (true, false));
    assert_eq!(families("fd98::1", true), (false, true));
    assert_eq!(families("127.0.0.1", false), (false, false));
    assert_eq!(families("::1", true), (false, false));
}

#[test]
fn keys_come_apart_again() {
    for (slot, v6, port) in [(0, false, 1), (1023, true, 65535), (7, true, 0)] {
        assert_eq!(split_listen_key(listen_key(slot, v6, port)), (slot, v6, port));
    }
}
