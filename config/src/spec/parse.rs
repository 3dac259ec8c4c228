//! From the text of `aerie.toml` to the typed spec.

use aerie_types::{AddressPool, GridId, NodeName, Role, Roles, VirtualAddr, VirtualPrefix, VirtualRange};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ipnet::Ipv4Net;
use toml::de::DeTable;

use super::read::{Located, Notes, Shape, Table};
use super::{
    BootstrapAddr, Condor, DEFAULT_LISTEN_PORT, DEFAULT_VPN_PORT, Enrol, EnrolUrl, Grid, Node, Overlay, Spec,
    VERSION, Vpn,
};
use crate::bundle::{MAX_SPEC_BYTES, SPEC_FILE};
use crate::error::{Error, Problem, Problems};
use crate::secret::{RendezvousSecret, SecretText};

/// How many portals may be named: each costs a time-out at joining when it is down.
const MAX_URLS: usize = 8;

/// How many parts of a range may be reserved, or excluded.
const MAX_PARTS: usize = 32;

/// How many bootstrap members may be named: all are dialled at start.
const MAX_BOOTSTRAP: usize = 64;

/// The longest join token in bytes; real ones have fewer than 100.
const MAX_TOKEN_BYTES: usize = 512;

const TOP: Shape = Shape {
    name: "",
    keys: &["version", "grid", "enrol", "node", "overlay", "vpn", "condor"],
};
const GRID: Shape = Shape {
    name: "grid",
    keys: &[
        "name",
        "id",
        "ca_hash",
        "range",
        "reserved",
        "excluded",
        "witnesses",
        "routed",
    ],
};
const ROUTED: Shape = Shape {
    name: "grid.routed",
    keys: &["range", "block"],
};
const ENROL: Shape = Shape {
    name: "enrol",
    keys: &["urls", "token"],
};
const NODE: Shape = Shape {
    name: "node",
    keys: &["name", "roles", "group", "address"],
};
const OVERLAY: Shape = Shape {
    name: "overlay",
    keys: &[
        "bootstrap",
        "rendezvous_secret",
        "public_bootstrap",
        "listen_port",
    ],
};
const VPN: Shape = Shape {
    name: "vpn",
    keys: &[
        "port",
        "mtu",
        "ipv6",
        "multicast",
        "offload",
        "cipher",
        "tls_port",
        "relay_limit",
    ],
};
const CONDOR: Shape = Shape {
    name: "condor",
    keys: &["prefer_group", "allow_election"],
};
const ALL: [&Shape; 8] = [&TOP, &GRID, &ROUTED, &ENROL, &NODE, &OVERLAY, &VPN, &CONDOR];

pub(super) fn parse(text: &str) -> Result<Spec, Error> {
    if text.len() > MAX_SPEC_BYTES {
        return Err(Error::TooLarge {
            what: SPEC_FILE.to_owned(),
            limit: MAX_SPEC_BYTES as u64,
            advice: "put whatever is no setting into files beside it",
        });
    }
    let mut notes = Notes::new(text);
    let document = DeTable::parse(text).map_err(|error| syntax_error(&error, &notes))?;
    let top = Table::document(&TOP, document.get_ref());

    let version = top.integer("version", &mut notes);
    match &version {
        Some(version) if version.value != VERSION => return Err(Error::Version { found: version.value }),
        None if !document.get_ref().contains_key("version") => {
            top.missing("version", "version = 1", &mut notes)
        }
        _ => {}
    }
    top.refuse_unknown(&ALL, &mut notes);

    let grid = read_grid(&top, &mut notes);
    let enrol = read_enrol(&top, &mut notes);
    let node = read_node(&top, grid.as_ref(), &mut notes);
    let overlay = read_overlay(&top, &mut notes);
    let vpn = read_vpn(&top, overlay.listen_port, &mut notes);
    let condor = read_condor(&top, &mut notes);

    if let Some(problems) = notes.finish() {
        return Err(Error::Spec(problems));
    }
    match (grid, enrol, node) {
        (Some(grid), Some(enrol), Some(node)) => Ok(Spec {
            grid,
            enrol,
            node,
            overlay,
            vpn,
            condor,
        }),
        // Not reached: a part is `None` only together with a note. Refusing is right in any case.
        _ => Err(Error::Spec(Problems(Vec::new()))),
    }
}

