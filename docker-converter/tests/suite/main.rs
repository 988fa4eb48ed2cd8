//! trustme-convert from outside: hostile layers and sources, and whether it agrees with umoci.

mod archive;
mod command;
mod hostile;
mod image;
mod layers;
mod program;
mod sources;
mod umoci;
