//! The ABI between kernel and user space. Owns: map keys and values, flags, events, and the pure
//! helpers both sides share. Never: any I/O. Called by `mesh-ebpf` and by `mesh-agent::capture`.
#![no_std]

/// Version of every shared layout; part of each pin's file name, so that an agent never adopts
/// maps of another layout.
pub const ABI_VERSION: u32 = 1;

/// Port of the outbound listener inside each pod's network namespace.
pub const PORT_OUTBOUND: u16 = 15001;
/// Port of the inbound plaintext listener inside each pod's network namespace.
pub const PORT_INBOUND: u16 = 15006;
/// Port of the HBONE listener inside each pod's network namespace.
pub const PORT_HBONE: u16 = 15008;
