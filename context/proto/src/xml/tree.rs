//! A document as a tree of elements with their lines.

use std::collections::BTreeMap;

use quick_xml::events::{BytesStart, BytesText, Event};
use quick_xml::{Reader, Writer, XmlVersion};

use crate::cluster::Line;
use crate::error::DocumentError;
use crate::limits::{MAX_ATTRIBUTES, MAX_DEPTH, MAX_DOCUMENT_BYTES, MAX_ELEMENTS};

/// An element.
#[derive(Debug, Default)]
pub(super) struct Element {
    pub(super) name: String,
    attributes: BTreeMap<String, String>,
    children: Vec<Element>,
    text: String,
    line: u32,
}

impl Element {
    pub(super) fn line(&self) -> Line {
        Line(Some(self.line))
    }

    pub(super) fn wrong(&self, why: impl Into<String>) -> DocumentError {
        DocumentError::at(self.line(), format!("<{}>", self.name), why)
    }

    /// The text as it stands.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// The text without the white space around it, as a value.
    pub(super) fn value<T: std::str::FromStr>(&self) -> Result<T, DocumentError>
    where
        T::Err: std::fmt::Display,
    {
        let text = self.text.trim();
        text.parse()
            .map_err(|error| self.wrong(format!("is not usable: {error}")))
    }

    /// An attribute as a value.
    pub(super) fn attribute<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, DocumentError>
    where
        T::Err: std::fmt::Display,
    {
        self.attributes
            .get(name)
            .map(|text| {
                text.trim()
                    .parse()
                    .map_err(|error| self.wrong(format!("has an unusable {name}: {error}")))
            })
            .transpose()
    }

    /// An attribute that says yes or no; no where it is absent.
    pub(super) fn flag(&self, name: &str) -> Result<bool, DocumentError> {
        match self.attributes.get(name).map(|text| text.trim()) {
            None | Some("false" | "0") => Ok(false),
            Some("true" | "1") => Ok(true),
            Some(_) => Err(self.wrong(format!("has {name}= neither 'true' nor 'false'"))),
        }
    }

    /// Whether the element stands there and does not say `false`.
    pub(super) fn switch(&self) -> Result<bool, DocumentError> {
        match self.text.trim() {
            "" | "true" | "1" => Ok(true),
            "false" | "0" => Ok(false),
            _ => Err(self.wrong("says neither 'true' nor 'false'")),
        }
    }

    /// Refuses attributes and children that are not among these.
    pub(super) fn only(&self, attributes: &[&str], children: &[&str]) -> Result<(), DocumentError> {
        if let Some(name) = self
            .attributes
            .keys()
            .find(|name| !attributes.contains(&name.as_str()))
        {
            return Err(self.wrong(format!(
                "has an attribute '{name}'; known are: {}",
                list(attributes)
            )));
        }
        if let Some(child) = self
            .children
            .iter()
            .find(|child| !children.contains(&child.name.as_str()))
        {
            let why = format!(
                "is not known within <{}>; known are: {}",
                self.name,
                list(children)
            );
            return Err(child.wrong(why));
        }
        if !children.is_empty() && !self.text.trim().is_empty() {
            return Err(self.wrong("has text between its elements"));
        }
        Ok(())
    }

    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Element> {
        self.children.iter().filter(move |child| child.name == name)
    }

    /// The only child of a name, if there is one.
    pub(super) fn optional(&self, name: &str) -> Result<Option<&Element>, DocumentError> {
        let mut found = self.children.iter().filter(|child| child.name == name);
        let first = found.next();
        match found.next() {
            Some(second) => Err(second.wrong(format!("stands twice within <{}>", self.name))),
            None => Ok(first),
        }
    }

    pub(super) fn required(&self, name: &str) -> Result<&Element, DocumentError> {
        self.optional(name)?
            .ok_or_else(|| self.wrong(format!("lacks <{name}>")))
    }
}

fn list(names: &[&str]) -> String {
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    }
}

/// Reads a document.
pub(super) fn read(text: &str) -> Result<Element, DocumentError> {
    if text.len() > MAX_DOCUMENT_BYTES {
        return Err(DocumentError::too_many(
            "bytes in the document",
            MAX_DOCUMENT_BYTES,
        ));
    }
    let mut lines = Lines { text, at: 0, line: 1 };
    let mut reader = Reader::from_str(text);
    let mut open: Vec<Element> = Vec::new();
    let mut root = None;
    let mut count = 0;
    loop {
        let line = lines.at(reader.buffer_position());
        let wrong = |why: String| DocumentError::at(Line(Some(line)), "the document", why);
        let event = match reader.read_event() {
            Ok(event) => event,
            Err(error) => {
                let line = lines.at(reader.error_position());
                let why = format!("is not well-formed XML: {error}");
                return Err(DocumentError::at(Line(Some(line)), "the document", why));
            }
        };
        match event {
            Event::Start(start) => {
                count += 1;
                if open.len() >= MAX_DEPTH {
                    return Err(DocumentError::too_many("levels in the document", MAX_DEPTH));
                }
                open.push(element(&start, line)?);
            }
            Event::Empty(start) => {
                count += 1;
                close(&mut open, &mut root, element(&start, line)?)?;
            }
            Event::End(_) => {
                let element = open
                    .pop()
                    .ok_or_else(|| wrong("ends an element twice".to_owned()))?;
                close(&mut open, &mut root, element)?;
            }
            Event::Text(text) => add(&mut open, &text.xml10_content(), &wrong)?,
            Event::CData(text) => add(&mut open, &text.xml10_content(), &wrong)?,
            Event::GeneralRef(reference) => {
                let resolved = match reference.resolve_char_ref() {
                    Ok(Some(c)) => c.to_string(),
                    Ok(None) => predefined(&reference.xml10_content())
                        .ok_or_else(|| {
                            wrong("names an entity; only &lt; &gt; &amp; &apos; &quot; are known".to_owned())
                        })?
                        .to_owned(),
                    Err(error) => return Err(wrong(format!("has a character that is none: {error}"))),
                };
                add(&mut open, &resolved, &wrong)?;
            }
            Event::DocType(_) => {
                return Err(wrong(
                    "has a document type, which is not accepted; remove it".to_owned(),
                ));
            }
            Event::Decl(_) | Event::PI(_) | Event::Comment(_) => {}
            Event::Eof => break,
        }
        if count > MAX_ELEMENTS {
            return Err(DocumentError::too_many("elements in the document", MAX_ELEMENTS));
        }
    }
    if let Some(element) = open.last() {
        return Err(element.wrong("is not closed"));
    }
    root.ok_or_else(|| DocumentError::at(Line(None), "the document", "is empty"))
}

