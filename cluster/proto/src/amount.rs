//! Amounts of memory, disk and CPUs, ranges of them, and life-times, in the forms that people write.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize, Serializer};

use crate::error::BadValue;

/// A number of bytes. Written with a unit, as `2 GiB`; a number without one is refused, for nobody knows which it
/// would be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Bytes(pub u64);

const UNITS: [(&str, u64); 13] = [
    ("PiB", 1 << 50),
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("PB", 1_000_000_000_000_000),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("KB", 1_000),
    ("bytes", 1),
    ("B", 1),
];

impl Bytes {
    /// So many mebibytes; the largest number where that is beyond it.
    #[must_use]
    pub const fn mib(mebibytes: u64) -> Self {
        Self(mebibytes.saturating_mul(1 << 20))
    }

    /// So many gibibytes; the largest number where that is beyond it.
    #[must_use]
    pub const fn gib(gibibytes: u64) -> Self {
        Self(gibibytes.saturating_mul(1 << 30))
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = |(_, size): &&(&str, u64)| self.0 != 0 && self.0.is_multiple_of(*size);
        match UNITS[..5].iter().find(whole) {
            Some((unit, size)) => write!(f, "{} {unit}", self.0 / size),
            None => write!(f, "{} B", self.0),
        }
    }
}

impl FromStr for Bytes {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        let bad = || {
            BadValue::new(
                text,
                "an amount of bytes",
                "write a number with a unit, such as \"512 MiB\" or \"2 GiB\"",
            )
        };
        let text = text.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let unit = unit.trim_start();
        let (_, size) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(bad)?;
        let number: u64 = number.parse().map_err(|_| bad())?;
        number.checked_mul(*size).map(Self).ok_or_else(bad)
    }
}

impl TryFrom<String> for Bytes {
    type Error = BadValue;

    fn try_from(text: String) -> Result<Self, BadValue> {
        text.parse()
    }
}

impl From<Bytes> for String {
    fn from(bytes: Bytes) -> Self {
        bytes.to_string()
    }
}

/// What is asked for: at least `min`, and up to `max` where there is more. Written `1 GiB..4 GiB`, or as one value
/// where both are the same. A range is not known to be a sensible one before its description is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Range<T> {
    /// The least that will do.
    pub min: T,
    /// The most that is of use.
    pub max: T,
}

impl<T: Copy> Range<T> {
    /// Exactly so much.
    #[must_use]
    pub const fn exactly(value: T) -> Self {
        Self {
            min: value,
            max: value,
        }
    }
}

impl From<Range<u32>> for Range<u64> {
    fn from(range: Range<u32>) -> Self {
        Self {
            min: range.min.into(),
            max: range.max.into(),
        }
    }
}

impl From<Range<Bytes>> for Range<u64> {
    fn from(range: Range<Bytes>) -> Self {
        Self {
            min: range.min.0,
            max: range.max.0,
        }
    }
}

impl<T: fmt::Display + PartialEq> fmt::Display for Range<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.min == self.max {
            self.min.fmt(f)
        } else {
            write!(f, "{}..{}", self.min, self.max)
        }
    }
}

impl<T> FromStr for Range<T>
where
    T: FromStr + Copy,
    T::Err: fmt::Display,
{
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        let one = |part: &str| {
            part.trim().parse::<T>().map_err(|error| {
                BadValue::new(
                    text,
                    "a value or a range",
                    format!(
                        "write one value, or two with '..' between them; '{}': {error}",
                        crate::error::shown(part)
                    ),
                )
            })
        };
        match text.split_once("..") {
            Some((min, max)) => Ok(Self {
                min: one(min)?,
                max: one(max)?,
            }),
            None => one(text).map(Self::exactly),
        }
    }
}

impl<T: fmt::Display + PartialEq> Serialize for Range<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// How long something may live, in whole seconds. Written `12h` or `1day 6h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Lifetime(Duration);

impl Lifetime {
    /// So many seconds.
    #[must_use]
    pub const fn secs(secs: u64) -> Self {
        Self(Duration::from_secs(secs))
    }

    /// As a duration.
    #[must_use]
    pub const fn duration(self) -> Duration {
        self.0
    }
}

impl fmt::Display for Lifetime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

impl FromStr for Lifetime {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        let rule = "write whole seconds or more with their units, such as \"12h\" or \"1day 6h\"";
        let bad = || BadValue::new(text, "a life-time", rule);
        let duration = humantime::parse_duration(text.trim()).map_err(|_| bad())?;
        if duration.subsec_nanos() != 0 {
            return Err(bad());
        }
        Ok(Self(duration))
    }
}

impl TryFrom<String> for Lifetime {
    type Error = BadValue;

    fn try_from(text: String) -> Result<Self, BadValue> {
        text.parse()
    }
}

impl From<Lifetime> for String {
    fn from(lifetime: Lifetime) -> Self {
        lifetime.to_string()
    }
}

