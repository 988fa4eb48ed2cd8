//! What is expected of trustme, test by test: conformance/oci/expected.txt.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};

use crate::run::Outcomes;
use crate::tap::Verdict;

/// The committed list.
const EXPECTED: &str = include_str!("../expected.txt");
/// The runtime that the list is about.
const OURS: &str = "trustme";
/// The runtime that must not be better.
const REFERENCE: &str = "runc";

/// What is expected of a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// It passes.
    Pass,
    /// It fails.
    Fail,
    /// It decides by a race between the container's program and the next command of the runtime: every runtime gets
    /// several attempts, and trustme must pass one of them if runc passes all.
    Race,
}

/// What is expected with cgroup v1, and with v2.
pub type Expectations = BTreeMap<String, [Expected; 2]>;

/// The committed list.
///
/// # Errors
/// A line is not `TEST V1 V2` with pass, fail or race; it is named.
pub fn committed() -> Result<Expectations> {
    let mut expectations = Expectations::new();
    for line in EXPECTED.lines().filter(|line| !line.starts_with('#')) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [test, v1, v2] = fields[..] else {
            bail!(
                "expected.txt: {line:?}: expected a test, and pass, fail or race for cgroup v1 and v2"
            );
        };
        let expected = |word: &str| match word {
            "pass" => Ok(Expected::Pass),
            "fail" => Ok(Expected::Fail),
            "race" => Ok(Expected::Race),
            _ => bail!("expected.txt: {test}: {word:?}: expected pass, fail or race"),
        };
        expectations.insert(test.to_owned(), [expected(v1)?, expected(v2)?]);
    }
    Ok(expectations)
}

/// What is wrong with the outcomes, a line each; nothing if all is as it should be.
///
/// # Errors
/// trustme was not among the runtimes.
pub fn compare(outcomes: &Outcomes, expected: &Expectations, unified: bool) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    for (test, runtimes) in outcomes {
        let ours = runtimes
            .get(OURS)
            .with_context(|| format!("{test}: {OURS} was not run"))?;
        let passes = !matches!(ours.verdict, Verdict::Fail(_));
        if let Some(reference) = runtimes.get(REFERENCE).filter(|outcome| outcome.certain) {
            if let (Verdict::Fail(reason), Verdict::Pass) = (&ours.verdict, &reference.verdict) {
                wrong.push(format!(
                    "{test}: {REFERENCE} passes, {OURS} fails: {reason}"
                ));
            }
            for point in ours.worse_than(reference) {
                wrong.push(format!(
                    "{test}: {REFERENCE} is right and {OURS} wrong: {point}"
                ));
            }
        }
        match expected
            .get(test)
            .map(|versions| versions[usize::from(unified)])
        {
            None => wrong.push(format!("{test}: not in expected.txt")),
            Some(Expected::Pass) if !passes => {
                wrong.push(format!("{test}: fails, and is expected to pass"))
            }
            Some(Expected::Fail) if passes => wrong.push(format!(
                "{test}: passes, and is expected to fail: change expected.txt"
            )),
            Some(_) => (),
        }
    }
    Ok(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tap::Outcome;

    fn outcomes(ours: &str, reference: &str) -> Outcomes {
        let runtimes = [(OURS, ours), (REFERENCE, reference)]
            .map(|(name, out)| (name.to_owned(), Outcome::of(Some(0), out, "")));
        Outcomes::from([("t".to_owned(), BTreeMap::from(runtimes))])
    }

    #[test]
    fn what_is_worse_than_runc_or_unexpected_is_wrong() {
        let (good, bad) = ("ok 1 - a\n", "not ok 1 - a\n");
        let pass = Expectations::from([("t".to_owned(), [Expected::Pass, Expected::Fail])]);
        for (ours, reference, unified, count) in [
            (good, good, false, 0),
            (good, bad, false, 0),
            // runc passes, a result of runc's is better, and it was expected.
            (bad, good, false, 3),
            (bad, bad, false, 1),
            (bad, bad, true, 0),
            (good, good, true, 1),
        ] {
            let wrong = compare(&outcomes(ours, reference), &pass, unified).unwrap();
            assert_eq!(wrong.len(), count, "{wrong:?}");
        }
        let none = Expectations::new();
        assert_eq!(
            compare(&outcomes(good, good), &none, false).unwrap().len(),
            1
        );
    }

    #[test]
    fn races_are_only_compared() {
        let race = Expectations::from([("t".to_owned(), [Expected::Race; 2])]);
        let (good, bad) = ("ok 1 - a\n", "not ok 1 - b\n");
        for (ours, reference, count) in [(good, bad, 0), (bad, bad, 0), (bad, good, 1)] {
            let wrong = compare(&outcomes(ours, reference), &race, false).unwrap();
            assert_eq!(wrong.len(), count, "{wrong:?}");
        }
    }

    #[test]
    fn what_does_not_pass_has_its_reason_in_the_documentation() {
        let doc = include_str!("../../../docs/conformance.md");
        for (test, passes) in committed().unwrap() {
            assert!(
                passes == [Expected::Pass; 2] || doc.contains(&format!("`{test}`")),
                "docs/conformance.md does not say why {test} fails"
            );
        }
    }
}
