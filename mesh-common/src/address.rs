//! An IP address as the kernel programs hold it. Owns the conversions; used by both sides.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// 16 bytes in network order, IPv4 mapped into IPv6. Held as four words, each as the kernel gives
/// it (network order in memory): comparisons stay four instructions and never become a `memcmp`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(C)]
pub struct Address(pub [u32; 4]);

const _: () = assert!(size_of::<Address>() == 16);

/// `::ffff` of a mapped address, as a word in network order.
const MAPPED: u32 = 0x0000_ffff_u32.to_be();
/// The last word of `::1`, in network order.
const ONE: u32 = 1u32.to_be();

impl Address {
    pub const UNSPECIFIED: Self = Self([0; 4]);

    /// From an IPv4 address as a word in network order.
    #[inline(always)]
    pub const fn from_v4_word(word: u32) -> Self {
        Self([0, 0, MAPPED, word])
    }

    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == MAPPED
    }

    /// `127.0.0.0/8` or `::1`.
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        if self.is_v4() {
            return u32::from_be(self.0[3]) >> 24 == 127;
        }
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == 0 && self.0[3] == ONE
    }

    /// `::`, or `0.0.0.0` mapped.
    #[inline(always)]
    pub const fn is_unspecified(&self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[3] == 0 && (self.0[2] == 0 || self.0[2] == MAPPED)
    }

    /// `fe80::/10`: belongs to one interface, so the return route can never match it.
    #[inline(always)]
    pub const fn is_link_local_v6(&self) -> bool {
        u32::from_be(self.0[0]) & 0xffc0_0000 == 0xfe80_0000
    }

    #[inline(always)]
    pub const fn same(&self, other: &Self) -> bool {
        self.0[0] == other.0[0]
            && self.0[1] == other.0[1]
            && self.0[2] == other.0[2]
            && self.0[3] == other.0[3]
    }

    /// The 16 bytes, in network order.
    #[inline(always)]
    pub const fn octets(self) -> [u8; 16] {
        // SAFETY: four words without padding are sixteen bytes, and any bytes are a value.
        unsafe { core::mem::transmute::<[u32; 4], [u8; 16]>(self.0) }
    }

    /// As the rest of the agent knows it: a mapped address becomes plain IPv4 again.
    pub const fn to_ip(self) -> IpAddr {
        if self.is_v4() {
            let [a, b, c, d] = self.0[3].to_ne_bytes();
            return IpAddr::V4(Ipv4Addr::new(a, b, c, d));
        }
        IpAddr::V6(Ipv6Addr::from_octets(self.octets()))
    }
}

impl From<IpAddr> for Address {
    fn from(ip: IpAddr) -> Self {
        let octets = match ip {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        let word =
            |at: usize| u32::from_ne_bytes([octets[at], octets[at + 1], octets[at + 2], octets[at + 3]]);
        Self([word(0), word(4), word(8), word(12)])
    }
}

#[cfg(test)]
mod tests;
