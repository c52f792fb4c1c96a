//! The kernel's networking, as far as the agent asks for it directly. Owns: entering network namespaces,
//! the return route, sysctls, `sock_diag`, socket options, what full backlogs dropped; and the one call that is about the
//! program itself (`pages`). Never: knows pods, policies or eBPF. Called by `capture`, `proxy` and `agent`.

pub mod backlog;
pub mod netns;
pub mod pages;
pub mod route;
pub mod sock;
pub mod sock_diag;
pub mod sysctl;

mod netlink;
