//! HTTP in the lab: real agents, real servers and clients, on one node and across two.
mod connections;
mod faults;
mod guide;
mod hostile;
mod life;
mod policy;
mod resilience;
mod routing;
mod shop;
mod tcp;
mod through;
