//! The machine's TPM 2.0. Nothing outside this folder names the TSS.
//!
//! A [`Tpm`] is a connection that holds a machine-wide lock for as long as it lives, so what one program does to the TPM
//! between connecting and dropping is not interleaved with what another does: PCR 23 is safe to use, and a TPM without
//! a resource manager is enough. The TSS runs in a thread of its own: a TPM that stops answering is an error after
//! [`TIMEOUT`], never a program that hangs.

mod counter;
mod firmware;
mod pcr;
mod pin;
mod policy;
mod seal;
mod session;
mod signed;

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::path::Path;
use std::str::FromStr;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tss_esapi::{Context, TctiNameConf};

pub use firmware::{FirmwareEvent, FirmwareLog, differences};
pub use pcr::{Pcr, PcrValue, extended};
pub use pin::{Lockout, Pin};
pub use policy::{policy_digest, policy_pcr_digest};
pub use seal::{Claim, HexDigest, SealedSecret, Sealing};
pub use signed::{PcrSignatures, SignedPcrs};

use crate::lock;

/// How long one TPM command may take: the slowest TPMs need some seconds for creating a key.
pub const TIMEOUT: Duration = Duration::from_secs(30);

/// How long to wait for another program that uses the TPM.
const LOCK_TIMEOUT: Duration = Duration::from_secs(60);

/// The lock is in `/run` itself: no other user can make a file there.
const LOCK_PATH: &str = "/run/trustme-tpm.lock";

/// Why the TPM did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum TpmError {
    /// The TCTI string is not one that the TSS knows, or nothing answers there.
    #[error("TPM at {tcti}: cannot connect: {reason}")]
    Connect {
        /// The TCTI string.
        tcti: String,
        /// What the TSS said.
        reason: String,
    },
    /// Another program holds the TPM for too long, or the lock cannot be made.
    #[error("TPM lock {LOCK_PATH}: {0}")]
    Lock(io::Error),
    /// The TPM does not answer.
    #[error("TPM at {tcti}: no answer within {} s: {step}", timeout.as_secs())]
    Timeout {
        /// The TCTI string.
        tcti: String,
        /// What was being done.
        step: &'static str,
        /// How long it was waited for.
        timeout: Duration,
    },
    /// The TPM, or the way to it, refused a command.
    #[error("TPM at {tcti}: cannot {step}: {reason}")]
    Command {
        /// The TCTI string.
        tcti: String,
        /// What was being done.
        step: &'static str,
        /// What the TSS said.
        reason: String,
    },
    /// The TPM answered something other than what was asked.
    #[error("TPM: {0}")]
    Answer(String),
    /// The secret was sealed by another TPM, or this one's storage key was replaced.
    #[error(
        "sealed by another TPM: its storage root key was {sealed}, this machine's is {present}"
    )]
    OtherTpm {
        /// Hex name of the key that the secret was sealed under.
        sealed: String,
        /// Hex name of this TPM's key.
        present: String,
    },
    /// The machine did not boot as it had when the secret was sealed.
    #[error(
        "PCR {pcr} differs from the sealed value: sealed {sealed}, now {present}{}",
        why(events)
    )]
    PcrDiffers {
        /// The PCR.
        pcr: Pcr,
        /// Its value (hex) when the secret was sealed.
        sealed: String,
        /// Its value (hex) now.
        present: String,
        /// What the firmware's log says of the difference; empty where it says nothing.
        events: Vec<String>,
    },
    /// The secret is sealed to a signed PCR policy, and none is signed for the present state.
    #[error(
        "no PCR signature for the present values ({present}) by the key {key}, which has signed {signed} other states"
    )]
    NotSigned {
        /// The PCRs and their values.
        present: String,
        /// How many policies of this key there are.
        signed: usize,
        /// SHA-256 (hex) of the key's SubjectPublicKeyInfo.
        key: String,
    },
    /// The secret is sealed with a PIN, and there is none.
    #[error("a PIN is needed")]
    PinNeeded,
    /// The PIN is wrong.
    #[error("wrong PIN; {left} more wrong ones lock the TPM, which forgets one every {interval} s")]
    WrongPin {
        /// How many more wrong PINs the TPM takes.
        left: u32,
        /// Seconds until it forgets a wrong one.
        interval: u32,
    },
    /// The TPM takes no PIN now.
    #[error(
        "the TPM is locked after {wrong} wrong PINs; it takes one PIN again within {interval} s, or at once after tpm2_dictionarylockout -c"
    )]
    LockedOut {
        /// How many wrong PINs it remembers.
        wrong: u32,
        /// Seconds until it forgets a wrong one.
        interval: u32,
    },
    /// A counter is not there, or is none.
    #[error("NV counter {index:#010x}: {reason}")]
    Counter {
        /// Its NV index.
        index: u32,
        /// What is wrong.
        reason: &'static str,
    },
    /// Another container than the one that the secret was sealed for.
    #[error("sealed for another container: identity {sealed}, this one's is {present}")]
    OtherIdentity {
        /// The identity digest (hex) that the secret was sealed for.
        sealed: String,
        /// The identity digest (hex) of who asks.
        present: String,
    },
    /// What was read from disk is not a sealed secret.
    #[error("not a sealed secret: {0}")]
    Malformed(String),
}

