//! A pod's way into the mesh and out of it. The order of the steps is the point: nothing is steered before
//! the listeners stand and the pod's ports are known, nothing is captured before it can come back.

use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use mesh_common::{Address, LocalPod, PODS_MAX, PodEntry, PodFlags, SavedSettings};

use super::bpf::{self, AttachType};
use super::error::CaptureError;
use super::handle::LivePod;
use super::maps::{Maps, pin_path};
use super::object::{self, STEER};
use super::podns::Namespace;
use super::{Capture, Enrolled, PodAttachment, Record, WorkerListeners, listeners};
use crate::model::WorkloadId;
use crate::net::route::{self, Family};
use crate::net::sysctl;

/// The pods this agent has enrolled, and what an agent before has left in the kernel.
#[derive(Debug)]
pub(super) struct Pods {
    own_cookie: u64,
    next_epoch: u32,
    records: HashMap<WorkloadId, Record>,
    inherited: HashMap<u64, PodEntry>,
}

impl Pods {
    pub(super) fn adopt(maps: &Maps, own_cookie: u64) -> Result<Self, CaptureError> {
        let entries =
            maps.pods.entries().map_err(|source| CaptureError::MapAccess { map: "PODS", source })?;
        // Seconds since 1970 are above the epoch of any enrolment before, of this agent or another.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() as u32;
        let next_epoch =
            entries.iter().map(|(_, entry)| entry.epoch.wrapping_add(1)).max().unwrap_or(0).max(now);
        Ok(Self { own_cookie, next_epoch, records: HashMap::new(), inherited: entries.into_iter().collect() })
    }

    /// Adds what another agent has entered since.
    pub(super) fn adopt_late(&mut self, maps: &Maps) -> Result<(), CaptureError> {
        for (cookie, entry) in maps.pods.entries().map_err(access("PODS"))? {
            if !self.records.values().any(|record| record.cookie == cookie) {
                self.inherited.insert(cookie, entry);
            }
        }
        Ok(())
    }

    pub(super) fn enrolled(&self) -> Vec<WorkloadId> {
        self.records.iter().filter(|(_, record)| record.enrolled).map(|(id, _)| id.clone()).collect()
    }

    pub(super) fn all(&self) -> Vec<WorkloadId> {
        self.records.keys().cloned().collect()
    }

    pub(super) fn is_enrolled(&self, id: &WorkloadId) -> bool {
        self.records.get(id).is_some_and(|record| record.enrolled)
    }

    fn free_slot(&self, id: &WorkloadId) -> Result<u32, CaptureError> {
        let used = |slot| {
            self.records.values().any(|record| record.slot == slot)
                || self.inherited.values().any(|entry| entry.slot == slot)
        };
        (0..PODS_MAX)
            .find(|slot| !used(*slot))
            .ok_or_else(|| CaptureError::TooManyPods { workload: id.clone(), limit: PODS_MAX })
    }

    /// The entry a namespace starts from: its old one where it was in the mesh before, else a new one.
    fn entry_for(&mut self, id: &WorkloadId, cookie: u64) -> Result<PodEntry, CaptureError> {
        if let Some(entry) = self.inherited.get(&cookie) {
            return Ok(*entry);
        }
        let withdrawn =
            self.records.iter().find(|(_, record)| record.cookie == cookie).map(|(other, _)| other.clone());
        let (slot, saved) = match withdrawn.and_then(|other| self.records.remove(&other)) {
            Some(record) => (record.slot, record.saved),
            None => (self.free_slot(id)?, SavedSettings::default()),
        };
        let epoch = self.next_epoch;
        self.next_epoch = self.next_epoch.wrapping_add(1);
        Ok(PodEntry { slot, epoch, saved, ..PodEntry::default() })
    }
}

