//! Writing a description back out. What is written is read as the same description.

use super::Description;

impl Description {
    /// The description in TOML.
    #[must_use]
    pub fn to_toml(&self) -> String {
        #[expect(
            clippy::expect_used,
            reason = "texts, small numbers, lists and tables alone are in it"
        )]
        toml::to_string(self).expect("a description has a form in TOML")
    }

    /// The description in JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        #[expect(clippy::expect_used, reason = "no key of a table is anything but text")]
        let mut text = serde_json::to_string_pretty(self).expect("a description has a form in JSON");
        text.push('\n');
        text
    }
}
