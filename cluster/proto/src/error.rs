//! What can be wrong with a description, and where; and a journal that does not replay.

use std::fmt;

use crate::limits::{MAX_FAULTS, MAX_SHOWN};

/// A text that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{shown}' is not {what}: {rule}")]
pub struct BadValue {
    shown: String,
    what: &'static str,
    rule: String,
}

impl BadValue {
    pub(crate) fn new(text: &str, what: &'static str, rule: impl Into<String>) -> Self {
        Self {
            shown: shown(text),
            what,
            rule: rule.into(),
        }
    }
}

/// A text of unknown origin in a form that is safe to print.
pub(crate) fn shown(text: &str) -> String {
    text.chars()
        .take(MAX_SHOWN)
        .flat_map(char::escape_debug)
        .collect()
}

/// A place in a document's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The line, from 1.
    pub line: u32,
    /// The column in characters, from 1. XML documents give lines alone.
    pub column: Option<u32>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}", self.line)?;
        match self.column {
            Some(column) => write!(f, ", column {column}"),
            None => Ok(()),
        }
    }
}

/// An element of a description: its keys and, in lists, its index from 0. `workspace[1].nic[0].address`.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Path(Vec<Step>);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Step {
    Key(String),
    Index(usize),
}

impl Path {
    /// The document itself.
    #[must_use]
    pub const fn top() -> Self {
        Self(Vec::new())
    }

    /// What has this key in it.
    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        self.then(Step::Key(shown(key)))
    }

    /// What has this index in it, from 0.
    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        self.then(Step::Index(index))
    }

    fn then(&self, step: Step) -> Self {
        let mut steps = self.0.clone();
        steps.push(step);
        Self(steps)
    }

    /// What it is in; `None` of the document itself.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        let (_, steps) = self.0.split_last()?;
        Some(Self(steps.to_vec()))
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("the document");
        }
        for (number, step) in self.0.iter().enumerate() {
            match step {
                Step::Key(key) if number == 0 => f.write_str(key)?,
                Step::Key(key) => write!(f, ".{key}")?,
                Step::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

/// How bad a fault is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// The description cannot be used.
    Error,
    /// It can, and will most likely surprise.
    Warning,
}

/// One thing that is wrong in a description.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// How bad it is.
    pub severity: Severity,
    /// Where it stands in the text, if the description came from one.
    pub at: Option<Place>,
    /// The element; that of an XML document is its own, such as `<nic>`.
    pub element: String,
    /// What is wrong with it and what would be right.
    pub why: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(at) = &self.at {
            write!(f, "{at}: ")?;
        }
        if self.severity == Severity::Warning {
            f.write_str("warning: ")?;
        }
        write!(f, "{} {}", self.element, self.why)
    }
}

/// All that is wrong in a description, in the order of its text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Faults {
    /// The first ones.
    pub listed: Vec<Fault>,
    /// How many more there are.
    pub more: usize,
}

impl Faults {
    pub(crate) fn new(mut faults: Vec<Fault>) -> Self {
        // Errors before warnings: those must not be what is counted alone.
        faults.sort_by_key(|fault| (fault.severity, fault.at.is_none(), fault.at));
        let more = faults.len().saturating_sub(MAX_FAULTS);
        faults.truncate(MAX_FAULTS);
        Self { listed: faults, more }
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.listed.as_slice() {
            [one] if self.more == 0 => write!(f, "the description cannot be used: {one}"),
            many => {
                write!(
                    f,
                    "the description cannot be used, for {} reasons:",
                    many.len() + self.more
                )?;
                for fault in many {
                    write!(f, "\n  {fault}")?;
                }
                if self.more > 0 {
                    write!(f, "\n  and {} more", self.more)?;
                }
                Ok(())
            }
        }
    }
}

/// A journal that does not replay: it was damaged, or is of a later release.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("record {index} of the ledger's journal cannot be replayed: {why}; restore the journal from a copy")]
pub struct Corrupt {
    /// Which record, counted from 0.
    pub index: u64,
    /// Why.
    pub why: &'static str,
}
