//! Reading tables of a TOML document key by key, noting every mistake with its line.
//!
//! A table knows its keys. Each getter takes one key out; what the table holds beyond its keys is reported as
//! unknown, with the nearest known key. A getter that meets a wrong type notes the mistake and gives `None`, so
//! that the reading goes on and all mistakes are told at once. No message quotes a value: it may be a secret.

use std::ops::Range;
use std::str::FromStr;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::error::{Problem, Problems};

/// How many mistakes are listed: more does not fit a screen, and the first ones are what one mends.
const MAX_PROBLEMS: usize = 20;

/// How many characters of an unknown key are shown.
const MAX_KEY_SHOWN: usize = 60;

/// The mistakes noted so far.
pub(super) struct Notes<'t> {
    text: &'t str,
    problems: Vec<Problem>,
}

impl<'t> Notes<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        Self {
            text,
            problems: Vec::new(),
        }
    }

    /// The line, from 1, of a place in the text.
    pub(super) fn line(&self, span: &Range<usize>) -> usize {
        let before = self
            .text
            .as_bytes()
            .get(..span.start)
            .unwrap_or(self.text.as_bytes());
        1 + before.iter().filter(|b| **b == b'\n').count()
    }

    pub(super) fn add(&mut self, line: usize, key: impl Into<String>, message: impl Into<String>) {
        self.problems.push(Problem {
            line,
            key: key.into(),
            message: message.into(),
        });
    }

    /// All mistakes in the order of the lines, if there are any.
    pub(super) fn finish(mut self) -> Option<Problems> {
        if self.problems.is_empty() {
            return None;
        }
        self.problems.sort_by_key(|problem| problem.line);
        self.problems.truncate(MAX_PROBLEMS);
        Some(Problems(self.problems))
    }
}

/// The names of one table and of its keys.
pub(super) struct Shape {
    /// The table's name; empty for the document itself.
    pub(super) name: &'static str,
    /// The keys that it may have.
    pub(super) keys: &'static [&'static str],
}

impl Shape {
    /// A key with its table: `overlay.listen_port`.
    pub(super) fn path(&self, key: &str) -> String {
        if self.name.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.name)
        }
    }
}

/// A value and the line it stands in.
pub(super) struct Located<T> {
    pub(super) value: T,
    pub(super) line: usize,
}

/// One table being read. A missing optional table reads as an empty one.
pub(super) struct Table<'a, 'i> {
    shape: &'static Shape,
    entries: Option<&'a DeTable<'i>>,
    line: usize,
}

impl<'a, 'i> Table<'a, 'i> {
    pub(super) fn document(shape: &'static Shape, entries: &'a DeTable<'i>) -> Self {
        Self {
            shape,
            entries: Some(entries),
            line: 1,
        }
    }

    /// The table `shape.name` of the document.
    pub(super) fn sub(&self, shape: &'static Shape, notes: &mut Notes<'_>) -> Self {
        self.inner(shape.name, shape, notes)
    }

    /// The table under a key of this one.
    pub(super) fn inner(&self, key: &str, shape: &'static Shape, notes: &mut Notes<'_>) -> Self {
        let none = |line| Self {
            shape,
            entries: None,
            line,
        };
        let Some(found) = self.entries.and_then(|entries| entries.get(key)) else {
            return none(1);
        };
        let line = notes.line(&found.span());
        match found.get_ref() {
            DeValue::Table(entries) => Self {
                shape,
                entries: Some(entries),
                line,
            },
            other => {
                notes.add(
                    line,
                    shape.name,
                    format!("must be a table, headed [{}], but is {}", shape.name, kind(other)),
                );
                none(line)
            }
        }
    }

    /// Whether the table has the key, whatever its value.
    pub(super) fn has(&self, key: &str) -> bool {
        self.entries.is_some_and(|entries| entries.contains_key(key))
    }

    /// Whether a mistake has been noted for the key.
    pub(super) fn is_faulty(&self, key: &str, notes: &Notes<'_>) -> bool {
        let path = self.shape.path(key);
        notes.problems.iter().any(|problem| problem.key == path)
    }

    /// The line of the table's head.
    pub(super) fn line(&self) -> usize {
        self.line
    }

    /// Notes that a key is missing and how to write it.
    pub(super) fn missing(&self, key: &str, example: &str, notes: &mut Notes<'_>) {
        let place = if self.shape.name.is_empty() {
            "at the top of the file".to_owned()
        } else {
            format!("below [{}]", self.shape.name)
        };
        notes.add(
            self.line,
            self.shape.path(key),
            format!("is missing: write {example} {place}"),
        );
    }

    pub(super) fn problem(&self, line: usize, key: &str, message: impl Into<String>, notes: &mut Notes<'_>) {
        notes.add(line, self.shape.path(key), message);
    }