fn read_grid(top: &Table<'_, '_>, notes: &mut Notes<'_>) -> Option<Grid> {
    let table = top.sub(&GRID, notes);
    table.refuse_unknown(&ALL, notes);
    let name = required(&table, "name", "name = \"the grid's name\"", notes);
    let ca_hash = required(&table, "ca_hash", "ca_hash = \"64 hexadecimal digits\"", notes);
    let range = required(&table, "range", "range = \"100.96.0.0/11\"", notes);
    let id = table.parsed::<GridId>("id", notes);
    let reserved = optional_list::<Ipv4Net>(&table, "reserved", MAX_PARTS, notes);
    let excluded = optional_list::<Ipv4Net>(&table, "excluded", MAX_PARTS, notes);
    let witnesses = read_witnesses(&table, notes);
    let routed = read_routed(&table, notes);

    let ca_hash: Located<super::CaHash> = ca_hash?;
    if let Some(id) = id
        && id.value != ca_hash.value.grid_id()
    {
        let message = "does not fit grid.ca_hash: it must be that hash's first 32 digits; \
                       copy both from a blob that 'aerie grid blob' made, or leave the id out";
        table.problem(id.line, "id", message, notes);
    }
    let range: Located<VirtualRange> = range?;
    let pool = match AddressPool::new(range.value, reserved, excluded) {
        Ok(pool) => pool,
        Err(refusal) => {
            table.problem(
                range.line,
                "range",
                format!("is refused with its parts: {refusal}"),
                notes,
            );
            return None;
        }
    };
    let pool = match routed {
        None => pool,
        Some((part, block)) => match pool.with_routed(part.value, block) {
            Ok(pool) => pool,
            Err(refusal) => {
                table.problem(part.line, "routed", format!("is refused: {refusal}"), notes);
                return None;
            }
        },
    };
    Some(Grid {
        name: name?.value,
        ca_hash: ca_hash.value,
        pool,
        witnesses,
    })
}

/// The part that is leased in blocks, and their length.
fn read_routed(grid: &Table<'_, '_>, notes: &mut Notes<'_>) -> Option<(Located<Ipv4Net>, u8)> {
    if !grid.has("routed") {
        return None;
    }
    let table = grid.inner("routed", &ROUTED, notes);
    if grid.is_faulty("routed", notes) {
        return None;
    }
    table.refuse_unknown(&ALL, notes);
    let range = required::<Ipv4Net>(&table, "range", "range = \"a part of grid.range\"", notes);
    if !table.has("block") {
        table.missing("block", "block = 28", notes);
    }
    let (shortest, longest) = (VirtualPrefix::SHORTEST.into(), VirtualPrefix::LONGEST.into());
    let block = table.number("block", shortest, longest, notes);
    range.zip(block.and_then(|block| u8::try_from(block).ok()))
}

fn read_witnesses(table: &Table<'_, '_>, notes: &mut Notes<'_>) -> Vec<NodeName> {
    if !table.has("witnesses") {
        return Vec::new();
    }
    let Some(list) = table.list::<NodeName>("witnesses", MAX_PARTS, notes) else {
        return Vec::new();
    };
    let names: std::collections::BTreeSet<_> = list.value.iter().collect();
    if !(3..=5).contains(&names.len()) || names.len() != list.value.len() {
        let message = "must name three to five nodes, each once; leave it out to do without strict mode";
        table.problem(list.line, "witnesses", message, notes);
    }
    list.value
}

fn optional_list<T>(table: &Table<'_, '_>, key: &str, max: usize, notes: &mut Notes<'_>) -> Vec<T>
where
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    if !table.has(key) {
        return Vec::new();
    }
    table
        .list::<T>(key, max, notes)
        .map(|list| list.value)
        .unwrap_or_default()
}

fn read_enrol(top: &Table<'_, '_>, notes: &mut Notes<'_>) -> Option<Enrol> {
    const EXAMPLE: &str = "urls = [\"https://portal.example.org:8443\"]";
    let table = top.sub(&ENROL, notes);
    table.refuse_unknown(&ALL, notes);
    let token = table.text("token", notes).and_then(|token| {
        if token.value.is_empty() || token.value.len() > MAX_TOKEN_BYTES || !token.value.is_ascii() {
            let message = "is no join token: paste the whole token from the blob that 'aerie grid blob' made";
            table.problem(token.line, "token", message, notes);
            return None;
        }
        Some(SecretText::new(token.value.to_owned()))
    });
    let urls = required_list::<EnrolUrl>(&table, "urls", MAX_URLS, EXAMPLE, notes)?;
    Some(Enrol { urls, token })
}

fn read_node(top: &Table<'_, '_>, grid: Option<&Grid>, notes: &mut Notes<'_>) -> Option<Node> {
    const EXAMPLE: &str = "roles = [\"worker\"] (or manager, submit, client, relay)";
    let table = top.sub(&NODE, notes);
    table.refuse_unknown(&ALL, notes);
    let name = table.parsed("name", notes).map(|name| name.value);
    let group = table.parsed("group", notes).map(|group| group.value);
    let address = table.parsed::<std::net::Ipv4Addr>("address", notes);
    if let (Some(address), Some(grid)) = (&address, grid)
        && !grid.pool.leases(address.value.into())
    {
        let message = format!(
            "is no address that nodes may have: choose one of {} that is neither excluded nor routed, or leave it out",
            grid.pool.range()
        );
        table.problem(address.line, "address", message, notes);
    }
    let roles = required_list::<Role>(&table, "roles", Role::ALL.len(), EXAMPLE, notes)?;
    Some(Node {
        name,
        roles: roles.into_iter().collect::<Roles>(),
        group,
        address: address.map(|address| VirtualAddr::from(address.value)),
    })
}

