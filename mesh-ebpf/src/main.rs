//! Nodemesh's kernel programs, one file per hook. Owns: what happens to a pod's socket between the
//! system call and the agent. Never: parses anything, allocates, or decides policy (the agent decides
//! and the verdict cache carries the answer). Loaded by `mesh-agent::capture`.
#![no_std]
#![no_main]
// `core::sync::atomic` has neither arithmetic nor compare-and-swap for this target, though the kernel does.
#![feature(core_intrinsics)]
#![expect(internal_features, reason = "the only way to the kernel's atomic instructions")]

mod connect;
mod flows;
mod maps;
mod note;
mod sockops;
mod steer;

/// The kernel admits helpers such as the socket ones only to programs that name a GPL-compatible licence.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
