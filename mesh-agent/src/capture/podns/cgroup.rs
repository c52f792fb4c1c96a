//! Which pod a process belongs to, by the text of `/proc/PID/cgroup`. Pure.
//!
//! The kubelet names a pod's cgroup by its UID: `pod1b4e28ba-2fa1-11d2-883f-0016d3cca427` (driver cgroupfs),
//! `kubepods-burstable-pod1b4e28ba_2fa1_11d2_883f_0016d3cca427.slice` (driver systemd). Where it makes no such groups
//! (`cgroupsPerQOS: false`) only the container's own group is left, which every runtime names by the container's id:
//! `ID`, `cri-containerd-ID.scope`, `crio-ID`, `docker-ID.scope`, `libpod-ID.scope`.
//!
//! Only the outermost name counts: a pod that may write to its own cgroup can make groups of any name below it.

/// What a process's cgroup says about its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// A pod's UID, as the API server writes it, in lower case.
    Pod(String),
    /// A container's id.
    Container(String),
}

/// Length of a UID with dashes.
const UID_LENGTH: usize = 36;
/// Where its dashes are.
const UID_DASHES: [usize; 4] = [8, 13, 18, 23];
/// Length of the UID of a static pod: an MD5 sum.
const STATIC_UID_LENGTH: usize = 32;
/// Length of a container's id.
const CONTAINER_LENGTH: usize = 64;

/// The owner of the process with this `cgroup` file: lines `ID:CONTROLLERS:PATH`, one for each hierarchy of
/// cgroup v1, and `0::PATH` for v2. None for a process of the node itself.
pub(super) fn owner(text: &str) -> Option<Owner> {
    let mut container = None;
    for path in text.lines().filter_map(|line| line.splitn(3, ':').nth(2)) {
        match path.split('/').find_map(component) {
            Some(Owner::Pod(uid)) => return Some(Owner::Pod(uid)),
            Some(found) => container = container.or(Some(found)),
            None => {}
        }
    }
    container
}

fn component(name: &str) -> Option<Owner> {
    let bare = name.strip_suffix(".slice").or_else(|| name.strip_suffix(".scope")).unwrap_or(name);
    // `pod` begins the name or comes after a dash, so that it is no part of another word.
    let pod = bare.match_indices("pod").filter(|(at, _)| *at == 0 || bare[..*at].ends_with('-'));
    // containerd writes `SLICE:cri-containerd:ID` where the systemd driver is not used for its own groups.
    let named = |rest: &str| uid(rest.split(['.', ':']).next().unwrap_or_default());
    let uid = pod.filter_map(|(at, word)| named(&bare[at + word.len()..])).last();
    if let Some(uid) = uid {
        return Some(Owner::Pod(uid));
    }
    let id = bare.rsplit(['-', ':']).next()?;
    let good = id.len() == CONTAINER_LENGTH && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    good.then(|| Owner::Container(id.to_ascii_lowercase()))
}

/// With dashes, or with underscores where a dash would end a slice's name.
fn uid(text: &str) -> Option<String> {
    let text = text.replace('_', "-").to_ascii_lowercase();
    let hex = |byte: u8| byte.is_ascii_hexdigit();
    let dashed = text.len() == UID_LENGTH
        && text.bytes().enumerate().all(
            |(at, byte)| {
                if UID_DASHES.contains(&at) { byte == b'-' } else { hex(byte) }
            },
        );
    let plain = text.len() == STATIC_UID_LENGTH && text.bytes().all(hex);
    (dashed || plain).then_some(text)
}

#[cfg(test)]
mod tests;
