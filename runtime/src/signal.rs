//! Names and numbers of signals, as `kill` takes them.

use anyhow::{Result, bail};

/// Names in the order of their numbers, from 1 (signal(7), x86, arm, riscv).
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

/// First and last real-time signal that programs may use (glibc keeps 32 and 33).
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// The number of the signal called `text`: a number, a name with or without `SIG`, or `RTMIN+n`, `RTMAX-n`.
///
/// # Errors
/// If there is no such signal.
pub fn parse(text: &str) -> Result<i32> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let number = if let Ok(number) = name.parse() {
        number
    } else if let Some(offset) = name.strip_prefix("RTMIN") {
        RTMIN + offset_of(offset).unwrap_or(RTMAX)
    } else if let Some(offset) = name.strip_prefix("RTMAX") {
        RTMAX + offset_of(offset).unwrap_or(RTMAX)
    } else {
        match name {
            "IOT" => libc::SIGABRT,
            "CLD" => libc::SIGCHLD,
            "POLL" => libc::SIGIO,
            _ => NAMES
                .iter()
                .position(|known| *known == name)
                .map_or(0, |at| at as i32 + 1),
        }
    };
    if !(1..=RTMAX).contains(&number) {
        bail!("unknown signal {text:?}");
    }
    Ok(number)
}

fn offset_of(text: &str) -> Option<i32> {
    if text.is_empty() {
        Some(0)
    } else {
        text.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_found() {
        for (text, number) in [
            ("9", 9),
            ("KILL", 9),
            ("sigterm", 15),
            ("SIGSYS", 31),
            ("RTMIN+3", 37),
            ("SIGRTMAX-1", 63),
            ("64", 64),
            ("IOT", 6),
        ] {
            assert_eq!(parse(text).unwrap(), number, "{text}");
        }
        for text in ["", "0", "65", "FOO", "-1", "RTMIN+x", "RTMAX-99", "SIG"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
