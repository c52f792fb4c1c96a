//! The kernel's networking, as far as the agent asks for it directly. Owns: entering network namespaces,
//! the return route, sysctls, `sock_diag`, socket options, what full backlogs dropped. Never: knows pods, policies or eBPF. Called by
//! `capture` and by `proxy`.

pub mod backlog;
pub mod netns;
pub mod route;
pub mod sock;
pub mod sock_diag;
pub mod sysctl;

mod netlink;