pub(super) fn enrol(
    capture: &mut Capture,
    pod: &PodAttachment,
    handed_over: Option<Vec<WorkerListeners>>,
) -> Result<Enrolled, CaptureError> {
    let netns = pod.netns.open().map_err(|source| netns_error(pod, source))?;
    let cookie = netns.cookie();
    check(capture, pod, cookie)?;
    let entry = capture.pods.entry_for(&pod.id, cookie)?;
    let mut record = Record {
        slot: entry.slot,
        cookie,
        netns: Arc::clone(&netns),
        addresses: pod.addresses.clone(),
        saved: entry.saved,
        enrolled: true,
    };
    let done = steps(capture, pod, entry, &mut record, handed_over);
    capture.pods.inherited.remove(&cookie);
    capture.pods.records.insert(pod.id.clone(), record);
    match done {
        Ok(listeners) => Ok(Enrolled { cookie, netns, listeners }),
        Err(error) => {
            // Half a pod is worse than none: its connections would hang.
            if let Err(undo) = withdraw(capture, &pod.id).and_then(|()| release(capture, &pod.id)) {
                tracing::warn!(workload = %pod.id, error = %undo, "cannot undo a failed enrolment");
            }
            Err(error)
        }
    }
}

fn check(capture: &Capture, pod: &PodAttachment, cookie: u64) -> Result<(), CaptureError> {
    let workload = pod.id.clone();
    if pod.addresses.is_empty() {
        return Err(CaptureError::NoAddress { workload });
    }
    if cookie == capture.pods.own_cookie {
        return Err(CaptureError::OwnNetns { workload });
    }
    if capture.pods.is_enrolled(&pod.id) {
        return Err(CaptureError::Enrolled { workload });
    }
    let sharing = capture.pods.records.iter().find(|(_, record)| record.enrolled && record.cookie == cookie);
    match sharing {
        Some((other, _)) => Err(CaptureError::SharedNetns { workload, other: other.clone() }),
        None => Ok(()),
    }
}

fn steps(
    capture: &Capture,
    pod: &PodAttachment,
    mut entry: PodEntry,
    record: &mut Record,
    handed_over: Option<Vec<WorkerListeners>>,
) -> Result<Vec<WorkerListeners>, CaptureError> {
    let maps = &capture.shared.maps;
    no_other_steering(capture, pod, record)?;
    prepare_namespace(pod, record)?;
    let mut listeners = handed_over.unwrap_or_default();
    // A predecessor with fewer workers left fewer: the rest joins the SO_REUSEPORT groups of those.
    let missing = capture.config.workers.max(1).saturating_sub(listeners.len());
    if missing > 0 {
        listeners.extend(listeners::open(maps, &record.netns, pod, missing)?);
    }
    // A namespace that an agent before has left complete stays captured throughout: with the listeners that were
    // handed over nothing is lost, without them its liveness rule holds. Loading the programs takes a while.
    entry.flags &= PodFlags::ACTIVE;
    if pod.fail_closed {
        entry.flags |= PodFlags::FAIL_CLOSED;
    }
    entry.address4 = first_of(&pod.addresses, IpAddr::is_ipv4);
    entry.address6 = first_of(&pod.addresses, IpAddr::is_ipv6);
    entry.saved = record.saved;
    maps.slots.set(&entry.slot, &entry.flags).map_err(access("SLOTS"))?;
    listeners::register(maps, entry.slot, &listeners)?;
    // From here on what begins to listen is counted; what listened before is listed after.
    maps.pods.set(&record.cookie, &entry).map_err(access("PODS"))?;
    listeners::refresh(maps, &record.netns, entry.slot)
        .map_err(|source| CaptureError::Sockets { workload: pod.id.clone(), source })?;
    attach_steering(capture, pod, record)?;
    let local = LocalPod { cookie: record.cookie, slot: entry.slot, padding: 0 };
    for address in &pod.addresses {
        maps.local.set(&Address::from(*address).0, &local).map_err(access("LOCAL"))?;
    }
    entry.flags |= PodFlags::ACTIVE;
    maps.slots.set(&entry.slot, &entry.flags).map_err(access("SLOTS"))?;
    maps.pods.set(&record.cookie, &entry).map_err(access("PODS"))?;
    let live = LivePod { slot: entry.slot, netns: Arc::clone(&record.netns) };
    capture.shared.pods.write().insert(record.cookie, live);
    Ok(listeners)
}

fn first_of(addresses: &[IpAddr], family: impl Fn(&IpAddr) -> bool) -> Address {
    addresses
        .iter()
        .find(|address| family(address))
        .map_or(Address::UNSPECIFIED, |address| Address::from(*address))
}

