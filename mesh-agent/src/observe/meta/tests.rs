use std::collections::HashSet;

use super::*;

#[test]
fn decision_ids_differ_and_survive_their_text_form() {
    let ids: HashSet<DecisionId> = (0..10_000).map(|_| DecisionId::new()).collect();
    assert_eq!(ids.len(), 10_000);
    for id in ids.iter().take(100) {
        assert_eq!(id.to_string().parse(), Ok(*id));
    }
}

#[test]
fn a_peer_cannot_smuggle_text_through_a_decision_id() {
    for text in [
        "",
        "0",
        "+000000000000001",
        "00000000000000001",
        "000000000000000G",
        "000000000000000A",
        "0000 00000000000",
    ] {
        assert_eq!(text.parse::<DecisionId>(), Err(DecisionIdError), "{text:?}");
    }
}
