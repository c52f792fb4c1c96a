use std::collections::BTreeSet;

use super::*;

/// What a `resolv.conf` makes of the resolver: one, the same one while the text is, another one, or a problem that names
/// the file.
#[tokio::test]
async fn name_servers_are_those_of_the_file_as_it_is_now() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("resolv.conf");
    let mut servers = Servers { path: path.clone(), text: Vec::new(), resolver: None };
    let large = "#".repeat(usize::try_from(CONFIG_MAX_BYTES).unwrap() + 1);
    for (text, good) in [
        (None, false),
        (Some("search shop.example\n"), false),
        (Some("nameserver 192.0.2.1\noptions timeout:1 attempts:1\n"), true),
        (Some("nameserver 2001:db8::1\n"), true),
        (Some(large.as_str()), false),
    ] {
        if let Some(text) = text {
            std::fs::write(&path, text).unwrap();
        }
        let found = servers.current();
        assert_eq!(found.is_ok(), good, "{text:?}");
        match found {
            Ok(resolver) => {
                assert_eq!(servers.text, text.unwrap().as_bytes());
                assert_eq!(resolver.options().cache_size, 0, "an answer is kept once, and not here");
            }
            Err(problem) => assert!(problem.contains(path.to_str().unwrap()), "{problem}"),
        }
    }
}

/// A name server that only listens: names are asked for [`LOOKUPS_MAX`] at a time, and the next ones when those are given
/// up. Time is the runtime's own, which goes on when there is nothing else to do.
#[tokio::test(start_paused = true)]
async fn many_names_are_asked_for_in_turn() {
    // Name servers have port 53, so an address of this test's own.
    let (address, server) = loop {
        let octets = [127, fastrand::u8(1..), fastrand::u8(..), fastrand::u8(1..255)];
        if let Ok(server) = tokio::net::UdpSocket::bind((IpAddr::from(octets), 53)).await {
            break (IpAddr::from(octets), server);
        }
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("resolv.conf");
    std::fs::write(&path, format!("nameserver {address}\noptions timeout:2 attempts:1\n")).unwrap();
    let hosts: Vec<String> = (0..3 * LOOKUPS_MAX).map(|number| format!("n{number}.example.com")).collect();
    let entry = format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: e, namespace: shop}}\nspec: {{hosts: \
         [{}], resolution: DNS, ports: [{{number: 80, name: http, protocol: HTTP}}]}}\n",
        hosts.join(", ")
    );
    let store = Arc::new(WorldStore::new(crate::world::fixture::world(&[entry])));
    let _names = start(store, NamesSettings { resolv_conf: path, hits: Hits::default() });
    let (mut asked, mut at_once, mut question) = (BTreeSet::new(), 0, [0; 512]);
    let mut since = None;
    while asked.len() < hosts.len() {
        let length = server.recv(&mut question).await.unwrap();
        // RFC 1035, 4.1.2: after a header of 12 bytes labels, up to an empty one.
        let name = question[12..length].split(|byte| *byte == 0).next().unwrap();
        asked.insert(name.to_ascii_lowercase());
        let since: &mut tokio::time::Instant = since.get_or_insert_with(tokio::time::Instant::now);
        if since.elapsed() < Duration::from_secs(1) {
            at_once = asked.len();
        }
    }
    assert_eq!(at_once, LOOKUPS_MAX);
}
