//! The leader lease, as client-go's leader election does it, so that `kubectl get lease` reads as ever. Owns: when to
//! claim, renew, give up and release. Never: says what a leader does. The rule (`Elector`) is pure: time comes in.
//! Called by `controller`.
//!
//! Another's lease is judged by how long *this* process has seen it unchanged, never by the time written in it:
//! replicas' clocks differ. A leader that could not renew for `RENEW_DEADLINE`, which is shorter than the lease, stops
//! before anybody else may start.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::ca::store::FIELD_MANAGER;

/// The Lease's name.
pub const LEASE: &str = "nodemesh-controller";
/// How long a lease holds after its last renewal.
pub const DURATION: Duration = Duration::from_secs(15);
/// A leader that has not renewed for this long stops leading.
pub const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// Between two looks.
pub const RETRY: Duration = Duration::from_secs(2);
/// Longest wait for one answer of the API server.
const CALL_TIMEOUT: Duration = Duration::from_secs(4);

/// How fast an election goes; shorter in tests.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    pub duration: Duration,
    pub renew_deadline: Duration,
    pub retry: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { duration: DURATION, renew_deadline: RENEW_DEADLINE, retry: RETRY }
    }
}

/// What is seen of a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Empty = released.
    pub holder: String,
    /// Changes with every renewal.
    pub version: String,
    pub duration: Duration,
}

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// There is no lease: make it.
    Create,
    /// Nobody holds it any more: take it.
    Claim,
    /// It is ours.
    Renew,
    /// Another holds it.
    Wait,
}

/// One candidate's memory.
#[derive(Clone, Debug)]
pub struct Elector {
    me: String,
    seen: Option<(Seen, Instant)>,
}

impl Elector {
    pub fn new(me: String) -> Self {
        Self { me, seen: None }
    }

    /// Judges what is found now.
    pub fn step(&mut self, found: Option<Seen>, now: Instant) -> Step {
        let Some(found) = found else {
            self.seen = None;
            return Step::Create;
        };
        let since = match &self.seen {
            Some((seen, since)) if *seen == found => *since,
            _ => now,
        };
        let (ours, free) = (found.holder == self.me, found.holder.is_empty());
        let over = now.duration_since(since) >= found.duration;
        self.seen = Some((found, since));
        match (ours, free || over) {
            (true, _) => Step::Renew,
            (false, true) => Step::Claim,
            (false, false) => Step::Wait,
        }
    }
}

/// Takes part in the election until `stop` completes, then releases what is held. `leading` says where it stands.
pub async fn run(
    api: Api<Lease>,
    me: String,
    pace: Pace,
    leading: watch::Sender<bool>,
    stop: impl Future<Output = ()>,
) {
    let mut stop = std::pin::pin!(stop);
    let mut elector = Elector::new(me.clone());
    let mut renewed: Option<Instant> = None;
    let mut tick = tokio::time::interval(pace.retry);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = &mut stop => break,
            _ = tick.tick() => {}
        }
        let asked = Instant::now();
        match tokio::time::timeout(CALL_TIMEOUT.min(pace.renew_deadline / 2), turn(&api, &mut elector, pace))
            .await
        {
            // Counted from before the call: the API server may have stored it any time since.
            Ok(Ok(true)) => renewed = Some(asked),
            Ok(Ok(false)) => renewed = None,
            Ok(Err(error)) => tracing::warn!(%error, "the lease {LEASE} cannot be read or written"),
            Err(_elapsed) => tracing::warn!("the API server does not answer about the lease {LEASE}"),
        }
        let leads = renewed.is_some_and(|at| at.elapsed() < pace.renew_deadline);
        if leading.send_if_modified(|was| std::mem::replace(was, leads) != leads) {
            tracing::info!(leads, me, "leadership");
        }
    }
    if leading.send_replace(false) {
        let released = tokio::time::timeout(CALL_TIMEOUT, release(&api, &me)).await;
        if !matches!(released, Ok(Ok(()))) {
            tracing::info!(
                "the lease {LEASE} was not released; another replica takes it when it has run out"
            );
        }
    }
}

