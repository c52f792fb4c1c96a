use std::collections::BTreeSet;

use super::*;

#[test]
fn labels_are_unique_and_every_row_has_a_hint() {
    let labels: BTreeSet<&str> = ROWS.iter().map(|row| row.label).collect();
    assert_eq!(labels.len(), ROWS.len());
    for row in ROWS {
        assert_eq!(row.reason.row(), row);
        assert!(!row.hint.is_empty(), "{} has no hint", row.label);
        assert!((400..600).contains(&row.http_status), "{}", row.label);
        assert!(row.grpc_status <= 16, "{}", row.label);
        assert_eq!(serde_json::to_value(row.reason).unwrap(), row.label);
    }
}
