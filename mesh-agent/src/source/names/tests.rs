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
