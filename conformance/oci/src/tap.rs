//! What a test program printed in the Test Anything Protocol, and what that amounts to.

/// One result of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Point {
    /// What was looked at; without the number, which depends on what came before.
    pub description: String,
    /// It is as it should be.
    pub ok: bool,
}

/// How a test ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// All results are good.
    Pass,
    /// There are no results but skipped ones.
    Skip,
    /// A result is bad, the program failed, or it came to no result.
    Fail(String),
}

/// A program's results.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// What it amounts to.
    pub verdict: Verdict,
    /// The results that count: neither skipped nor to do.
    pub points: Vec<Point>,
    /// Every attempt came to the same verdict.
    pub certain: bool,
}

impl Outcome {
    /// Judges a program by its exit code (none if it was killed) and what it printed.
    ///
    /// A few programs print no results. Those succeed by exit code 0 and no error in a diagnostic.
    pub fn of(code: Option<i32>, stdout: &str, stderr: &str) -> Self {
        let mut points = Vec::new();
        let mut skipped = 0;
        for line in stdout.lines() {
            let (ok, rest) = match (line.strip_prefix("ok "), line.strip_prefix("not ok ")) {
                (Some(rest), _) => (true, rest),
                (_, Some(rest)) => (false, rest),
                _ => continue,
            };
            let text = rest
                .trim_start_matches(|char: char| char.is_ascii_digit())
                .trim();
            if text.starts_with("# SKIP") {
                skipped += 1;
            } else if !text.starts_with("# TODO") {
                points.push(Point {
                    description: text.trim_start_matches("- ").to_owned(),
                    ok,
                });
            }
        }
        let bad = points.iter().find(|point| !point.ok);
        let diagnosed = diagnosed(stdout);
        let verdict = match (code, bad) {
            (None, _) => Verdict::Fail("takes too long".to_owned()),
            (Some(_), Some(point)) => Verdict::Fail(point.description.clone()),
            (Some(0), None) if !points.is_empty() => Verdict::Pass,
            (Some(0), None) if skipped > 0 => Verdict::Skip,
            (Some(0), None) => diagnosed.map_or(Verdict::Pass, Verdict::Fail),
            (Some(code), None) => Verdict::Fail(
                last_line(stderr)
                    .or(diagnosed)
                    .unwrap_or(format!("exit code {code}")),
            ),
        };
        Self {
            verdict,
            points,
            certain: true,
        }
    }

    /// The better one of two attempts.
    pub fn or(self, other: Self) -> Self {
        let certain = self.certain && other.certain && self.verdict == other.verdict;
        let better = match self.verdict {
            Verdict::Pass => self,
            _ => other,
        };
        Self { certain, ..better }
    }

    /// Results that are good in `other` and bad here, by what was looked at.
    pub fn worse_than<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = &'a str> {
        self.points
            .iter()
            .filter(|point| !point.ok)
            .filter_map(|point| {
                let mut same = other
                    .points
                    .iter()
                    .filter(|known| known.description == point.description)
                    .peekable();
                let good = same.peek().is_some() && same.all(|known| known.ok);
                good.then_some(point.description.as_str())
            })
    }
}

fn last_line(text: &str) -> Option<String> {
    text.lines()
        .map(str::trim)
        .rfind(|line| !line.is_empty() && !line.starts_with("exit status"))
        .map(str::to_owned)
}

/// The error of a diagnostic: what programs print that fail without a bad result.
fn diagnosed(stdout: &str) -> Option<String> {
    let line = stdout
        .lines()
        .find_map(|line| line.trim().strip_prefix("\"error\": "))?;
    Some(line.trim_matches(['"', ',']).replace("\\n", " "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fail(text: &str) -> Verdict {
        Verdict::Fail(text.to_owned())
    }

    #[test]
    fn output_is_judged() {
        // The suite's own output, shortened.
        for (code, stdout, stderr, verdict) in [
            (
                Some(0),
                "TAP version 13\nok 1 - a\nok 2 # SKIP b\n1..2\n",
                "",
                Verdict::Pass,
            ),
            (
                Some(0),
                "TAP version 13\nnot ok 1 - a\n1..1\n",
                "",
                fail("a"),
            ),
            (Some(0), "ok 1 - a\nnot ok 2 # TODO b\n", "", Verdict::Pass),
            (
                Some(0),
                "TAP version 13\n1..1\nok 1 # SKIP no SELinux\n",
                "",
                Verdict::Skip,
            ),
            (Some(0), "", "failed to create the container", Verdict::Pass),
            (Some(1), "", "refused\nexit status 1\n", fail("refused")),
            (
                Some(0),
                "TAP version 13\n  {\n    \"error\": \"late\\nso\"\n  }\n1..0\n",
                "",
                fail("late so"),
            ),
            (Some(0), "TAP version 13\n1..0\n", "warning", Verdict::Pass),
            (Some(1), "ok 1 - a\n", "", fail("exit code 1")),
            (None, "ok 1 - a\n", "", fail("takes too long")),
        ] {
            assert_eq!(
                Outcome::of(code, stdout, stderr).verdict,
                verdict,
                "{stdout}"
            );
        }
    }

    #[test]
    fn the_better_attempt_counts() {
        let (good, bad) = (
            Outcome::of(Some(0), "ok 1 - a\n", ""),
            Outcome::of(Some(0), "not ok 1 - a\n", ""),
        );
        let mixed = bad.clone().or(good.clone());
        assert_eq!((&mixed.verdict, mixed.certain), (&Verdict::Pass, false));
        assert!(good.clone().or(good).certain);
        assert_eq!(bad.clone().or(bad.clone()), bad);
    }

    #[test]
    fn worse_results_are_named() {
        let reference = Outcome::of(Some(0), "ok 1 - a\nok 2 - b\nnot ok 3 - c\n", "");
        let ours = Outcome::of(
            Some(0),
            "ok 1 - a\nnot ok 2 - b\nnot ok 3 - c\nnot ok 4 - d\n",
            "",
        );
        assert_eq!(ours.worse_than(&reference).collect::<Vec<_>>(), ["b"]);
    }
}
