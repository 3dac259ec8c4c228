//! `nft`, by process: a text goes in, and it is one transaction.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tokio::time::timeout;

use crate::Error;

/// How long a transaction may take: the kernel waits for its readers, which is milliseconds.
const LIMIT: Duration = Duration::from_secs(20);

/// Bytes of what nft says that are passed on: each complaint quotes the rule that it is about.
const MAX_SAID: usize = 2000;

/// Where administrators' programs are, also for a service whose path has them not.
const PLACES: &str = "/usr/sbin:/sbin:/usr/bin:/bin:/usr/local/sbin";

/// Loads rules, all or none.
///
/// # Errors
/// [`Error::NoNft`], [`Error::Nft`], [`Error::NftSlow`], and [`Error::Rules`] where the kernel refuses.
pub(crate) async fn load(rules: &str) -> Result<(), Error> {
    run(&["-f", "-"], rules).await.map(drop)
}

async fn run(arguments: &[&str], input: &str) -> Result<String, Error> {
    let mut child = Command::new("nft")
        .args(arguments)
        .env("PATH", PLACES)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => Error::NoNft,
            _ => Error::Nft(source),
        })?;
    let mut stdin = child.stdin.take();
    let feed = async {
        if let Some(stdin) = &mut stdin {
            // Who stops reading says why on standard error.
            let _ = stdin.write_all(input.as_bytes()).await;
            let _ = stdin.shutdown().await;
        }
        drop(stdin);
    };
    let work = async { tokio::join!(feed, child.wait_with_output()).1 };
    let output = timeout(LIMIT, work)
        .await
        .map_err(|_| Error::NftSlow {
            seconds: LIMIT.as_secs(),
        })?
        .map_err(Error::Nft)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(refused(said.trim()))
}

/// The tables that there are, each as family and name.
///
/// # Errors
/// [`Error::NoNft`], [`Error::Nft`], [`Error::NftSlow`], [`Error::Rules`].
pub(crate) async fn tables() -> Result<BTreeSet<(String, String)>, Error> {
    let said = run(&["list", "tables"], "").await?;
    Ok(parse_tables(&said))
}

fn parse_tables(said: &str) -> BTreeSet<(String, String)> {
    let tables = said.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let ("table", family, name) = (words.next()?, words.next()?, words.next()?) else {
            return None;
        };
        Some((family.to_owned(), name.to_owned()))
    });
    tables.collect()
}

/// What a refusal means.
fn refused(said: &str) -> Error {
    let has = |text: &str| said.contains(text);
    let advice = if has("Operation not permitted") || has("must be root") {
        "; run this as root, or with CAP_NET_ADMIN"
    } else if has("Operation not supported") || has("Protocol not supported") || has("protocol family") {
        "; the kernel's packet filter lacks a part: it needs tables of the families bridge and inet (CONFIG_NF_TABLES_BRIDGE, CONFIG_NF_TABLES_INET)"
    } else if has("syntax error") {
        "; this nft is too old: use version 1.0 or later"
    } else {
        ""
    };
    let said = said.char_indices().take_while(|(at, _)| *at < MAX_SAID);
    Error::Rules {
        said: said.map(|(_, c)| c).collect(),
        advice,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_told_apart_by_family_and_name() {
        let tables =
            parse_tables("table ip nat\ntable bridge aerie_net_x\n\ntable inet aerie_net_x { # flags\n");
        assert_eq!(tables.len(), 3);
        assert!(tables.contains(&("bridge".to_owned(), "aerie_net_x".to_owned())));
    }

    #[test]
    fn a_refusal_says_what_to_do_and_is_short() {
        let cases = [
            (
                "netlink: Error: Could not process rule: Operation not permitted",
                "CAP_NET_ADMIN",
            ),
            (
                "Error: Could not process rule: Operation not supported",
                "CONFIG_NF_TABLES_BRIDGE",
            ),
            ("-:1:1-3: Error: syntax error, unexpected string", "too old"),
        ];
        for (said, expected) in cases {
            let text = refused(said).to_string();
            assert!(text.contains(said) && text.contains(expected), "{text}");
        }
        assert!(refused(&"ä".repeat(10_000)).to_string().len() < 2200);
    }
}
