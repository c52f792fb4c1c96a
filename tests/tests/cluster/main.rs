//! The real cluster that other scenarios stand on: what it promises holds, and nothing of it is left.
mod api_server;
mod two_nodes;
