//! A document as a tree of values with their places, whatever form it came in.
//!
//! Nesting, the number of values and the text's length are bounded here, before anything is made of it. A key that
//! stands twice is a fault in both forms: JSON's own rules would let the later one win.

use std::fmt;

use serde::Deserialize;
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use toml::de::{DeTable, DeValue};

use crate::error::{Fault, Path, Place, Severity, shown};
use crate::limits::{MAX_DEPTH, MAX_DOCUMENT_BYTES, MAX_VALUES};

/// A value and the byte of the text at which it begins.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) at: usize,
    pub(super) value: Value,
}

#[derive(Debug)]
pub(super) enum Value {
    Text(String),
    Integer(i64),
    Flag(bool),
    List(Vec<Node>),
    Table(Vec<Entry>),
    /// What no element of a description is.
    Other(&'static str),
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) at: usize,
    pub(super) node: Node,
}

impl Value {
    /// What it is, for people.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "text",
            Self::Integer(_) => "a whole number",
            Self::Flag(_) => "true or false",
            Self::List(_) => "a list",
            Self::Table(_) => "a table",
            Self::Other(kind) => kind,
        }
    }
}

/// How many bytes lie between two marks of [`Lines`].
const MARK: usize = 64;

/// The lines of a text.
pub(super) struct Lines<'t> {
    text: &'t str,
    starts: Vec<usize>,
    /// How many characters begin before each multiple of [`MARK`] bytes: a document may be a single line, and each of
    /// its elements has a column.
    marks: Vec<usize>,
    /// The bytes that were walked over to find places.
    #[cfg(test)]
    pub(super) walked: std::cell::Cell<usize>,
}

/// How many characters begin in these bytes. Those that continue a character are none of their own.
fn characters(bytes: &[u8]) -> usize {
    bytes.iter().filter(|byte| **byte & 0xc0 != 0x80).count()
}

impl<'t> Lines<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        let breaks = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        let mut before = 0;
        let marks = text.as_bytes().chunks(MARK).map(|chunk| {
            before += characters(chunk);
            before
        });
        Self {
            text,
            starts: std::iter::once(0).chain(breaks.map(|(at, _)| at + 1)).collect(),
            marks: std::iter::once(0).chain(marks).collect(),
            #[cfg(test)]
            walked: std::cell::Cell::default(),
        }
    }

    /// How many characters begin before a byte.
    fn characters_before(&self, at: usize) -> usize {
        let at = at.min(self.text.len());
        let mark = at / MARK;
        let rest = self.text.as_bytes().get(mark * MARK..at).unwrap_or_default();
        #[cfg(test)]
        self.walked.set(self.walked.get() + rest.len());
        self.marks.get(mark).copied().unwrap_or_default() + characters(rest)
    }

    /// The place of a byte. It costs the same wherever the byte is, however long its line.
    pub(super) fn place(&self, at: usize) -> Place {
        let line = self.starts.partition_point(|start| *start <= at);
        let start = self
            .starts
            .get(line.saturating_sub(1))
            .copied()
            .unwrap_or_default();
        let column = self.characters_before(at) - self.characters_before(start);
        let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        Place {
            line: number(line.max(1)),
            column: Some(number(column + 1)),
        }
    }
}

/// What keeps a whole document from being read.
pub(super) fn broken(at: Option<Place>, why: impl Into<String>) -> Fault {
    Fault {
        severity: Severity::Error,
        at,
        element: Path::top().to_string(),
        why: why.into(),
    }
}

fn too_long(text: &str) -> Result<(), Fault> {
    if text.len() > MAX_DOCUMENT_BYTES {
        let why = format!("has {} bytes; {MAX_DOCUMENT_BYTES} are allowed", text.len());
        return Err(broken(None, why));
    }
    Ok(())
}

/// Counts values and levels on the way down.
struct Budget<'l, 't> {
    lines: &'l Lines<'t>,
    values: usize,
}

impl Budget<'_, '_> {
    fn spend(&mut self, at: usize, depth: usize) -> Result<(), Fault> {
        self.values += 1;
        if self.values > MAX_VALUES {
            return Err(broken(None, format!("has more than {MAX_VALUES} values")));
        }
        if depth > MAX_DEPTH {
            let why = format!("is nested more than {MAX_DEPTH} levels deep here");
            return Err(broken(Some(self.lines.place(at)), why));
        }
        Ok(())
    }
}

