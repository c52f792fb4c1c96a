use super::*;
use crate::paths;

fn judge(path: &str, text: &str) -> Vec<String> {
    faults(&Source::new(path, text))
}

/// The whole workspace keeps the rules of the house.
#[test]
fn the_workspace_keeps_the_rules() {
    let mut read = 0;
    let mut found = Vec::new();
    for folder in ["mesh-agent", "mesh-common", "mesh-ebpf", "tests", "xtask"] {
        for source in sources(&paths::root(), folder) {
            read += 1;
            found.extend(faults(&source));
        }
    }
    assert!(read > 10, "only {read} files were read");
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

/// Every spelling of a use that goes up is seen.
#[test]
fn a_use_of_a_higher_floor_is_a_fault() {
    let bad = [
        "use crate::proxy::relay;",
        "use crate::{model::Identity, tunnel::{Pool, Stream}};",
        "use super::super::admin;",
        "fn f() { crate::observe::count(); }",
    ];
    for text in bad {
        assert_eq!(judge("mesh-agent/src/world/store.rs", text).len(), 1, "{text}");
    }
    assert_eq!(judge("mesh-agent/src/world/mod.rs", "use super::source;").len(), 1);
}

/// Uses of lower floors, of the own module, and words in comments and strings are none.
#[test]
fn a_use_of_a_lower_floor_is_none() {
    let good = r##"
        //! crate::proxy calls this; tokio does not.
        use crate::model::{Identity, proxy::Nothing};
        use super::store;
        /* crate::admin /* nested */ tokio */
        const A: &str = "crate::cli \" tokio"; const B: &str = r#"aya "quoted" hyper"#; const C: char = '"';
        fn f<'a>(tokio_like: &'a str) -> &'a str { tokio_like }
    "##;
    assert_eq!(judge("mesh-agent/src/world/mod.rs", good), Vec::<String>::new());
}

/// A pure module may not name a runtime, a clock or chance; its tests may.
#[test]
fn pure_modules_name_nothing_impure() {
    for text in [
        "use tokio::sync::watch;",
        "let t = std::time::Instant::now();",
        "use kube::Client;",
        "rand::random()",
    ] {
        assert_eq!(judge("mesh-agent/src/decide/balance/mod.rs", text).len(), 1, "{text}");
        assert_eq!(judge("mesh-agent/src/decide/balance/tests.rs", text).len(), 0, "{text}");
        assert_eq!(judge("mesh-agent/src/proxy/outbound.rs", text).len(), 0, "{text}");
    }
}

/// `unsafe` outside its places, a long file and an unknown module are faults.
#[test]
fn unsafe_length_and_unknown_modules_are_faults() {
    assert_eq!(judge("mesh-agent/src/proxy/relay.rs", "unsafe { f() }").len(), 1);
    assert_eq!(judge("mesh-agent/src/net/sock.rs", "unsafe { f() }").len(), 0);
    assert_eq!(judge("mesh-agent/src/proxy/relay.rs", &"\n".repeat(LINES + 1)).len(), 1);
    assert_eq!(judge("mesh-agent/src/extras/mod.rs", "").len(), 1);
}
