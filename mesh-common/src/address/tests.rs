use super::*;

fn address(text: &str) -> Address {
    Address::from(text.parse::<IpAddr>().unwrap())
}

#[test]
fn every_address_survives_the_way_into_the_kernel_and_back() {
    for text in
        ["10.98.1.4", "0.0.0.0", "255.255.255.255", "::", "::1", "fd98::4", "fe80::1", "2001:db8::ffff:1"]
    {
        let ip: IpAddr = text.parse().unwrap();
        assert_eq!(Address::from(ip).to_ip(), ip, "{text}");
    }
    assert_eq!(address("::ffff:10.0.0.1"), address("10.0.0.1"));
}

#[test]
fn memory_holds_network_order() {
    assert_eq!(address("1.2.3.4").0[3].to_ne_bytes(), [1, 2, 3, 4]);
    assert_eq!(address("1.2.3.4"), Address::from_v4_word(u32::from_ne_bytes([1, 2, 3, 4])));
}

#[test]
fn kinds_are_told_apart() {
    assert!(address("127.0.0.53").is_loopback() && address("::1").is_loopback());
    assert!(!address("128.0.0.1").is_loopback() && !address("::2").is_loopback());
    assert!(address("0.0.0.0").is_unspecified() && address("::").is_unspecified());
    assert!(!address("0.0.0.1").is_unspecified());
    assert!(address("fe80::1").is_link_local_v6() && address("febf::1").is_link_local_v6());
    assert!(!address("fec0::1").is_link_local_v6() && !address("10.0.0.1").is_link_local_v6());
    assert!(address("10.0.0.1").is_v4() && !address("::").is_v4());
    assert!(
        address("10.0.0.1").same(&address("10.0.0.1")) && !address("10.0.0.1").same(&address("10.0.0.2"))
    );
}
