//! The data path: what happens to a captured connection, from accept to end. Owns: the workers, the order of
//! steps in both directions, budgets. Never: decides (that is `decide`) or opens a listener (that is `capture`).
//! Called by `agent`.

pub mod client_hello;
pub mod first_bytes;
pub mod http;
pub mod inbound;
pub mod limits;
pub mod originate;
pub mod outbound;
pub mod relay;
pub mod upstream;
pub mod worker;
