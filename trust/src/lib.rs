//! Launch identity and policy, measurement log, TPM, sealed volumes.
