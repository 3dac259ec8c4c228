//! Join tokens: what a person pastes, or a blob carries, so that a node may enrol.
//!
//! A token is `aerie-`, the grid's short id, a hyphen, and 56 characters of base32: 32 random bytes and 3 bytes of
//! check, so that a wrong grid or a slip in copying is told apart from a token that is not known. What the token
//! allows (group, roles, user, how often, until when) is known to the portal alone, which stores only its hash.

use std::fmt;
use std::str::FromStr;

use aerie_types::GridId;
use aws_lc_rs::rand;
use zeroize::Zeroizing;

use crate::{Error, sha256, transcript};

/// What every token begins with.
pub const TOKEN_PREFIX: &str = "aerie-";

const SECRET: usize = 32;
const CHECK: usize = 3;
const CONTEXT: &str = "aerie join token 1";
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
/// Characters for 35 bytes: 280 bits are 56 characters of 5 bits, without padding.
const BODY: usize = (SECRET + CHECK) * 8 / 5;

/// A secret that allows its holder to enrol. Wiped from memory when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    grid_short: String,
    secret: Zeroizing<[u8; SECRET]>,
}

impl JoinToken {
    /// Draws a new token for a grid.
    ///
    /// # Errors
    /// [`Error::Crypto`] if the system's random source fails.
    pub fn generate(grid: GridId) -> Result<Self, Error> {
        let mut secret = Zeroizing::new([0; SECRET]);
        rand::fill(&mut *secret).map_err(|_| Error::Crypto("draw random bytes"))?;
        Ok(Self {
            grid_short: grid.short(),
            secret,
        })
    }

    /// The short id (eight hexadecimal digits) of the grid it is for.
    #[must_use]
    pub fn grid_short(&self) -> &str {
        &self.grid_short
    }

    /// Whether it is for this grid, as far as the short id tells.
    #[must_use]
    pub fn is_of(&self, grid: GridId) -> bool {
        self.grid_short == grid.short()
    }

    /// What may be stored in its place: a SHA-256 from which the token cannot be found.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        let bytes = transcript(CONTEXT, &[self.grid_short.as_bytes(), &*self.secret]);
        sha256(&Zeroizing::new(bytes))
    }

    /// The text to print or to put into a blob. It is the secret itself.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut bytes = Zeroizing::new([0; SECRET + CHECK]);
        bytes[..SECRET].copy_from_slice(&*self.secret);
        bytes[SECRET..].copy_from_slice(&self.check());
        let mut text = Zeroizing::new(String::with_capacity(TOKEN_PREFIX.len() + 9 + BODY));
        text.push_str(TOKEN_PREFIX);
        text.push_str(&self.grid_short);
        text.push('-');
        for block in bytes.chunks(5) {
            let bits = block.iter().fold(0u64, |bits, byte| bits << 8 | u64::from(*byte));
            for i in (0..8).rev() {
                text.push(char::from(ALPHABET[(bits >> (5 * i) & 31) as usize]));
            }
        }
        text
    }

    fn check(&self) -> [u8; CHECK] {
        let hash = sha256(&self.hash());
        [hash[0], hash[1], hash[2]]
    }
}

/// Reads a token, tolerating white space around it and capital letters.
impl FromStr for JoinToken {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let text = Zeroizing::new(text.trim().to_ascii_lowercase());
        let (grid_short, body) = text
            .strip_prefix(TOKEN_PREFIX)
            .and_then(|rest| rest.split_once('-'))
            .ok_or(Error::Token(
                "it does not begin with `aerie-` and a grid's short id",
            ))?;
        if grid_short.len() != 8 || !grid_short.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(Error::Token(
                "the grid's short id must have eight hexadecimal digits",
            ));
        }
        if body.len() != BODY {
            return Err(Error::Token("it is cut short or has something appended"));
        }
        let mut bytes = Zeroizing::new([0u8; SECRET + CHECK]);
        for (block, chars) in bytes.chunks_mut(5).zip(body.as_bytes().chunks(8)) {
            let mut bits = 0u64;
            for c in chars {
                let digit = ALPHABET
                    .iter()
                    .position(|letter| letter == c)
                    .ok_or(Error::Token("it has a character that no token has"))?;
                bits = bits << 5 | digit as u64;
            }
            block.copy_from_slice(&bits.to_be_bytes()[3..]);
        }
        let mut token = Self {
            grid_short: grid_short.to_owned(),
            secret: Zeroizing::new([0; SECRET]),
        };
        token.secret.copy_from_slice(&bytes[..SECRET]);
        if token.check() != bytes[SECRET..] {
            return Err(Error::Token("a character is wrong"));
        }
        Ok(token)
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({TOKEN_PREFIX}{}-..)", self.grid_short)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_reads_back_from_its_text() {
        let token = JoinToken::generate(GridId([0xab; 16])).unwrap();
        let text = token.to_text();
        assert_eq!(text.len(), 71);
        assert!(text.starts_with("aerie-abababab-"), "{}", *text);
        let padded = format!("  {}\n", text.to_uppercase());
        assert_eq!(padded.parse::<JoinToken>().unwrap(), token);
        assert!(token.is_of(GridId([0xab; 16])) && !token.is_of(GridId([1; 16])));
    }

    #[test]
    fn every_slip_in_copying_is_noticed() {
        let text = JoinToken::generate(GridId([7; 16])).unwrap().to_text();
        for i in 0..text.len() {
            let mut slipped = text.as_bytes().to_vec();
            slipped[i] = if slipped[i] == b'2' { b'3' } else { b'2' };
            let slipped = String::from_utf8(slipped).unwrap();
            assert!(slipped.parse::<JoinToken>().is_err(), "position {i}");
            assert!(text[..i].parse::<JoinToken>().is_err(), "cut at {i}");
        }
    }

    #[test]
    fn the_secret_is_not_in_the_debug_text() {
        let token = JoinToken::generate(GridId([7; 16])).unwrap();
        assert_eq!(format!("{token:?}"), "JoinToken(aerie-07070707-..)");
    }
}