/// What follows the values of a PCR that differs.
fn why(events: &[String]) -> String {
    match events {
        [] => String::new(),
        events => format!("; firmware events: {}", events.join(", ")),
    }
}

/// A step that the TPM's thread takes.
type Step = Box<dyn FnOnce(&mut Context) + Send>;

/// A connection to the TPM, and the machine-wide right to use it.
pub struct Tpm {
    tcti: String,
    timeout: Duration,
    /// `None` only while dropping.
    steps: Option<mpsc::Sender<Step>>,
    /// A step has not come back in time.
    stuck: Cell<bool>,
    /// Disconnected once the thread has closed its connection.
    closed: mpsc::Receiver<()>,
    /// Released last.
    _lock: File,
}

impl std::fmt::Debug for Tpm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tpm")
            .field("tcti", &self.tcti)
            .finish_non_exhaustive()
    }
}

impl Tpm {
    /// Connects to the TPM that the TCTI string names (`device:/dev/tpmrm0`, `swtpm:path=/run/tpm.sock`, `mssim:…`,
    /// `tabrmd:…`), after waiting for other users of this library.
    ///
    /// # Errors
    /// The string is not a TCTI, nothing answers, or another program keeps the TPM for more than a minute.
    pub fn connect(tcti: &str) -> Result<Self, TpmError> {
        Self::connect_within(tcti, TIMEOUT)
    }

    /// As [`Tpm::connect`], with another limit than [`TIMEOUT`] for each command.
    ///
    /// # Errors
    /// As [`Tpm::connect`].
    pub fn connect_within(tcti: &str, timeout: Duration) -> Result<Self, TpmError> {
        let name = TctiNameConf::from_str(tcti).map_err(|error| TpmError::Connect {
            tcti: tcti.to_owned(),
            reason: error.to_string(),
        })?;
        let deadline = Instant::now() + LOCK_TIMEOUT;
        let lock = lock::exclusive(Path::new(LOCK_PATH), deadline).map_err(TpmError::Lock)?;
        let (steps, taken) = mpsc::channel::<Step>();
        let (connected, outcome) = mpsc::channel();
        let (alive, closed) = mpsc::channel::<()>();
        std::thread::spawn(move || {
            let _alive = alive;
            match Context::new(name) {
                Err(error) => drop(connected.send(Err(error))),
                Ok(mut context) => {
                    if connected.send(Ok(())).is_ok() {
                        taken.iter().for_each(|step| step(&mut context));
                    }
                }
            }
        });
        let tcti = tcti.to_owned();
        match outcome.recv_timeout(timeout) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                return Err(TpmError::Connect {
                    tcti,
                    reason: error.to_string(),
                });
            }
            Err(_) => {
                return Err(TpmError::Timeout {
                    tcti,
                    step: "connect",
                    timeout,
                });
            }
        }
        let tpm = Self {
            tcti,
            timeout,
            steps: Some(steps),
            stuck: Cell::new(false),
            closed,
            _lock: lock,
        };
        if !tpm.has_resource_manager() {
            tpm.run("flush what a killed program left", session::flush_leftovers)?;
        }
        Ok(tpm)
    }

    /// Whether something between here and the TPM forgets a program's sessions and keys when the program ends.
    fn has_resource_manager(&self) -> bool {
        self.tcti.starts_with("device:/dev/tpmrm") || self.tcti.starts_with("tabrmd")
    }

    /// Has the TPM's thread take a step; `step` says what it does, to follow "cannot".
    fn run<T: Send + 'static>(
        &self,
        step: &'static str,
        f: impl FnOnce(&mut Context) -> tss_esapi::Result<T> + Send + 'static,
    ) -> Result<T, TpmError> {
        self.answer(step, f)?
            .map_err(|error| self.refused(step, &error))
    }

    /// The error of a step that the TPM refused.
    fn refused(&self, step: &'static str, error: &tss_esapi::Error) -> TpmError {
        TpmError::Command {
            tcti: self.tcti.clone(),
            step,
            reason: error.to_string(),
        }
    }

    /// As [`Tpm::run`], for those who look at the refusal.
    fn answer<T: Send + 'static>(
        &self,
        step: &'static str,
        f: impl FnOnce(&mut Context) -> tss_esapi::Result<T> + Send + 'static,
    ) -> Result<tss_esapi::Result<T>, TpmError> {
        let (reply, outcome) = mpsc::channel();
        let job: Step = Box::new(move |context| drop(reply.send(f(context))));
        let timed_out = || {
            self.stuck.set(true);
            TpmError::Timeout {
                tcti: self.tcti.clone(),
                step,
                timeout: self.timeout,
            }
        };
        self.steps
            .as_ref()
            .and_then(|steps| steps.send(job).ok())
            .ok_or_else(timed_out)?;
        outcome.recv_timeout(self.timeout).map_err(|_| timed_out())
    }
}

impl Drop for Tpm {
    /// Ends the thread, which flushes what it made in the TPM, before the lock is released. A thread that a dead TPM
    /// keeps is left behind.
    fn drop(&mut self) {
        drop(self.steps.take());
        if !self.stuck.get() {
            // The only outcome is that the sender is gone or that the time is over; both end the wait.
            let _ = self.closed.recv_timeout(self.timeout);
        }
    }
}