/// A second steering program would choose other sockets for the same packets.
fn no_other_steering(capture: &Capture, pod: &PodAttachment, record: &Record) -> Result<(), CaptureError> {
    let attached = bpf::attached(record.netns.as_fd(), AttachType::SkLookup).map_err(|source| {
        CaptureError::Attach { program: STEER, target: format!("the namespace of {}", pod.id), source }
    })?;
    let inherited = usize::from(capture.pods.inherited.contains_key(&record.cookie));
    if attached.len() <= inherited {
        return Ok(());
    }
    let programs = attached.iter().map(|id| format!("program {id}")).collect::<Vec<_>>().join(", ");
    Err(CaptureError::ConflictNetns { workload: pod.id.clone(), programs })
}

fn prepare_namespace(pod: &PodAttachment, record: &mut Record) -> Result<(), CaptureError> {
    let inside = || -> Result<SavedSettings, CaptureError> {
        let saved = sysctl::prepare()
            .map_err(|source| CaptureError::Settings { workload: pod.id.clone(), source })?;
        for family in Family::both(&pod.addresses) {
            route::add(family).map_err(|source| CaptureError::Route {
                workload: pod.id.clone(),
                family,
                source,
            })?;
        }
        Ok(saved)
    };
    let found = record.netns.run(inside).map_err(|source| netns_error(pod, source))??;
    // What an enrolment before has changed already is not what the pod came with.
    for at in 0..SavedSettings::COUNT {
        if record.saved.changed & 1 << at == 0 && found.changed & 1 << at != 0 {
            record.saved.values[at] = found.values[at];
            record.saved.changed |= 1 << at;
        }
    }
    Ok(())
}

fn attach_steering(capture: &Capture, pod: &PodAttachment, record: &Record) -> Result<(), CaptureError> {
    let dir = &capture.config.bpf_dir;
    let mut object = object::load(dir, capture.kernel, record.slot)?;
    let program = object::load_program(&mut object, STEER)?;
    let pin = steer_pin(capture, record.slot);
    if !capture.pods.inherited.contains_key(&record.cookie) {
        object::detach(&pin)?;
    }
    object::attach(&program, record.netns.as_fd(), AttachType::SkLookup, &pin).map_err(|source| {
        CaptureError::Attach { program: STEER, target: format!("the namespace of {}", pod.id), source }
    })
}

fn steer_pin(capture: &Capture, slot: u32) -> std::path::PathBuf {
    pin_path(&capture.config.bpf_dir, &format!("steer_{slot}"))
}

pub(super) fn set_fail_closed(
    capture: &mut Capture,
    id: &WorkloadId,
    fail_closed: bool,
) -> Result<(), CaptureError> {
    let record = capture.pods.records.get(id).filter(|record| record.enrolled);
    let (slot, cookie) = record
        .map(|record| (record.slot, record.cookie))
        .ok_or_else(|| CaptureError::Unknown { workload: id.clone() })?;
    let maps = &capture.shared.maps;
    let Some(mut entry) = maps.pods.get(&cookie).map_err(access("PODS"))? else {
        return Err(CaptureError::Unknown { workload: id.clone() });
    };
    entry.flags &= !PodFlags::FAIL_CLOSED;
    if fail_closed {
        entry.flags |= PodFlags::FAIL_CLOSED;
    }
    maps.slots.set(&slot, &entry.flags).map_err(access("SLOTS"))?;
    maps.pods.set(&cookie, &entry).map_err(access("PODS"))
}

pub(super) fn withdraw(capture: &mut Capture, id: &WorkloadId) -> Result<(), CaptureError> {
    let Some(record) = capture.pods.records.get_mut(id).filter(|record| record.enrolled) else {
        return Err(CaptureError::Unknown { workload: id.clone() });
    };
    record.enrolled = false;
    let (slot, cookie, addresses) = (record.slot, record.cookie, record.addresses.clone());
    let maps = &capture.shared.maps;
    capture.shared.pods.write().remove(&cookie);
    if let Some(mut entry) = maps.pods.get(&cookie).map_err(access("PODS"))? {
        // The entry itself stays until the release: it holds what the namespace must get back.
        entry.flags = 0;
        maps.pods.set(&cookie, &entry).map_err(access("PODS"))?;
    }
    object::detach(&steer_pin(capture, slot))?;
    for address in &addresses {
        let key = Address::from(*address).0;
        // The address may belong to another pod by now.
        if maps.local.get(&key).map_err(access("LOCAL"))?.is_some_and(|local| local.cookie == cookie) {
            maps.local.remove(&key).map_err(access("LOCAL"))?;
        }
    }
    listeners::unregister(maps, slot)?;
    capture.shared.forget_verdicts(cookie, &addresses)?;
    maps.slots.set(&slot, &0).map_err(access("SLOTS"))
}

