//! Keys of the table of listening ports, and which families a listening socket serves.

use crate::Address;

/// Families that a listening socket answers outside the loopback.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Families {
    pub v4: bool,
    pub v6: bool,
}

/// `::` serves both: whether it is limited to IPv6 is not visible to the kernel programs, and a port
/// that is wrongly taken for listening costs a reset instead of a refusal, never an open door.
#[inline(always)]
pub const fn listen_families(local: &Address, socket_is_v6: bool) -> Families {
    if local.is_loopback() {
        return Families { v4: false, v6: false };
    }
    if !socket_is_v6 || local.is_v4() {
        return Families { v4: true, v6: false };
    }
    Families { v4: local.is_unspecified(), v6: true }
}

/// Key of the tables of listening ports.
#[inline(always)]
pub const fn listen_key(slot: u32, v6: bool, port: u16) -> u64 {
    (slot as u64) << 32 | (v6 as u64) << 16 | port as u64
}

/// The parts of [`listen_key`]: slot, family, port.
pub const fn split_listen_key(key: u64) -> (u32, bool, u16) {
    ((key >> 32) as u32, key >> 16 & 1 == 1, key as u16)
}

#[cfg(test)]
mod tests;
