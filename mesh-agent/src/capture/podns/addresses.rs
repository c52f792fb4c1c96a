//! Whether a process's network namespace holds an address, by what `/proc/PID/net` shows: no need to enter it.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

/// Whether the namespace of the process at `root` holds all of these addresses.
pub(super) fn holds(root: &Path, addresses: &[IpAddr]) -> bool {
    let read = |name: &str| fs::read_to_string(root.join("net").join(name)).unwrap_or_default();
    let (mut v4, mut v6) = (None, None);
    !addresses.is_empty()
        && addresses.iter().all(|address| match address {
            IpAddr::V4(_) => v4.get_or_insert_with(|| locals(&read("fib_trie"))).contains(address),
            IpAddr::V6(_) => v6.get_or_insert_with(|| interfaces(&read("if_inet6"))).contains(address),
        })
}

/// `fib_trie`: a leaf `|-- ADDRESS`, then its routes; `/32 host LOCAL` is an address of the namespace's own.
fn locals(text: &str) -> Vec<IpAddr> {
    let mut found = Vec::new();
    let mut leaf = None;
    for line in text.lines().map(str::trim) {
        if let Some(address) = line.strip_prefix("|-- ") {
            leaf = address.parse::<IpAddr>().ok();
        } else if line == "/32 host LOCAL" {
            found.extend(leaf.filter(|address| !found.contains(address)));
        }
    }
    found
}

/// `if_inet6`: 32 hexadecimal digits, then what we do not need.
fn interfaces(text: &str) -> Vec<IpAddr> {
    let digits = text.lines().filter_map(|line| line.split_whitespace().next());
    digits
        .filter_map(|digits| u128::from_str_radix(digits, 16).ok())
        .map(|bits| IpAddr::V6(bits.into()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_namespaces_own_addresses_are_read_from_its_routes() {
        let text = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n     |-- 10.244.1.0\n        \
                    /24 link UNICAST\n     |-- 10.244.1.5\n        /32 host LOCAL\n     |-- 10.244.1.255\n        \
                    /32 link BROADCAST\nLocal:\n     |-- 127.0.0.1\n        /32 host LOCAL\n";
        let found: Vec<String> = locals(text).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["10.244.1.5", "127.0.0.1"]);
    }

    #[test]
    fn ipv6_addresses_are_read_from_the_list_of_interfaces() {
        let text = "fd000000000000000000000000000005 02 40 00 80     eth0\n\
                    fe800000000000000000000000000001 02 40 20 80     eth0\n";
        assert_eq!(interfaces(text), ["fd00::5".parse::<IpAddr>().unwrap(), "fe80::1".parse().unwrap()]);
    }
}
