//! A file of HTCondor's configuration in the making: sections of knobs, each with the reason for it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Names and values in the order in which they were set, under headings.
///
/// A value never ends its line early: whoever sets one passes text that was checked at the door.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Knobs {
    entries: Vec<Entry>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Entry {
    Heading(&'static str),
    Knob { name: String, value: String },
}

impl Knobs {
    /// Begins a section; the text says what its knobs are for.
    pub(crate) fn heading(&mut self, text: &'static str) {
        self.entries.push(Entry::Heading(text));
    }

    /// Sets a knob. A value of several lines is written as a block.
    pub(crate) fn set(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.entries.push(Entry::Knob {
            name: name.into(),
            value: value.into(),
        });
    }

    /// Sets several knobs of fixed values.
    pub(crate) fn set_all(&mut self, knobs: &[(&str, &str)]) {
        for (name, value) in knobs {
            self.set(*name, *value);
        }
    }

    /// The value of a knob, without expanding macros. The last one set counts, as in HTCondor.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.iter().filter(|(n, _)| *n == name).last().map(|(_, v)| v)
    }

    /// Reads the knobs of a file that [`Self::render`] wrote. Not a reader of HTCondor's language.
    #[must_use]
    pub(crate) fn parse(text: &str) -> Self {
        let mut knobs = Self::default();
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            if line.starts_with('#') {
                continue;
            }
            if let Some(name) = line.strip_suffix(" @=end") {
                let block: Vec<_> = lines.by_ref().take_while(|line| *line != "@end").collect();
                knobs.set(name, block.join("\n"));
            } else if let Some((name, value)) = line.split_once('=') {
                knobs.set(name.trim(), value.trim());
            }
        }
        knobs
    }

    /// All knobs in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.entries.iter().filter_map(|entry| match entry {
            Entry::Heading(_) => None,
            Entry::Knob { name, value } => Some((name.as_str(), value.as_str())),
        })
    }

    /// The knobs whose values differ from those in `other`, or that stand in one of the two only.
    #[must_use]
    pub fn changed<'a>(&'a self, other: &'a Self) -> Vec<&'a str> {
        let (mine, theirs): (BTreeMap<_, _>, BTreeMap<_, _>) =
            (self.iter().collect(), other.iter().collect());
        let mut names: Vec<&str> = mine
            .iter()
            .filter(|(name, value)| theirs.get(*name) != Some(value))
            .map(|(name, _)| *name)
            .chain(theirs.keys().filter(|name| !mine.contains_key(*name)).copied())
            .collect();
        names.sort_unstable();
        names
    }

    /// The file's text below `header`, which must be made of comment lines.
    pub(crate) fn render(&self, header: &str) -> String {
        let mut text = header.to_owned();
        for entry in &self.entries {
            // Writing to a String cannot fail.
            let _ = match entry {
                Entry::Heading(heading) => {
                    text.push('\n');
                    heading.lines().try_for_each(|line| writeln!(text, "# {line}"))
                }
                Entry::Knob { name, value } if value.contains('\n') => {
                    writeln!(text, "{name} @=end\n{value}\n@end")
                }
                Entry::Knob { name, value } if value.is_empty() => writeln!(text, "{name} ="),
                Entry::Knob { name, value } => writeln!(text, "{name} = {value}"),
            };
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_of_several_lines_becomes_a_block() {
        let mut knobs = Knobs::default();
        knobs.heading("why");
        knobs.set("A", "1");
        knobs.set("B", "x\ny");
        knobs.set("C", "");
        let text = knobs.render("# h\n");
        assert_eq!(text, "# h\n\n# why\nA = 1\nB @=end\nx\ny\n@end\nC =\n");
        assert!(knobs.changed(&Knobs::parse(&text)).is_empty());
    }

    #[test]
    fn changed_names_what_differs_on_either_side() {
        let mut old = Knobs::default();
        old.set_all(&[("A", "1"), ("B", "2"), ("C", "3")]);
        let mut new = Knobs::default();
        new.set_all(&[("A", "1"), ("B", "9"), ("D", "4")]);
        assert_eq!(new.changed(&old), ["B", "C", "D"]);
    }
}
