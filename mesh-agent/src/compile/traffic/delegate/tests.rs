use super::*;

fn prefix(path: &str) -> HttpMatch {
    HttpMatch {
        path: Some(PathMatch::Prefix { prefix: path.into(), ignore_case: false }),
        ..HttpMatch::default()
    }
}

fn exact(path: &str) -> HttpMatch {
    HttpMatch {
        path: Some(PathMatch::Exact { path: path.into(), ignore_case: false }),
        ..HttpMatch::default()
    }
}

fn header(value: &str) -> HttpMatch {
    HttpMatch { headers: vec![("a".into(), Pattern::Exact(value.into()))], ..HttpMatch::default() }
}

#[test]
fn a_delegate_s_match_must_lie_within_one_of_the_root_s() {
    let both = HttpMatch { path: prefix("/a").path, ..header("x") };
    for (root, rule, expected) in [
        (vec![], vec![], Some(vec![])),
        (vec![prefix("/a")], vec![], Some(vec![prefix("/a")])),
        (vec![], vec![prefix("/a")], Some(vec![prefix("/a")])),
        (vec![prefix("/a")], vec![prefix("/a/b")], Some(vec![prefix("/a/b")])),
        (vec![prefix("/a")], vec![exact("/ab")], Some(vec![exact("/ab")])),
        (vec![prefix("/a")], vec![prefix("/b")], None),
        (vec![exact("/a")], vec![prefix("/a")], None),
        (vec![prefix("/a")], vec![header("x")], Some(vec![both.clone()])),
        (vec![header("y")], vec![header("x")], None),
        (
            vec![prefix("/b"), prefix("/a")],
            vec![header("x")],
            Some(vec![HttpMatch { path: prefix("/b").path, ..header("x") }, both]),
        ),
        (vec![prefix("/a")], vec![prefix("/a/b"), prefix("/c")], None),
    ] {
        assert_eq!(within(&root, &rule), expected, "{root:?} and {rule:?}");
    }
}