/// One look, and one write where it is due. Whether the lease is ours afterwards.
async fn turn(api: &Api<Lease>, elector: &mut Elector, pace: Pace) -> Result<bool, kube::Error> {
    let found = api.get_opt(LEASE).await?;
    let seen = found.as_ref().map(seen);
    let now = MicroTime(Timestamp::now());
    let step = elector.step(seen, Instant::now());
    let old = found.as_ref().and_then(|lease| lease.spec.clone()).unwrap_or_default();
    let spec = match step {
        Step::Wait => return Ok(false),
        Step::Renew => LeaseSpec { renew_time: Some(now), ..old },
        Step::Create | Step::Claim => LeaseSpec {
            acquire_time: Some(now.clone()),
            renew_time: Some(now),
            lease_transitions: Some(old.lease_transitions.map_or(0, |count| count.saturating_add(1))),
            ..old
        },
    };
    let spec = LeaseSpec {
        holder_identity: Some(elector.me.clone()),
        lease_duration_seconds: Some(i32::try_from(pace.duration.as_secs().max(1)).unwrap_or(i32::MAX)),
        ..spec
    };
    let written = match found {
        None => {
            let metadata = ObjectMeta { name: Some(LEASE.to_owned()), ..ObjectMeta::default() };
            api.create(&params(), &Lease { metadata, spec: Some(spec) }).await
        }
        Some(lease) => api.replace(LEASE, &params(), &Lease { spec: Some(spec), ..lease }).await,
    };
    match written {
        Ok(_) => Ok(true),
        // Another was first; the next look tells who.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}

async fn release(api: &Api<Lease>, me: &str) -> Result<(), kube::Error> {
    let Some(lease) = api.get_opt(LEASE).await? else { return Ok(()) };
    let Some(spec) = lease.spec.clone().filter(|spec| spec.holder_identity.as_deref() == Some(me)) else {
        return Ok(());
    };
    let spec = LeaseSpec {
        holder_identity: Some(String::new()),
        lease_duration_seconds: Some(1),
        renew_time: Some(MicroTime(Timestamp::now())),
        ..spec
    };
    api.replace(LEASE, &params(), &Lease { spec: Some(spec), ..lease }).await.map(drop)
}

/// The API of the lease's namespace.
pub fn api(client: &Client, namespace: &str) -> Api<Lease> {
    Api::namespaced(client.clone(), namespace)
}

fn params() -> PostParams {
    PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() }
}

fn seen(lease: &Lease) -> Seen {
    let spec = lease.spec.as_ref();
    let seconds = spec.and_then(|spec| spec.lease_duration_seconds).and_then(|s| u64::try_from(s).ok());
    Seen {
        holder: spec.and_then(|spec| spec.holder_identity.clone()).unwrap_or_default(),
        version: lease.metadata.resource_version.clone().unwrap_or_default(),
        duration: seconds.map_or(DURATION, Duration::from_secs),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(holder: &str, version: &str) -> Option<Seen> {
        Some(Seen { holder: holder.into(), version: version.into(), duration: DURATION })
    }

    #[tokio::test]
    async fn another_s_lease_is_taken_only_after_it_stood_still_for_its_whole_duration() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut me = Elector::new("me".into());
        assert_eq!(me.step(lease("other", "1"), at(0)), Step::Wait);
        assert_eq!(me.step(lease("other", "1"), at(14)), Step::Wait);
        assert_eq!(me.step(lease("other", "2"), at(14)), Step::Wait, "renewed: counted anew");
        assert_eq!(me.step(lease("other", "2"), at(28)), Step::Wait);
        assert_eq!(me.step(lease("other", "2"), at(29)), Step::Claim);
    }

    #[tokio::test]
    async fn a_missing_lease_is_made_an_own_one_renewed_and_a_released_one_taken_at_once() {
        let now = Instant::now();
        let mut me = Elector::new("me".into());
        assert_eq!(me.step(None, now), Step::Create);
        assert_eq!(me.step(lease("me", "1"), now), Step::Renew);
        assert_eq!(me.step(lease("other", "2"), now), Step::Wait);
        assert_eq!(me.step(lease("", "3"), now), Step::Claim);
    }
}