fn element(start: &BytesStart<'_>, line: u32) -> Result<Element, DocumentError> {
    let mut element = Element {
        name: start.local_name().as_ref().to_owned(),
        line,
        ..Element::default()
    };
    for attribute in start.attributes() {
        let attribute =
            attribute.map_err(|error| element.wrong(format!("has a damaged attribute: {error}")))?;
        let key = attribute.key.as_ref();
        // Namespaces, and what instances of schemas say of them, are not judged.
        if key == "xmlns" || key.starts_with("xmlns:") || key.starts_with("xsi:") {
            continue;
        }
        let value = attribute
            .normalized_value(XmlVersion::Implicit1_0)
            .map_err(|error| element.wrong(format!("has a damaged attribute '{key}': {error}")))?;
        if element.attributes.len() >= MAX_ATTRIBUTES {
            return Err(DocumentError::too_many(
                "attributes of an element",
                MAX_ATTRIBUTES,
            ));
        }
        element.attributes.insert(key.to_owned(), value.into_owned());
    }
    Ok(element)
}

fn close(open: &mut [Element], root: &mut Option<Element>, element: Element) -> Result<(), DocumentError> {
    match open.last_mut() {
        Some(parent) => parent.children.push(element),
        None if root.is_none() => *root = Some(element),
        None => return Err(element.wrong("stands after the document's end")),
    }
    Ok(())
}

fn add(
    open: &mut [Element],
    text: &str,
    wrong: &dyn Fn(String) -> DocumentError,
) -> Result<(), DocumentError> {
    match open.last_mut() {
        Some(element) => element.text.push_str(text),
        None if text.trim_matches(['\u{feff}', ' ', '\t', '\r', '\n']).is_empty() => {}
        None => return Err(wrong("has text outside of its elements".to_owned())),
    }
    Ok(())
}

fn predefined(name: &str) -> Option<&'static str> {
    Some(match name {
        "lt" => "<",
        "gt" => ">",
        "amp" => "&",
        "apos" => "'",
        "quot" => "\"",
        _ => return None,
    })
}

/// Counts lines, going forward.
struct Lines<'a> {
    text: &'a str,
    at: usize,
    line: u32,
}

impl Lines<'_> {
    fn at(&mut self, position: u64) -> u32 {
        let position = usize::try_from(position)
            .unwrap_or(usize::MAX)
            .min(self.text.len());
        let passed = self.text.as_bytes().get(self.at..position).unwrap_or_default();
        let newlines = passed.iter().filter(|byte| **byte == b'\n').count();
        self.line = self
            .line
            .saturating_add(u32::try_from(newlines).unwrap_or(u32::MAX));
        self.at = self.at.max(position);
        self.line
    }
}

/// Writes a document into memory, where nothing can fail.
pub(super) struct Output(Writer<Vec<u8>>);

impl Output {
    pub(super) fn new() -> Self {
        Self(Writer::new_with_indent(Vec::new(), b' ', 2))
    }

    /// An element around what `inner` writes.
    pub(super) fn nest(&mut self, start: BytesStart<'_>, inner: impl FnOnce(&mut Self)) {
        let end = start.to_end().into_owned();
        self.event(Event::Start(start.borrow()));
        inner(self);
        self.event(Event::End(end));
    }

    pub(super) fn empty(&mut self, start: BytesStart<'_>) {
        self.event(Event::Empty(start));
    }

    pub(super) fn text(&mut self, start: BytesStart<'_>, text: &str) {
        let end = start.to_end().into_owned();
        self.event(Event::Start(start.borrow()));
        self.event(Event::Text(BytesText::new(text)));
        self.event(Event::End(end));
    }

    pub(super) fn leaf(&mut self, name: &str, text: &str) {
        self.text(BytesStart::new(name), text);
    }

    fn event(&mut self, event: Event<'_>) {
        #[expect(clippy::expect_used, reason = "a vector takes every write")]
        self.0.write_event(event).expect("writing into memory");
    }

    pub(super) fn end(self) -> String {
        let mut bytes = self.0.into_inner();
        bytes.push(b'\n');
        #[expect(clippy::expect_used, reason = "only texts were written")]
        String::from_utf8(bytes).expect("texts are UTF-8")
    }
}