fn read_overlay(top: &Table<'_, '_>, notes: &mut Notes<'_>) -> Overlay {
    let table = top.sub(&OVERLAY, notes);
    table.refuse_unknown(&ALL, notes);
    let addresses = |key, notes: &mut Notes<'_>| {
        table
            .list::<BootstrapAddr>(key, MAX_BOOTSTRAP, notes)
            .map(|list| list.value)
            .unwrap_or_default()
    };
    let bootstrap = addresses("bootstrap", notes);
    let public_bootstrap = addresses("public_bootstrap", notes);
    let rendezvous_secret = table.text("rendezvous_secret", notes).and_then(|text| {
        let refusal = match STANDARD.decode(text.value) {
            Ok(bytes) => match RendezvousSecret::new(bytes) {
                Some(secret) => return Some(secret),
                None => "must have 16 to 64 bytes".to_owned(),
            },
            Err(error) => format!("must be base64, but does not decode ({error})"),
        };
        let message = format!("{refusal}: make one with 'head -c 32 /dev/urandom | base64'");
        table.problem(text.line, "rendezvous_secret", message, notes);
        None
    });
    Overlay {
        bootstrap,
        rendezvous_secret,
        public_bootstrap,
        listen_port: table
            .number("listen_port", 0, u16::MAX, notes)
            .unwrap_or(DEFAULT_LISTEN_PORT),
    }
}

fn read_vpn(top: &Table<'_, '_>, listen_port: u16, notes: &mut Notes<'_>) -> Vpn {
    let table = top.sub(&VPN, notes);
    table.refuse_unknown(&ALL, notes);
    let port = table
        .number("port", 0, u16::MAX, notes)
        .unwrap_or(DEFAULT_VPN_PORT);
    let mtu = table.number("mtu", Vpn::MIN_MTU, Vpn::MAX_MTU, notes);
    if port != 0 && port == listen_port {
        let message =
            format!("is the same as overlay.listen_port ({port}), and both need UDP: change one of them");
        table.problem(table.line(), "port", message, notes);
    }
    let usual = Vpn::default();
    Vpn {
        port,
        mtu,
        ipv6: table.boolean("ipv6", notes).unwrap_or(usual.ipv6),
        multicast: table.boolean("multicast", notes).unwrap_or(usual.multicast),
        offload: table.boolean("offload", notes).unwrap_or(usual.offload),
        cipher: table.parsed("cipher", notes).map(|cipher| cipher.value),
        tls_port: table
            .number("tls_port", 0, u16::MAX, notes)
            .unwrap_or(usual.tls_port),
        relay_limit: table.number("relay_limit", 1, u16::MAX, notes),
    }
}

fn read_condor(top: &Table<'_, '_>, notes: &mut Notes<'_>) -> Condor {
    let table = top.sub(&CONDOR, notes);
    table.refuse_unknown(&ALL, notes);
    let default = Condor::default();
    Condor {
        prefer_group: table
            .boolean("prefer_group", notes)
            .unwrap_or(default.prefer_group),
        allow_election: table
            .boolean("allow_election", notes)
            .unwrap_or(default.allow_election),
    }
}

/// A value that must be there. `None` always comes with a note.
fn required<T>(table: &Table<'_, '_>, key: &str, example: &str, notes: &mut Notes<'_>) -> Option<Located<T>>
where
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    if !table.has(key) {
        table.missing(key, example, notes);
        return None;
    }
    table.parsed(key, notes)
}

/// A list that must be there and not be empty. `None` always comes with a note.
fn required_list<T>(
    table: &Table<'_, '_>,
    key: &str,
    max: usize,
    example: &str,
    notes: &mut Notes<'_>,
) -> Option<Vec<T>>
where
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    if !table.has(key) {
        table.missing(key, example, notes);
        return None;
    }
    let list = table.list::<T>(key, max, notes)?;
    if list.value.is_empty() && !table.is_faulty(key, notes) {
        table.problem(list.line, key, format!("is empty: write {example}"), notes);
    }
    Some(list.value)
}

/// The library's own message quotes the line, which may hold a secret; this one gives its number only.
fn syntax_error(error: &toml::de::Error, notes: &Notes<'_>) -> Error {
    let line = error.span().map_or(1, |span| notes.line(&span));
    Error::Spec(Problems(vec![Problem {
        line,
        key: String::new(),
        message: format!("this is not valid TOML: {}", error.message()),
    }]))
}
