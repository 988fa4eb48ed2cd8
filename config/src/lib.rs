//! The configuration file that every trustme program reads.
