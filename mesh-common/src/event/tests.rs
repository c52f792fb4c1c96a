use super::*;

#[test]
fn syn_and_fin_are_not_payload() {
    assert_eq!(payload_bytes(102, 51, LAST_ACK), (100, 50));
    assert_eq!(payload_bytes(102, 51, FIN_WAIT2), (100, 50));
    assert_eq!(payload_bytes(101, 51, CLOSE_WAIT), (100, 50));
    assert_eq!(payload_bytes(101, 50, 1), (100, 50));
    assert_eq!(payload_bytes(0, 0, 2), (0, 0));
}