/// An amount of each thing that a host has to give.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory.
    pub memory: Bytes,
    /// Disk.
    pub disk: Bytes,
}

impl Resources {
    /// Nothing.
    pub const NONE: Self = Self {
        cpus: 0,
        memory: Bytes(0),
        disk: Bytes(0),
    };

    /// Whether so much can be taken from this.
    #[must_use]
    pub fn holds(&self, other: &Self) -> bool {
        other.cpus <= self.cpus && other.memory <= self.memory && other.disk <= self.disk
    }

    /// Both together; `None` where a number would overflow.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Option<Self> {
        Some(Self {
            cpus: self.cpus.checked_add(other.cpus)?,
            memory: Bytes(self.memory.0.checked_add(other.memory.0)?),
            disk: Bytes(self.disk.0.checked_add(other.disk.0)?),
        })
    }

    /// What is left of this without the other; `None` where it is less.
    #[must_use]
    pub fn minus(&self, other: &Self) -> Option<Self> {
        Some(Self {
            cpus: self.cpus.checked_sub(other.cpus)?,
            memory: Bytes(self.memory.0.checked_sub(other.memory.0)?),
            disk: Bytes(self.disk.0.checked_sub(other.disk.0)?),
        })
    }

    /// What is left of each kind without the other; nothing of a kind of which the other has more.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        Self {
            cpus: self.cpus.saturating_sub(other.cpus),
            memory: Bytes(self.memory.0.saturating_sub(other.memory.0)),
            disk: Bytes(self.disk.0.saturating_sub(other.disk.0)),
        }
    }

    /// One of the amounts, in its smallest unit.
    #[must_use]
    pub fn of(&self, kind: Kind) -> u64 {
        match kind {
            Kind::Cpus => u64::from(self.cpus),
            Kind::Memory => self.memory.0,
            Kind::Disk => self.disk.0,
        }
    }
}

impl fmt::Display for Resources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}, {}, {}",
            Kind::Cpus.quantity(self.of(Kind::Cpus)),
            Kind::Memory.quantity(self.memory.0),
            Kind::Disk.quantity(self.disk.0)
        )
    }
}

/// Which of the amounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Virtual CPUs.
    Cpus,
    /// Memory.
    Memory,
    /// Disk.
    Disk,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Cpus, Self::Memory, Self::Disk];

    /// A number of this kind's smallest units with its unit, for people.
    #[must_use]
    pub fn amount(self, number: u64) -> String {
        match (self, number) {
            (Self::Cpus, 1) => "1 CPU".to_owned(),
            (Self::Cpus, _) => format!("{number} CPUs"),
            (Self::Memory | Self::Disk, _) => Bytes(number).to_string(),
        }
    }
}

impl Kind {
    /// As [`Kind::amount`], with what it is of: `4 GiB of memory`.
    #[must_use]
    pub fn quantity(self, number: u64) -> String {
        match self {
            Self::Cpus => self.amount(number),
            Self::Memory | Self::Disk => format!("{} of {self}", self.amount(number)),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpus => "CPUs",
            Self::Memory => "memory",
            Self::Disk => "disk",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_amount_is_read_with_its_unit_and_written_in_the_largest_that_divides_it() {
        for (text, bytes, written) in [
            ("2 GiB", 2 << 30, "2 GiB"),
            ("2048MiB", 2 << 30, "2 GiB"),
            ("1536 MiB", 1536 << 20, "1536 MiB"),
            ("1 GB", 1_000_000_000, "1000000000 B"),
            ("0 B", 0, "0 B"),
        ] {
            let amount: Bytes = text.parse().unwrap();
            assert_eq!((amount.0, amount.to_string().as_str()), (bytes, written));
            assert_eq!(written.parse::<Bytes>().unwrap(), amount);
        }
        for text in [
            "",
            "2",
            "GiB",
            "-1 GiB",
            "1.5 GiB",
            "2 gib",
            "99999999 PiB",
            "1 GiB x",
        ] {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_range_is_one_value_or_two() {
        let range: Range<Bytes> = "1 GiB..4 GiB".parse().unwrap();
        assert_eq!((range.min, range.max), (Bytes::gib(1), Bytes::gib(4)));
        assert_eq!(range.to_string(), "1 GiB..4 GiB");
        assert_eq!("3".parse::<Range<u32>>().unwrap(), Range::exactly(3));
        let message = "1..x".parse::<Range<u32>>().unwrap_err().to_string();
        assert!(message.contains("'x'"), "{message}");
    }

    #[test]
    fn a_life_time_has_whole_seconds() {
        let day: Lifetime = "1day 6h".parse().unwrap();
        assert_eq!(day, Lifetime::secs(30 * 3600));
        assert_eq!(day.to_string().parse::<Lifetime>().unwrap(), day);
        for text in ["", "12", "10ms", "-1h", "99999999999999999999years"] {
            assert!(text.parse::<Lifetime>().is_err(), "{text}");
        }
    }
}
