//! Where objects come from. Owns: a directory of manifests. Each source feeds `compile` and publishes to a
//! `WorldStore`. Called by the composition root.

pub mod dir;
