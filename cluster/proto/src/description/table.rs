//! Reading tables of a document key by key, noting every fault with its place.
//!
//! A table knows its keys; one that it does not have is a fault that names the nearest known one. What is of a wrong
//! type, or not understood, is noted and reads as absent, so that the reading goes on.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use super::Places;
use super::tree::{Entry, Lines, Node, Value};
use crate::error::{Fault, Faults, Path, Place, Severity, shown};
use crate::limits::{MAX_FAULTS, MAX_SHOWN};

/// The faults noted so far, and the places of what was read.
pub(super) struct Reader<'t> {
    lines: &'t Lines<'t>,
    faults: Vec<Fault>,
    more: usize,
    places: BTreeMap<Path, usize>,
}

impl<'t> Reader<'t> {
    pub(super) fn new(lines: &'t Lines<'t>) -> Self {
        Self {
            lines,
            faults: Vec::new(),
            more: 0,
            places: BTreeMap::new(),
        }
    }

    /// Notes a fault of the element that begins at a byte.
    pub(super) fn note(&mut self, at: usize, path: &Path, why: impl Into<String>) {
        if self.faults.len() >= MAX_FAULTS {
            self.more += 1;
            return;
        }
        self.faults.push(Fault {
            severity: Severity::Error,
            at: Some(self.lines.place(at)),
            element: path.to_string(),
            why: why.into(),
        });
    }

    /// The places of all elements, or all faults.
    pub(super) fn finish(self) -> Result<Places, Faults> {
        if !self.faults.is_empty() {
            let mut faults = Faults::new(self.faults);
            faults.more += self.more;
            return Err(faults);
        }
        let place = |at: usize| -> Place { self.lines.place(at) };
        Ok(Places(
            self.places
                .into_iter()
                .map(|(path, at)| (path, place(at)))
                .collect(),
        ))
    }

    /// A value as a table of these keys.
    pub(super) fn table<'a>(&mut self, found: Found<'a>, keys: &'static [&'static str]) -> Option<Table<'a>> {
        let Value::Table(entries) = &found.node.value else {
            self.wrong(&found, "a table");
            return None;
        };
        let table = Table {
            path: found.path,
            at: found.node.at,
            keys,
            entries,
        };
        for entry in entries.iter().filter(|entry| !keys.contains(&entry.key.as_str())) {
            let path = table.path.key(&entry.key);
            self.note(entry.at, &path, unknown(&entry.key, keys));
        }
        Some(table)
    }

    /// The entries of a list; none of anything else, or of more than so many.
    pub(super) fn list<'a>(&mut self, found: Option<Found<'a>>, most: usize) -> Vec<Found<'a>> {
        let Some(found) = found else { return Vec::new() };
        let Value::List(items) = &found.node.value else {
            self.wrong(&found, "a list");
            return Vec::new();
        };
        if items.len() > most {
            let why = format!("has {} entries; {most} are allowed", items.len());
            self.note(found.node.at, &found.path, why);
            return Vec::new();
        }
        let mut entries = Vec::with_capacity(items.len());
        for (index, node) in items.iter().enumerate() {
            let path = found.path.index(index);
            self.places.insert(path.clone(), node.at);
            entries.push(Found { path, node });
        }
        entries
    }

    pub(super) fn text<'a>(&mut self, found: &Found<'a>) -> Option<&'a str> {
        match &found.node.value {
            Value::Text(text) => Some(text),
            _ => {
                self.wrong(found, "text in quotes");
                None
            }
        }
    }

    /// A text as a value.
    pub(super) fn parsed<T>(&mut self, found: Option<Found<'_>>) -> Option<T>
    where
        T: FromStr,
        T::Err: fmt::Display,
    {
        let found = found?;
        let text = self.text(&found)?;
        self.understood(&found, text)
    }

    /// A text, or a whole number as if it were one, as a value.
    pub(super) fn parsed_number<T>(&mut self, found: Option<Found<'_>>) -> Option<T>
    where
        T: FromStr,
        T::Err: fmt::Display,
    {
        let found = found?;
        match &found.node.value {
            Value::Integer(integer) => self.understood(&found, &integer.to_string()),
            _ => {
                let text = self.text(&found)?;
                self.understood(&found, text)
            }
        }
    }

    fn understood<T>(&mut self, found: &Found<'_>, text: &str) -> Option<T>
    where
        T: FromStr,
        T::Err: fmt::Display,
    {
        match text.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                self.note(found.node.at, &found.path, format!("is not understood: {error}"));
                None
            }
        }
    }

    pub(super) fn count(&mut self, found: Option<Found<'_>>) -> Option<u32> {
        let found = found?;
        let Value::Integer(integer) = found.node.value else {
            self.wrong(&found, "a whole number");
            return None;
        };
        let number = u32::try_from(integer);
        if number.is_err() {
            let why = format!("is {integer}; write a number from 0 to {}", u32::MAX);
            self.note(found.node.at, &found.path, why);
        }
        number.ok()
    }

    pub(super) fn flag(&mut self, found: Option<Found<'_>>) -> Option<bool> {
        let found = found?;
        let Value::Flag(flag) = found.node.value else {
            self.wrong(&found, "true or false, without quotes");
            return None;
        };
        Some(flag)
    }

    fn wrong(&mut self, found: &Found<'_>, want: &str) {
        let why = format!("must be {want}, but is {}", found.node.value.kind());
        self.note(found.node.at, &found.path, why);
    }
}

/// A value with its path.
pub(super) struct Found<'a> {
    pub(super) path: Path,
    pub(super) node: &'a Node,
}

impl Found<'_> {
    pub(super) fn is_text(&self) -> bool {
        matches!(self.node.value, Value::Text(_))
    }
}

/// A table being read.
pub(super) struct Table<'a> {
    path: Path,
    at: usize,
    keys: &'static [&'static str],
    entries: &'a [Entry],
}

impl<'a> Table<'a> {
    /// The value of a key, if it is there.
    pub(super) fn get(&self, key: &'static str, reader: &mut Reader<'_>) -> Option<Found<'a>> {
        debug_assert!(self.keys.contains(&key), "the table's keys name {key}");
        let entry = self.entries.iter().find(|entry| entry.key == key)?;
        let path = self.path.key(key);
        reader.places.insert(path.clone(), entry.node.at);
        Some(Found {
            path,
            node: &entry.node,
        })
    }

    /// The value of a key that has to be there; `example` shows how it is written.
    pub(super) fn need(
        &self,
        key: &'static str,
        example: &str,
        reader: &mut Reader<'_>,
    ) -> Option<Found<'a>> {
        let found = self.get(key, reader);
        if found.is_none() {
            let why = format!("lacks '{key}'; write for example {key} = {example}");
            reader.note(self.at, &self.path, why);
        }
        found
    }
}

fn unknown(key: &str, keys: &[&str]) -> String {
    let known = keys.join(", ");
    match nearest(key, keys) {
        Some(near) => format!("is not known; did you mean '{near}'? Known here are: {known}"),
        None => format!("is not known; known here are: {known}"),
    }
}

/// The known key that a person most likely meant.
fn nearest<'k>(key: &str, keys: &[&'k str]) -> Option<&'k str> {
    let key = shown(key).to_lowercase().replace('-', "_");
    keys.iter()
        .filter(|known| key.len() <= MAX_SHOWN && !known.is_empty())
        .map(|known| (strsim::damerau_levenshtein(&key, known), *known))
        .filter(|(distance, known)| *distance <= 1 + known.len() / 3)
        .min()
        .map(|(_, known)| known)
}
