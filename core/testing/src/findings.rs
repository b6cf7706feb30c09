//! What the checks found.

use serde::Serialize;
use unirl::error::{Error, Result};

/// The outcome of a check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "outcome", content = "detail")]
pub enum Outcome {
    /// The check passed; what was measured.
    Holds(String),
    /// The check failed, and how.
    Fails(String),
    /// The check does not apply, and why.
    Skipped(String),
}

/// A check with its outcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The property that was checked.
    pub name: &'static str,
    /// Whether it holds.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// What to fix on a failure.
    pub hint: &'static str,
}

/// Errors if a check failed.
pub fn check_all_passed(findings: &[Finding]) -> Result<()> {
    let failed = findings.iter().filter(|finding| matches!(finding.outcome, Outcome::Fails(_))).count();
    if failed > 0 {
        return Err(Error::failure(format!("{failed} of {} conformance checks failed", findings.len())));
    }
    Ok(())
}

/// Findings as text.
pub fn format_findings(findings: &[Finding]) -> String {
    let mut text = String::new();
    for Finding { name, outcome, hint } in findings {
        let (word, detail) = match outcome {
            Outcome::Holds(detail) => ("ok", detail),
            Outcome::Fails(detail) => ("FAILS", detail),
            Outcome::Skipped(detail) => ("skipped", detail),
        };
        text += &format!("\n{word:<8} {name}\n         {detail}\n");
        if matches!(outcome, Outcome::Fails(_)) {
            text += &format!("         hint: {hint}\n");
        }
    }
    text
}
