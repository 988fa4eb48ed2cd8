//! Access to devices with cgroup v2: a program that the kernel asks about every access.
//!
//! libcgroups can load such programs, too, but by libbpf (which wants libelf and zlib at run time and a raised
//! RLIMIT_MEMLOCK), and its programs let a combined access pass a rule that denies a part of it (docs/libcontainer.md).

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, bail};
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};
use rustix::fs::{Mode, OFlags};

use crate::sys;

/// linux/bpf.h: bits of an access.
const MKNOD: u32 = 1;
const READ: u32 = 2;
const WRITE: u32 = 4;
const ALL: u32 = MKNOD | READ | WRITE;

/// linux/bpf.h: types of a device.
const BLOCK: u32 = 1;
const CHAR: u32 = 2;

/// One rule; what is `None` fits all.
#[derive(Clone, Copy, Debug)]
struct Rule {
    allow: bool,
    kind: Option<u32>,
    major: Option<u32>,
    minor: Option<u32>,
    access: u32,
}

/// What every container may have (runc's list): any node may be made, and the harmless devices be used. Terminals lie
/// in /dev/pts, majors 136 to 143 (Linux allocated devices), of which the first is in use.
const ALWAYS: [Rule; 10] = [
    Rule::of(CHAR, None, None, MKNOD),
    Rule::of(BLOCK, None, None, MKNOD),
    Rule::of(CHAR, Some(1), Some(3), ALL),
    Rule::of(CHAR, Some(1), Some(5), ALL),
    Rule::of(CHAR, Some(1), Some(7), ALL),
    Rule::of(CHAR, Some(1), Some(8), ALL),
    Rule::of(CHAR, Some(1), Some(9), ALL),
    Rule::of(CHAR, Some(5), Some(0), ALL),
    Rule::of(CHAR, Some(5), Some(2), ALL),
    Rule::of(CHAR, Some(136), None, ALL),
];

impl Rule {
    const fn of(kind: u32, major: Option<u32>, minor: Option<u32>, access: u32) -> Self {
        Self {
            allow: true,
            kind: Some(kind),
            major,
            minor,
            access,
        }
    }

    fn new(device: &LinuxDeviceCgroup) -> Result<Self> {
        let kind = match device.typ() {
            None | Some(LinuxDeviceType::A) => None,
            Some(LinuxDeviceType::B) => Some(BLOCK),
            Some(LinuxDeviceType::C) => Some(CHAR),
            Some(other) => bail!("device rule: type {other:?} is none that a cgroup knows"),
        };
        // The kernel's cgroup v1 takes a rule for all devices as one for every access, too.
        let access = match (kind, device.access().as_deref()) {
            (None, _) => ALL,
            (Some(_), access) => access_bits(access.unwrap_or_default())?,
        };
        let number = |number: Option<i64>| match number {
            None | Some(-1) => Ok(None),
            Some(number) => u32::try_from(number)
                .map(Some)
                .context("device rule: number out of range"),
        };
        Ok(Self {
            allow: device.allow(),
            kind,
            major: number(device.major())?.filter(|_| kind.is_some()),
            minor: number(device.minor())?.filter(|_| kind.is_some()),
            access,
        })
    }
}

fn access_bits(text: &str) -> Result<u32> {
    text.chars().try_fold(0, |bits, letter| match letter {
        'r' => Ok(bits | READ),
        'w' => Ok(bits | WRITE),
        'm' => Ok(bits | MKNOD),
        _ => bail!("device rule: access {text:?} has other letters than r, w, m"),
    })
}

/// Lets processes of the cgroup `dir` access what the rules allow, in place of what they could before.
///
/// # Errors
/// If a rule is wrong, or the kernel refuses the program.
pub fn restrict(dir: &Path, devices: &[LinuxDeviceCgroup]) -> Result<()> {
    let rules = devices.iter().map(Rule::new).collect::<Result<Vec<_>>>()?;
    let program =
        sys::load_device_program(&assemble(&rules)).context("cannot load the device program")?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let cgroup: OwnedFd = rustix::fs::open(dir, flags, Mode::empty())
        .with_context(|| format!("cannot open {}", dir.display()))?;
    let before = sys::device_programs_of(cgroup.as_fd()).context("cannot list device programs")?;
    sys::attach_device_program(cgroup.as_fd(), program.as_fd())
        .context("cannot attach the device program")?;
    // All programs have to allow an access, so there is no moment without restriction.
    for id in before {
        sys::detach_device_program(cgroup.as_fd(), id)
            .context("cannot detach the former device program")?;
    }
    Ok(())
}

