use std::path::Path;

use super::*;

/// What is said on the command line counts more than what the machine happens to have.
#[test]
fn a_named_node_or_context_means_the_cluster_and_a_named_socket_the_agent_here() {
    let nothing = Target::default();
    let socket = Path::new("/nowhere/admin.sock");
    let here = std::env::temp_dir();
    assert!(!nothing.means_cluster(Some(socket), socket), "a socket was named");
    assert!(!nothing.means_cluster(None, &here), "an agent is here");
    for target in [
        Target { node: Some("a".into()), ..Target::default() },
        Target { context: Some("a".into()), ..Target::default() },
        Target { kubeconfig: Some("a".into()), ..Target::default() },
        Target { cluster: true, ..Target::default() },
    ] {
        assert!(target.means_cluster(Some(socket), &here), "{target:?}");
    }
}

#[tokio::test]
async fn a_kubeconfig_that_cannot_be_read_is_named_with_a_remedy() {
    let target = Target { kubeconfig: Some("/nowhere/config".into()), ..Target::default() };
    let Err(error) = target.connect().await else { panic!("connected to nothing") };
    assert_eq!(error.exit(), crate::cli::Exit::Unreachable);
    let text = error.to_string();
    assert!(text.contains("/nowhere/config") && text.contains("--kubeconfig"), "{text}");
}

#[test]
fn a_cause_is_told_once() {
    let inner = std::io::Error::other("no route to host");
    let outer = std::io::Error::other(inner);
    assert_eq!(chain(&outer), "no route to host");
}
