//! A snapshot of plain vectors, so that the tests of decisions need no world.