/// The program. As with cgroup v1, the rules count in their order, each for the accesses it names, and what none names
/// is allowed; so from the last to the first, each allowing rule that fits crosses out what it names, and a denying one
/// that names something not yet crossed out denies.
fn assemble(rules: &[Rule]) -> Vec<u64> {
    let mut code = vec![
        // struct bpf_cgroup_dev_ctx { u32 access << 16 | type, major, minor } in r1.
        op(LOAD_WORD, 2, 1, 0, 0),
        op(LOAD_WORD, 3, 1, 0, 0),
        op(LOAD_WORD, 4, 1, 4, 0),
        op(LOAD_WORD, 5, 1, 8, 0),
        op(AND, 2, 0, 0, 0xFFFF),
        op(SHIFT_RIGHT, 3, 0, 0, 16),
    ];
    for rule in rules.iter().chain(&ALWAYS).rev() {
        let conditions: Vec<_> = [(2, rule.kind), (4, rule.major), (5, rule.minor)]
            .into_iter()
            .filter_map(|(register, wanted)| Some((register, wanted?)))
            .collect();
        let body = match rule.allow {
            true => [
                op(AND, 3, 0, 0, !rule.access & ALL),
                op(JUMP_UNEQUAL, 3, 0, 2, 0),
                op(MOVE, 0, 0, 0, 1),
                op(EXIT, 0, 0, 0, 0),
            ]
            .to_vec(),
            false => [
                op(MOVE_REGISTER, 0, 3, 0, 0),
                op(AND, 0, 0, 0, rule.access),
                op(JUMP_EQUAL, 0, 0, 2, 0),
                op(MOVE, 0, 0, 0, 0),
                op(EXIT, 0, 0, 0, 0),
            ]
            .to_vec(),
        };
        for (at, (register, wanted)) in conditions.iter().enumerate() {
            let to_next_rule = conditions.len() - at - 1 + body.len();
            code.push(op(JUMP_UNEQUAL, *register, 0, to_next_rule as i16, *wanted));
        }
        code.extend(body);
    }
    code.extend([op(MOVE, 0, 0, 0, 1), op(EXIT, 0, 0, 0, 0)]);
    code
}

/// Operations on 32 bits (linux/bpf.h, linux/bpf_common.h).
const LOAD_WORD: u8 = 0x61;
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const MOVE: u8 = 0xB4;
const MOVE_REGISTER: u8 = 0xBC;
const JUMP_EQUAL: u8 = 0x16;
const JUMP_UNEQUAL: u8 = 0x56;
const EXIT: u8 = 0x95;

/// An instruction as struct bpf_insn lays it out on a little-endian machine.
const fn op(code: u8, target: u8, source: u8, offset: i16, immediate: u32) -> u64 {
    (code as u64)
        | ((target as u64) << 8)
        | ((source as u64) << 12)
        | ((offset as u16 as u64) << 16)
        | ((immediate as u64) << 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(json: serde_json::Value) -> Vec<Rule> {
        let devices: Vec<LinuxDeviceCgroup> = serde_json::from_value(json).unwrap();
        devices
            .iter()
            .map(|device| Rule::new(device).unwrap())
            .collect()
    }

    /// Runs the program for an access on rbpf, a machine for such programs.
    fn allowed(rules: &[Rule], kind: u32, major: u32, minor: u32, access: &str) -> bool {
        let code: Vec<u8> = assemble(rules)
            .into_iter()
            .flat_map(u64::to_le_bytes)
            .collect();
        let machine = rbpf::EbpfVmRaw::new(Some(&code)).unwrap();
        let mut context = Vec::new();
        for word in [access_bits(access).unwrap() << 16 | kind, major, minor] {
            context.extend(word.to_le_bytes());
        }
        machine.execute_program(&mut context).unwrap() == 1
    }

    #[test]
    fn rules_count_in_their_order() {
        let rules = rules(serde_json::json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"},
            {"allow": true, "type": "b", "major": 8, "access": "rwm"},
            {"allow": false, "type": "b", "major": 8, "minor": 1, "access": "w"},
        ]));
        for (kind, major, minor, access, expected) in [
            (CHAR, 10, 229, "r", true),
            (CHAR, 10, 229, "rw", true),
            (CHAR, 10, 230, "r", false),
            (BLOCK, 10, 229, "r", false),
            (BLOCK, 8, 0, "rwm", true),
            (BLOCK, 8, 1, "r", true),
            (BLOCK, 8, 1, "w", false),
            // The part that is denied denies the whole.
            (BLOCK, 8, 1, "rw", false),
            (BLOCK, 9, 0, "r", false),
            // What every container may have.
            (BLOCK, 9, 0, "m", true),
            (CHAR, 1, 3, "rw", true),
            (CHAR, 136, 77, "rw", true),
            (CHAR, 5, 1, "rw", false),
            (CHAR, 10, 200, "rw", false),
        ] {
            assert_eq!(
                allowed(&rules, kind, major, minor, access),
                expected,
                "{kind} {major}:{minor} {access}"
            );
        }
    }

    #[test]
    fn without_rules_all_is_allowed() {
        assert!(allowed(&[], BLOCK, 8, 0, "rwm"));
        let privileged = rules(
            serde_json::json!([{"allow": false, "access": "rwm"}, {"allow": true, "access": "rwm"}]),
        );
        assert!(allowed(&privileged, BLOCK, 8, 0, "rwm"));
    }

    #[test]
    fn wrong_rules_are_refused() {
        for json in [
            serde_json::json!({"allow": true, "type": "c", "access": "x"}),
            serde_json::json!({"allow": true, "type": "c", "major": -2, "access": "r"}),
            serde_json::json!({"allow": true, "type": "p", "access": "r"}),
        ] {
            let device: LinuxDeviceCgroup = serde_json::from_value(json).unwrap();
            assert!(Rule::new(&device).is_err());
        }
    }
}
