//! The deny list: identities that may not talk to anybody, whatever the policies say. Key `denied-identities` of the
//! ConfigMap `nodemesh`. Pure. Called by whoever reads the mesh's settings, and by the certificate authority.

use std::collections::BTreeSet;

use crate::model::Identity;

/// The key in the ConfigMap.
pub const DENIED_KEY: &str = "denied-identities";

/// Reads the list: one SPIFFE id a line, `#` starts a comment. Faults with their line, counted from 1: a line that
/// is no identity denies nobody, so it must be seen.
pub fn parse(text: &str) -> (BTreeSet<Identity>, Vec<(usize, String)>) {
    let mut denied = BTreeSet::new();
    let mut faults = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let entry = line.split('#').next().unwrap_or_default().trim();
        if entry.is_empty() {
            continue;
        }
        match entry.parse::<Identity>() {
            Ok(identity) => drop(denied.insert(identity)),
            Err(error) => faults.push((at + 1, error.to_string())),
        }
    }
    (denied, faults)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_comments_and_faults_are_told_apart() {
        let text = "# stolen keys\nspiffe://cluster.local/ns/shop/sa/web  # since Monday\n\n  shop/web\n";
        let (denied, faults) = parse(text);
        let web: Identity = "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap();
        assert_eq!(denied, BTreeSet::from([web]));
        assert_eq!(faults.len(), 1);
        assert_eq!(faults[0].0, 4);
    }
}
