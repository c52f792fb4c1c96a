//! What the kernel programs know about an enrolled pod. Written by the agent only.

use crate::Address;

/// Bits of [`PodEntry::flags`] and of the map of slots.
pub struct PodFlags;

impl PodFlags {
    /// What the pod opens is captured. Not set while the pod is being enrolled or withdrawn.
    pub const ACTIVE: u32 = 1;
    /// Without a live agent the pod is refused, not let through.
    pub const FAIL_CLOSED: u32 = 1 << 1;
}

/// A namespace's settings from before the pod was enrolled. Kept in the kernel beside the pod, so that
/// an agent that adopts a dead one's pods still knows what to put back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct SavedSettings {
    pub values: [u8; Self::COUNT],
    /// One bit per value that was changed and must be put back.
    pub changed: u8,
    pub padding: [u8; 3],
}

impl SavedSettings {
    pub const COUNT: usize = 4;
}

/// Value of the map from a namespace's cookie to its pod.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct PodEntry {
    pub slot: u32,
    pub flags: u32,
    /// Different at each enrolment: a listening socket counted under an earlier one is not counted off.
    pub epoch: u32,
    pub padding: u32,
    pub address4: Address,
    pub address6: Address,
    pub saved: SavedSettings,
}

const _: () = assert!(size_of::<SavedSettings>() == 8);
const _: () = assert!(size_of::<PodEntry>() == 56);

/// Value of the map from a pod's address to its pod.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct LocalPod {
    pub cookie: u64,
    pub slot: u32,
    pub padding: u32,
}

const _: () = assert!(size_of::<LocalPod>() == 16);

#[cfg(feature = "user")]
mod user {
    // SAFETY: plain integers without implicit padding (asserted by size above); any bytes are a value.
    unsafe impl aya::Pod for super::PodEntry {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::LocalPod {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::SavedSettings {}
}
