//! The data path of connections. See each module's header.

pub mod relay;