    pub(super) fn integer(&self, key: &str, notes: &mut Notes<'_>) -> Option<Located<i64>> {
        let (value, line) = self.get(key, notes)?;
        let DeValue::Integer(integer) = value else {
            self.wrong_type(key, line, "a whole number", value, notes);
            return None;
        };
        match i64::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(value) => Some(Located { value, line }),
            Err(_) => {
                self.problem(line, key, "is too large a number", notes);
                None
            }
        }
    }

    /// A whole number within the range; it ends in a note if it is outside.
    pub(super) fn number(&self, key: &str, min: u16, max: u16, notes: &mut Notes<'_>) -> Option<u16> {
        let Located { value, line } = self.integer(key, notes)?;
        match u16::try_from(value) {
            Ok(number) if (min..=max).contains(&number) => Some(number),
            _ => {
                self.problem(
                    line,
                    key,
                    format!("must be a number from {min} to {max}, but is {value}"),
                    notes,
                );
                None
            }
        }
    }

    pub(super) fn boolean(&self, key: &str, notes: &mut Notes<'_>) -> Option<bool> {
        let (value, line) = self.get(key, notes)?;
        let DeValue::Boolean(boolean) = value else {
            self.wrong_type(key, line, "true or false, without quotes", value, notes);
            return None;
        };
        Some(*boolean)
    }

    pub(super) fn text(&self, key: &str, notes: &mut Notes<'_>) -> Option<Located<&'a str>> {
        let (value, line) = self.get(key, notes)?;
        let DeValue::String(text) = value else {
            self.wrong_type(key, line, "text in quotes", value, notes);
            return None;
        };
        Some(Located { value: text, line })
    }

    /// A text parsed as a value; a refusal is noted with the parser's own words.
    pub(super) fn parsed<T>(&self, key: &str, notes: &mut Notes<'_>) -> Option<Located<T>>
    where
        T: FromStr,
        T::Err: std::fmt::Display,
    {
        let Located { value, line } = self.text(key, notes)?;
        match value.parse::<T>() {
            Ok(value) => Some(Located { value, line }),
            Err(refusal) => {
                self.problem(line, key, phrase(&refusal.to_string()), notes);
                None
            }
        }
    }

    /// A list of texts, each parsed; at most `max`. `None` where the key is missing or no list.
    pub(super) fn list<T>(&self, key: &str, max: usize, notes: &mut Notes<'_>) -> Option<Located<Vec<T>>>
    where
        T: FromStr,
        T::Err: std::fmt::Display,
    {
        let (value, line) = self.get(key, notes)?;
        let DeValue::Array(array) = value else {
            self.wrong_type(
                key,
                line,
                "a list in square brackets, such as [\"a\", \"b\"]",
                value,
                notes,
            );
            return None;
        };
        if array.len() > max {
            self.problem(
                line,
                key,
                format!("has {} entries, and at most {max} are allowed", array.len()),
                notes,
            );
            return None;
        }
        let mut list = Vec::with_capacity(array.len());
        for (index, item) in array.iter().enumerate() {
            let line = notes.line(&item.span());
            let DeValue::String(text) = item.get_ref() else {
                let message = format!(
                    "must hold texts in quotes, but its entry {} is {}",
                    index + 1,
                    kind(item.get_ref())
                );
                self.problem(line, key, message, notes);
                continue;
            };
            match text.parse::<T>() {
                Ok(value) => list.push(value),
                Err(refusal) => {
                    let message = format!("entry {} {}", index + 1, phrase(&refusal.to_string()));
                    self.problem(line, key, message, notes);
                }
            }
        }
        Some(Located { value: list, line })
    }

    /// Notes every key that the table may not have. `all` are the shapes in which a lost key may belong.
    pub(super) fn refuse_unknown(&self, all: &[&Shape], notes: &mut Notes<'_>) {
        for (key, _) in self.entries.into_iter().flatten() {
            let name: &str = key.get_ref();
            if self.shape.keys.contains(&name) {
                continue;
            }
            let line = notes.line(&key.span());
            let shown: String = name.escape_debug().take(MAX_KEY_SHOWN).collect();
            notes.add(line, self.shape.path(&shown), self.unknown(name, all));
        }
    }

    fn unknown(&self, name: &str, all: &[&Shape]) -> String {
        if let Some(home) = all.iter().find(|shape| shape.keys.contains(&name)) {
            let home = if home.name.is_empty() {
                "at the top of the file, above the first table".to_owned()
            } else {
                format!("below [{}]", home.name)
            };
            return format!("is not known here: '{name}' belongs {home}");
        }
        match nearest(name, self.shape.keys) {
            Some(near) => format!("is not a known key: did you mean '{near}'?"),
            None => format!("is not a known key: known are {}", self.shape.keys.join(", ")),
        }
    }

    fn get(&self, key: &str, notes: &Notes<'_>) -> Option<(&'a DeValue<'i>, usize)> {
        debug_assert!(self.shape.keys.contains(&key), "the shape lists {key}");
        let found: &Spanned<DeValue<'i>> = self.entries?.get(key)?;
        Some((found.get_ref(), notes.line(&found.span())))
    }

    fn wrong_type(&self, key: &str, line: usize, want: &str, have: &DeValue<'_>, notes: &mut Notes<'_>) {
        self.problem(line, key, format!("must be {want}, but is {}", kind(have)), notes);
    }
}

/// The known key that a person most likely meant.
fn nearest<'k>(name: &str, keys: &[&'k str]) -> Option<&'k str> {
    let name: String = name.chars().take(MAX_KEY_SHOWN).collect();
    let name = name.to_lowercase().replace('-', "_");
    keys.iter()
        .map(|key| (strsim::damerau_levenshtein(&name, key), *key))
        .filter(|(distance, key)| *distance <= 1 + key.len() / 3)
        .min()
        .map(|(_, key)| key)
}

/// A refusal in a form that follows the key's name: some begin with a subject of their own.
fn phrase(refusal: &str) -> String {
    if refusal.starts_with("is ") || refusal.starts_with("must ") {
        refusal.to_owned()
    } else {
        format!("is refused: {refusal}")
    }
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "text",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
