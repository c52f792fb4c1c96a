//! Who gets in and who does not, tried with real certificates, real packets and real misbehaviour.
mod certificates;
mod connect;
mod doors;
mod hbone;
mod mesh;
mod plaintext;
mod reuse;
mod spoof;
mod vanish;
