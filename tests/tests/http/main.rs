//! HTTP in the lab: real agents, real servers and clients, on one node and across two.
mod balance;
mod connections;
mod faults;
mod grpc;
mod hostile;
mod life;
mod limits;
mod policy;
mod resilience;
mod routing;
mod semantics;
mod shop;
mod tcp;
mod through;
mod tools;
mod websocket;
