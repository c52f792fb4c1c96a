use super::*;

#[test]
fn an_identity_survives_its_text_form() {
    let id = Identity::new("cluster.local", "shop", "frontend").unwrap();
    assert_eq!(id.to_string(), "spiffe://cluster.local/ns/shop/sa/frontend");
    assert_eq!(id.to_string().parse::<Identity>().unwrap(), id);
    assert_eq!(id.principal(), "cluster.local/ns/shop/sa/frontend");
}

#[test]
fn anything_but_the_five_exact_parts_is_refused() {
    for text in [
        "",
        "https://cluster.local/ns/a/sa/b",
        "spiffe://cluster.local/ns/a/sa/",
        "spiffe://cluster.local/ns//sa/b",
        "spiffe:///ns/a/sa/b",
        "spiffe://cluster.local/ns/a/sa/b/c",
        "spiffe://cluster.local/ns/a/sa/b?x=1",
        "spiffe://cluster.local/ns/a/sa/b#x",
        "spiffe://cluster.local/ns/a/sa/b%2f",
        "spiffe://cluster.local/ns/a/sa/b\0",
        "spiffe://cluster.local/ns/../sa/b",
        "spiffe://Cluster.local/ns/a/sa/b",
        "spiffe://cluster.local:80/ns/a/sa/b",
        "spiffe://cluster.local/sa/a/ns/b",
    ] {
        assert!(text.parse::<Identity>().is_err(), "{text:?} was accepted");
    }
}