pub(super) fn disown(capture: &mut Capture, pod: &PodAttachment) -> Result<bool, CaptureError> {
    // A namespace that is gone needs nothing; `prune` forgets it.
    let Ok(netns) = pod.netns.open() else { return Ok(false) };
    let cookie = netns.cookie();
    let Some(entry) = capture.pods.inherited.remove(&cookie) else { return Ok(false) };
    let record = Record {
        slot: entry.slot,
        cookie,
        netns,
        addresses: pod.addresses.clone(),
        saved: entry.saved,
        enrolled: true,
    };
    capture.pods.records.insert(pod.id.clone(), record);
    withdraw(capture, &pod.id).map(|()| true)
}

pub(super) fn release(capture: &mut Capture, id: &WorkloadId) -> Result<(), CaptureError> {
    let unknown = || CaptureError::Unknown { workload: id.clone() };
    if capture.pods.is_enrolled(id) {
        return Err(CaptureError::Enrolled { workload: id.clone() });
    }
    let record = capture.pods.records.remove(id).ok_or_else(unknown)?;
    let maps = &capture.shared.maps;
    let inside = || -> Result<(), CaptureError> {
        for family in Family::both(&record.addresses) {
            route::remove(family).map_err(|source| CaptureError::Route {
                workload: id.clone(),
                family,
                source,
            })?;
        }
        sysctl::restore(&record.saved)
            .map_err(|source| CaptureError::Settings { workload: id.clone(), source })
    };
    let restored = record.netns.run(inside).map_err(|source| CaptureError::Netns {
        workload: id.clone(),
        path: Namespace::Open(Arc::clone(&record.netns)).path(),
        source,
    });
    listeners::forget(maps, record.slot).map_err(access("LISTEN"))?;
    forget_legs(maps, record.cookie)?;
    maps.pods.remove(&record.cookie).map_err(access("PODS"))?;
    restored?
}

pub(super) fn prune(capture: &mut Capture) -> Result<usize, CaptureError> {
    let inherited = std::mem::take(&mut capture.pods.inherited);
    let maps = &capture.shared.maps;
    for (cookie, entry) in &inherited {
        maps.pods.remove(cookie).map_err(access("PODS"))?;
        object::detach(&steer_pin(capture, entry.slot))?;
        listeners::unregister(maps, entry.slot)?;
        listeners::forget(maps, entry.slot).map_err(access("LISTEN"))?;
        forget_legs(maps, *cookie)?;
        for (address, local) in maps.local.entries().map_err(access("LOCAL"))? {
            if local.cookie == *cookie {
                maps.local.remove(&address).map_err(access("LOCAL"))?;
            }
        }
        maps.slots.set(&entry.slot, &0).map_err(access("SLOTS"))?;
    }
    Ok(inherited.len())
}

/// Forgets the legs into a pod whose relayed connections have ended. One whose socket still says goodbye would
/// be taken for a leg into the next pod that has the slot and the address. Its bypassed flows stay: a pod that
/// only left the mesh keeps them, and they are judged on.
fn forget_legs(maps: &Maps, cookie: u64) -> Result<(), CaptureError> {
    for (key, leg) in maps.legs.entries().map_err(access("LEGS"))? {
        if leg.netns_cookie == cookie {
            maps.legs.remove(&key).map_err(access("LEGS"))?;
        }
    }
    Ok(())
}

fn netns_error(pod: &PodAttachment, source: std::io::Error) -> CaptureError {
    CaptureError::Netns { workload: pod.id.clone(), path: pod.netns.path(), source }
}

fn access(map: &'static str) -> impl Fn(std::io::Error) -> CaptureError {
    move |source| CaptureError::MapAccess { map, source }
}
