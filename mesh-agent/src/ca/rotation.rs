//! Which roots are published, since when, and when a signer may be used. Pure.
//!
//! A root must be known to every agent before the first certificate shows up that needs it, and must stay known
//! until the last certificate that needs it has ended. So a new root is published first; its signer is used `spread`
//! later (the kubelet takes up to two minutes to bring a ConfigMap into a pod, and the agent reads it within
//! seconds); a root that left the Secret stays published for `keep`, the longest life of a certificate and the
//! spread. What is published, and since when, is in the ConfigMap alone: every replica comes to the same answer.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::CertificateDer;

use crate::identity::BUNDLE_MAX_CERTS;

/// How a root stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Record {
    /// First published, seconds since 1970; 0 = with the first bundle, when there was nobody to wait for.
    pub since: u64,
    /// When it was first missing from the Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retired: Option<u64>,
}

/// The bundle with each root's record, in the order of publication.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Published {
    pub roots: Vec<(CertificateDer<'static>, Record)>,
}

/// How long things take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// From the publication of a root until every agent knows it.
    pub spread: Duration,
    /// How long a root stays published after its last use.
    pub keep: Duration,
}

impl Published {
    /// From the ConfigMap: its certificates, and the records of its annotation by fingerprint.
    pub fn read(certs: Vec<CertificateDer<'static>>, records: &BTreeMap<String, Record>) -> Self {
        let with = |cert: CertificateDer<'static>| {
            let record = records.get(&fingerprint(&cert)).copied().unwrap_or_default();
            (cert, record)
        };
        Self { roots: certs.into_iter().map(with).collect() }
    }

    pub fn records(&self) -> BTreeMap<String, Record> {
        self.roots.iter().map(|(cert, record)| (fingerprint(cert), *record)).collect()
    }

    pub fn certs(&self) -> Vec<CertificateDer<'static>> {
        self.roots.iter().map(|(cert, _)| cert.clone()).collect()
    }

    /// What is to be published now, with `wanted`, the roots of the Secret.
    pub fn merge(&self, wanted: &[CertificateDer<'static>], now: SystemTime, pace: Pace) -> Self {
        let now = seconds(now);
        let mut roots = Vec::new();
        for (cert, record) in &self.roots {
            let retired = if wanted.contains(cert) { None } else { Some(record.retired.unwrap_or(now)) };
            if retired.is_some_and(|since| since.saturating_add(pace.keep.as_secs()) <= now) {
                continue;
            }
            roots.push((cert.clone(), Record { retired, ..*record }));
        }
        let first = self.roots.is_empty();
        for cert in wanted {
            if !roots.iter().any(|(known, _)| known == cert) {
                roots.push((cert.clone(), Record { since: if first { 0 } else { now }, retired: None }));
            }
        }
        // Agents refuse a larger bundle as a whole; the oldest that nobody signs with any more goes first.
        while roots.len() > BUNDLE_MAX_CERTS
            && let Some(at) = roots.iter().position(|(_, record)| record.retired.is_some())
        {
            roots.remove(at);
        }
        Self { roots }
    }

    /// When certificates that end at this root may be issued; none while it is not published.
    pub fn usable_at(&self, anchor: &CertificateDer<'static>, pace: Pace) -> Option<SystemTime> {
        let (_, record) = self.roots.iter().find(|(cert, _)| cert == anchor)?;
        let since = UNIX_EPOCH + Duration::from_secs(record.since);
        Some(if record.since == 0 { since } else { since + pace.spread })
    }
}

/// SHA-256 of a certificate, its first half as hexadecimal: enough to tell a few roots apart.
pub fn fingerprint(cert: &CertificateDer<'_>) -> String {
    sha256(cert).iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// By the provider that TLS uses anyway.
pub fn sha256(bytes: &[u8]) -> Vec<u8> {
    use rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;
    let suite = TLS13_AES_128_GCM_SHA256.tls13();
    suite.map(|suite| suite.common.hash_provider.hash(bytes).as_ref().to_vec()).unwrap_or_default()
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACE: Pace = Pace { spread: Duration::from_secs(300), keep: Duration::from_secs(90_000) };

    fn root(name: u8) -> CertificateDer<'static> {
        CertificateDer::from(vec![name; 8])
    }

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn the_first_root_is_usable_at_once_and_a_second_one_after_it_has_spread() {
        let first = Published::default().merge(&[root(1)], at(1000), PACE);
        assert!(first.usable_at(&root(1), PACE).unwrap() <= at(1000));
        let both = first.merge(&[root(2)], at(2000), PACE);
        assert_eq!(both.certs(), [root(1), root(2)]);
        assert_eq!(both.usable_at(&root(2), PACE), Some(at(2300)));
        assert_eq!(both.usable_at(&root(3), PACE), None);
        // Every replica, at any later time, by the records alone.
        let again = Published::read(both.certs(), &both.records()).merge(&[root(2)], at(2200), PACE);
        assert_eq!(again, both);
    }

    #[test]
    fn an_old_root_stays_until_its_last_certificate_has_ended_and_comes_back_when_wanted() {
        let both = Published::default().merge(&[root(1)], at(1000), PACE).merge(&[root(2)], at(2000), PACE);
        assert_eq!(both.merge(&[root(2)], at(2000 + 89_999), PACE).certs(), [root(1), root(2)]);
        assert_eq!(both.merge(&[root(2)], at(2000 + 90_000), PACE).certs(), [root(2)]);
        let back = both.merge(&[root(1), root(2)], at(3000), PACE);
        assert!(back.roots.iter().all(|(_, record)| record.retired.is_none()));
    }

    #[test]
    fn a_root_staged_beside_the_old_one_in_the_secret_spreads_before_it_is_used() {
        let first = Published::default().merge(&[root(1)], at(1000), PACE);
        let staged = first.merge(&[root(1), root(2)], at(2000), PACE);
        let switched = staged.merge(&[root(2), root(1)], at(9000), PACE);
        assert_eq!(switched.usable_at(&root(2), PACE), Some(at(2300)), "counted from its publication");
    }

    #[test]
    fn a_bundle_never_grows_beyond_what_agents_read() {
        let mut published = Published::default();
        for name in 0..40 {
            published = published.merge(&[root(name)], at(1000 + u64::from(name)), PACE);
        }
        assert_eq!(published.roots.len(), BUNDLE_MAX_CERTS);
        assert!(published.certs().contains(&root(39)));
    }

    #[test]
    fn the_hash_is_sha_256() {
        let hex: String = sha256(b"abc").iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "ba7816bf");
    }
}
