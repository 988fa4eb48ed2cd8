//! Errors that reach containerd with a status code, which its clients act on.

use containerd_shim_protos::ttrpc::{self, Code};

/// An error with a status code; every other error is `UNKNOWN`, as from containerd's own shim.
#[derive(Debug)]
pub struct Failure {
    code: Code,
    message: String,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// There is no such container or process, or it has ended.
pub fn not_found(message: impl Into<String>) -> anyhow::Error {
    failure(Code::NOT_FOUND, message)
}

/// The id is taken.
pub fn already_exists(message: impl Into<String>) -> anyhow::Error {
    failure(Code::ALREADY_EXISTS, message)
}

/// Not in the state that the request needs.
pub fn failed_precondition(message: impl Into<String>) -> anyhow::Error {
    failure(Code::FAILED_PRECONDITION, message)
}

/// The request is wrong.
pub fn invalid(message: impl Into<String>) -> anyhow::Error {
    failure(Code::INVALID_ARGUMENT, message)
}

/// What this shim does not do.
pub fn unimplemented(message: impl Into<String>) -> anyhow::Error {
    failure(Code::UNIMPLEMENTED, message)
}

fn failure(code: Code, message: impl Into<String>) -> anyhow::Error {
    let message = message.into();
    anyhow::Error::new(Failure { code, message })
}

/// The status that the client gets, with the whole chain of reasons.
pub fn status(error: &anyhow::Error) -> ttrpc::Error {
    let code = error
        .downcast_ref()
        .map_or(Code::UNKNOWN, |failure: &Failure| failure.code);
    ttrpc::Error::RpcStatus(ttrpc::get_status(code, format!("{error:#}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn the_code_survives_context() {
        let error = Err::<(), _>(not_found("no such process"))
            .context("cannot kill")
            .unwrap_err();
        let ttrpc::Error::RpcStatus(sent) = status(&error) else {
            panic!("no status");
        };
        assert_eq!(sent.code(), Code::NOT_FOUND);
        assert_eq!(sent.message(), "cannot kill: no such process");
    }
}