/// Reads a document in TOML.
pub(super) fn from_toml(text: &str, lines: &Lines<'_>) -> Result<Node, Fault> {
    too_long(text)?;
    let document = DeTable::parse(text).map_err(|error| {
        let at = error.span().map(|span| lines.place(span.start));
        broken(at, format!("is not TOML: {}", error.message()))
    })?;
    let mut budget = Budget { lines, values: 0 };
    let value = toml_table(document.get_ref(), 1, &mut budget)?;
    Ok(Node { at: 0, value })
}

fn toml_table(table: &DeTable<'_>, depth: usize, budget: &mut Budget<'_, '_>) -> Result<Value, Fault> {
    let entries = table.iter().map(|(key, value)| {
        Ok(Entry {
            key: key.get_ref().to_string(),
            at: key.span().start,
            node: toml_node(value.get_ref(), value.span().start, depth, budget)?,
        })
    });
    entries.collect::<Result<_, _>>().map(Value::Table)
}

fn toml_node(
    value: &DeValue<'_>,
    at: usize,
    depth: usize,
    budget: &mut Budget<'_, '_>,
) -> Result<Node, Fault> {
    budget.spend(at, depth)?;
    let value = match value {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Integer(integer) => match i64::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(integer) => Value::Integer(integer),
            Err(_) => Value::Other("a number beyond all bounds"),
        },
        DeValue::Float(_) => Value::Other("a number with a fraction"),
        DeValue::Boolean(flag) => Value::Flag(*flag),
        DeValue::Datetime(_) => Value::Other("a date or time"),
        DeValue::Array(items) => {
            let nodes = items
                .iter()
                .map(|item| toml_node(item.get_ref(), item.span().start, depth + 1, budget));
            Value::List(nodes.collect::<Result<_, _>>()?)
        }
        DeValue::Table(table) => toml_table(table, depth + 1, budget)?,
    };
    Ok(Node { at, value })
}

/// Reads a document in JSON.
pub(super) fn from_json(text: &str, lines: &Lines<'_>) -> Result<Node, Fault> {
    too_long(text)?;
    let raw: &RawValue = serde_json::from_str(text).map_err(|error| {
        let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let at = Place {
            line: number(error.line()),
            column: Some(number(error.column())),
        };
        broken(Some(at), format!("is not JSON: {error}"))
    })?;
    let mut budget = Budget { lines, values: 0 };
    json_node(raw, text, 0, &mut budget)
}

