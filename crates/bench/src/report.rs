//! The report of a benchmark: tables for people, JSON for programs.

use std::fmt;

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;
use serde_json::Value;

/// The figures of a run.
#[derive(Serialize)]
pub(crate) struct Report {
    #[serde(skip)]
    heading: String,
    /// The parameters of the run, and its raw figures if it keeps any.
    #[serde(flatten)]
    run: Value,
    /// Tables beside that of the findings.
    #[serde(skip)]
    tables: Vec<Table>,
    findings: Vec<Finding>,
}

/// A figure, and the bound that it must keep.
#[derive(Serialize)]
struct Finding {
    what: &'static str,
    value: f64,
    bound: Option<Bound>,
    kept: bool,
}

/// A bound of a figure.
#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

impl Bound {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtLeast(min) => value >= min,
            Self::AtMost(max) => value <= max,
        }
    }
}

impl Report {
    /// A report without findings yet. `run` becomes its fields in JSON.
    pub(crate) fn new(heading: String, run: impl Serialize) -> serde_json::Result<Self> {
        Ok(Self { heading, run: serde_json::to_value(run)?, tables: Vec::new(), findings: Vec::new() })
    }

    /// Adds a figure.
    pub(crate) fn add(&mut self, what: &'static str, value: f64) {
        self.add_with_bound(what, value, None);
    }

    /// Adds a figure that must keep a bound, if there is one.
    pub(crate) fn add_with_bound(&mut self, what: &'static str, value: f64, bound: impl Into<Option<Bound>>) {
        let bound = bound.into();
        self.findings.push(Finding { what, value, bound, kept: bound.is_none_or(|bound| bound.holds(value)) });
    }

    /// Adds a table, which is shown before the findings.
    pub(crate) fn add_table(&mut self, table: Table) {
        self.tables.push(table);
    }

    /// All figures in JSON.
    pub(crate) fn to_json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.heading)?;
        for table in &self.tables {
            writeln!(f, "{table}")?;
        }
        let mut findings = table(&["figure", "value", "bound", ""]);
        for Finding { what, value, bound, kept } in &self.findings {
            let bound = bound.map_or_else(String::new, |bound| bound.to_string());
            findings.add_row([(*what).to_owned(), short(*value), bound, if *kept { "" } else { "MISSED" }.to_owned()]);
        }
        writeln!(f, "{findings}")
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(min) => write!(f, "≥ {min}"),
            Self::AtMost(max) => write!(f, "≤ {max}"),
        }
    }
}

/// An empty table, whose first column holds names and the others figures.
pub(crate) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY).set_header(header.iter().copied());
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// A figure with three significant digits.
pub(crate) fn short(value: f64) -> String {
    let decimals = match value.abs() {
        100.0.. => 0,
        10.0.. => 1,
        1.0.. => 2,
        _ => 3,
    };
    format!("{value:.decimals$}")
}

/// The median; of an even number of values, the greater of the two in the middle.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// A duration in milliseconds.
pub(crate) fn millis(duration: std::time::Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_report_shows_figures_and_missed_bounds() {
        let mut report = Report::new("SQLite".to_owned(), json!({ "engine": "SQLite" })).unwrap();
        report.add("rate", 1234.5);
        report.add_with_bound("ratio", 0.25, Bound::AtLeast(0.5));
        report.add_with_bound("p99", 1.0, Bound::AtMost(2.0));
        let json: Value = serde_json::from_str(&report.to_json().unwrap()).unwrap();
        assert_eq!(json["engine"], "SQLite");
        assert_eq!(json["findings"][0], json!({ "what": "rate", "value": 1234.5, "bound": null, "kept": true }));
        assert_eq!(json["findings"][1], json!({ "what": "ratio", "value": 0.25, "bound": { "at_least": 0.5 }, "kept": false }));
        assert_eq!(json["findings"][2]["kept"], true);
        let text = report.to_string();
        assert!(text.starts_with("SQLite\n") && text.contains("0.250") && text.contains("≥ 0.5"), "{text}");
        assert_eq!(text.matches("MISSED").count(), 1, "{text}");
    }

    #[test]
    fn figures_have_three_significant_digits() {
        for (value, text) in [(1234.4, "1234"), (99.94, "99.9"), (1.005, "1.00"), (0.1234, "0.123"), (-12.34, "-12.3")] {
            assert_eq!(short(value), text);
        }
    }
}
