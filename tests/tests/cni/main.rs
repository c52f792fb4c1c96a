//! New pods through the chained CNI plugin, called as a container runtime would, and the kubelet's probes.
mod absent;
mod chain;
mod plugin;
mod probes;
mod runtime;