/// One level of a JSON document: what is deeper is text still, and borrowed, so that its place is known.
enum Level<'t> {
    Text(String),
    Integer(i64),
    Flag(bool),
    List(Vec<&'t RawValue>),
    Table(Vec<(String, &'t RawValue)>),
    Other(&'static str),
}

fn json_node(raw: &RawValue, text: &str, depth: usize, budget: &mut Budget<'_, '_>) -> Result<Node, Fault> {
    let at = (raw.get().as_ptr() as usize).saturating_sub(text.as_ptr() as usize);
    budget.spend(at, depth)?;
    let level: Level<'_> = serde_json::from_str(raw.get())
        .map_err(|error| broken(Some(budget.lines.place(at)), format!("is not JSON here: {error}")))?;
    let value = match level {
        Level::Text(text) => Value::Text(text),
        Level::Integer(integer) => Value::Integer(integer),
        Level::Flag(flag) => Value::Flag(flag),
        Level::Other(kind) => Value::Other(kind),
        Level::List(items) => {
            let nodes = items
                .into_iter()
                .map(|item| json_node(item, text, depth + 1, budget));
            Value::List(nodes.collect::<Result<_, _>>()?)
        }
        Level::Table(entries) => {
            let mut seen = std::collections::BTreeSet::new();
            let mut table = Vec::with_capacity(entries.len());
            for (key, raw) in entries {
                let node = json_node(raw, text, depth + 1, budget)?;
                if !seen.insert(key.to_string()) {
                    let why = format!(
                        "has the key '{}' twice in one object; once is enough",
                        shown(&key)
                    );
                    return Err(broken(Some(budget.lines.place(node.at)), why));
                }
                table.push(Entry {
                    key,
                    at: node.at,
                    node,
                });
            }
            Value::Table(table)
        }
    };
    Ok(Node { at, value })
}

impl<'de> Deserialize<'de> for Level<'de> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(LevelVisitor)
    }
}

struct LevelVisitor;

impl<'de> Visitor<'de> for LevelVisitor {
    type Value = Level<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Level<'de>, E> {
        Ok(Level::Flag(flag))
    }

    fn visit_i64<E>(self, integer: i64) -> Result<Level<'de>, E> {
        Ok(Level::Integer(integer))
    }

    fn visit_u64<E>(self, integer: u64) -> Result<Level<'de>, E> {
        Ok(i64::try_from(integer).map_or(Level::Other("a number beyond all bounds"), Level::Integer))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Level<'de>, E> {
        Ok(Level::Other("a number with a fraction"))
    }

    fn visit_str<E>(self, text: &str) -> Result<Level<'de>, E> {
        Ok(Level::Text(text.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<Level<'de>, E> {
        Ok(Level::Other("null"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Level<'de>, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element::<&RawValue>()? {
            list.push(item);
        }
        Ok(Level::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Level<'de>, A::Error> {
        let mut table = Vec::new();
        while let Some((key, value)) = entries.next_entry::<String, &RawValue>()? {
            table.push((key, value));
        }
        Ok(Level::Table(table))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_counts_characters_and_not_bytes() {
        let lines = Lines::new("a\näö x\n");
        let place = |at| lines.place(at).to_string();
        assert_eq!(place(0), "line 1, column 1");
        assert_eq!(place(2), "line 2, column 1");
        assert_eq!(place(7), "line 2, column 4");
        assert_eq!(place(9), "line 3, column 1");
        assert_eq!(place(99), "line 3, column 1");
    }

    #[test]
    fn a_place_far_along_a_line_is_the_same_as_by_counting() {
        let text = "x\n".to_owned() + &"aö€😀".repeat(50) + "\nend";
        let lines = Lines::new(&text);
        for (at, _) in text.char_indices() {
            let before = &text[..at];
            let line = before.rsplit('\n').next().unwrap();
            let place = lines.place(at);
            assert_eq!(place.line as usize, before.matches('\n').count() + 1);
            assert_eq!(place.column, Some(line.chars().count() as u32 + 1), "byte {at}");
        }
    }

    #[test]
    fn both_forms_know_where_a_value_stands() {
        let json = "{\n \"a\": [1,\n  {\"b\": \"x\"}]}";
        let lines = Lines::new(json);
        let root = from_json(json, &lines).unwrap();
        let Value::Table(entries) = root.value else {
            panic!()
        };
        let Value::List(items) = &entries[0].node.value else {
            panic!()
        };
        assert_eq!(lines.place(items[1].at).to_string(), "line 3, column 3");
        let Value::Table(inner) = &items[1].value else {
            panic!()
        };
        assert_eq!(lines.place(inner[0].node.at).to_string(), "line 3, column 9");
    }

    #[test]
    fn a_key_stands_once_in_either_form() {
        for fault in [
            from_json("{\"a\": 1,\n\"a\": 2}", &Lines::new("{\"a\": 1,\n\"a\": 2}")).unwrap_err(),
            from_toml("a = 1\na = 2", &Lines::new("a = 1\na = 2")).unwrap_err(),
        ] {
            assert_eq!(fault.at.unwrap().line, 2, "{fault}");
        }
    }

    #[test]
    fn what_is_nested_deeply_is_refused_in_either_form() {
        let dotted = format!("{}a = 1", "a.".repeat(200_000));
        let headed = format!("[{}a]", "a.".repeat(200_000));
        let listed = format!("a = {}", "[".repeat(500_000));
        for text in [
            dotted,
            headed,
            listed,
            format!("a={}{}", "[".repeat(40), "]".repeat(40)),
        ] {
            assert!(from_toml(&text, &Lines::new(&text)).is_err());
        }
        let many = "[a]\n".to_owned() + &"[[a.b]]\n".repeat(1000);
        assert!(from_toml(&many, &Lines::new(&many)).is_ok());
        for text in [
            "[".repeat(500_000),
            format!("{}{}", "[".repeat(100), "]".repeat(100)),
            "{\"a\":".repeat(100_000),
        ] {
            assert!(from_json(&text, &Lines::new(&text)).is_err());
        }
    }
}
