//! The data path in the lab: two nodes with real agents, real applications, every way a connection can take.
//!
//! A "route" is one of those ways (`mesh::Route`). Most scenarios run on all of them in both families, because an
//! application must not be able to tell which one it got.
mod bulk;
mod capture;
mod endings;
mod escape;
mod leaks;
mod mesh;
mod service;
mod stall;
