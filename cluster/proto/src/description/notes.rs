//! Faults of a check, each with the place of its element.

use std::collections::BTreeMap;
use std::fmt::Display;

use super::Places;
use crate::amount::{Kind, Range};
use crate::error::{Fault, Path, Severity};

/// The faults that a check has found so far.
pub(super) struct Notes<'p> {
    places: &'p Places,
    pub(super) faults: Vec<Fault>,
}

impl<'p> Notes<'p> {
    pub(super) fn new(places: &'p Places) -> Self {
        Self {
            places,
            faults: Vec::new(),
        }
    }

    pub(super) fn error(&mut self, path: &Path, why: impl Into<String>) {
        self.add(Severity::Error, path, why.into());
    }

    pub(super) fn warning(&mut self, path: &Path, why: impl Into<String>) {
        self.add(Severity::Warning, path, why.into());
    }

    fn add(&mut self, severity: Severity, path: &Path, why: String) {
        self.faults.push(Fault {
            severity,
            at: self.places.of(path),
            element: path.to_string(),
            why,
        });
    }

    /// Whether there are no more than allowed; a fault otherwise.
    pub(super) fn most(&mut self, path: &Path, what: impl Display, count: usize, most: usize) -> bool {
        if count > most {
            self.error(path, format!("has {count} {what}; {most} are allowed"));
        }
        count <= most
    }

    /// A fault for each name that stands there before.
    pub(super) fn once<'a>(&mut self, what: &str, names: impl Iterator<Item = (Path, &'a str)>) {
        let mut seen: BTreeMap<&str, Path> = BTreeMap::new();
        for (path, name) in names {
            match seen.get(name) {
                Some(first) => {
                    let why = format!("is a second {what} '{name}'; the first is {first}");
                    self.error(&path, why);
                }
                None => {
                    seen.insert(name, path);
                }
            }
        }
    }

    pub(super) fn range(&mut self, path: &Path, kind: Kind, range: Range<u64>, most: u64) {
        let amount = |number| kind.amount(number);
        if range.min > range.max {
            let (min, max) = (amount(range.min), amount(range.max));
            self.error(
                path,
                format!("is an empty range: {min} at least is more than {max} at most"),
            );
        } else if range.min == 0 {
            self.error(
                path,
                format!("is {} at least; no workspace runs with that", amount(0)),
            );
        }
        if range.max > most {
            let why = format!("is up to {}; {} are allowed", amount(range.max), amount(most));
            self.error(path, why);
        }
    }
}
