//! A node that shall join a grid, and how it is told which.

use crate::lab::Place;

/// In which form a node gets its blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Delivery {
    /// A TOML file named on the command line.
    #[default]
    File,
    /// A zip archive named on the command line.
    Zip,
    /// A folder named on the command line.
    Dir,
    /// A floppy image in the drive.
    Floppy,
    /// User-data of the cloud at 169.254.169.254.
    UserData,
}

/// A node that shall join.
#[derive(Debug, Clone, Default)]
pub struct Join {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub place: Place,
    /// Its user group.
    pub group: String,
    /// Its roles, joined by commas.
    pub roles: String,
    /// How it gets its blob.
    pub delivery: Delivery,
    /// Further options of `aerie up`.
    pub options: Vec<String>,
    /// Environment of the daemon.
    pub env: Vec<(String, String)>,
}

impl Join {
    /// A node by name, place, group and roles, with a blob in a file.
    #[must_use]
    pub fn new(name: &str, place: impl Into<Place>, group: &str, roles: &str) -> Self {
        Self {
            name: name.to_owned(),
            place: place.into(),
            group: group.to_owned(),
            roles: roles.to_owned(),
            ..Self::default()
        }
    }

    /// With its blob in another form.
    #[must_use]
    pub fn by(mut self, delivery: Delivery) -> Self {
        self.delivery = delivery;
        self
    }

    /// With an option more of `aerie up`.
    #[must_use]
    pub fn option(mut self, option: &str) -> Self {
        self.options.push(option.to_owned());
        self
    }

    /// With its clock off by so much, such as `+1d` (libfaketime's notation). Monotonic time is right.
    #[must_use]
    pub fn clock(self, offset: &str) -> Self {
        self.faketime(&[("FAKETIME", offset)])
    }

    /// With its clock off by what a file on the node says at each moment, in the same notation.
    #[must_use]
    pub fn clock_file(self, path: &str) -> Self {
        self.faketime(&[("FAKETIME_TIMESTAMP_FILE", path), ("FAKETIME_NO_CACHE", "1")])
    }

    fn faketime(mut self, settings: &[(&str, &str)]) -> Self {
        let library = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";
        let always = [("LD_PRELOAD", library), ("FAKETIME_DONT_FAKE_MONOTONIC", "1")];
        let all = always.iter().chain(settings);
        self.env
            .extend(all.map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        self
    }
}
