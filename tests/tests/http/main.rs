//! HTTP in the lab: real agents, real servers and clients, on one node and across two.
mod shop;
mod through;
