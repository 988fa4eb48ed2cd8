//! Drives the built programs from outside: fixtures, engines, software TPM.
