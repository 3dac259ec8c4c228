//! The text of `aerie.toml`: what is accepted, and how each mistake is told.

use aerie_config::{
    BootstrapAddr, CaHash, Cipher, Condor, Enrol, Error, Grid, MAX_SPEC_BYTES, Node, Overlay,
    RendezvousSecret, SecretText, Spec, Vpn,
};
use aerie_types::{AddressPool, Role, Roles, VirtualRange};
use proptest::prelude::*;

use crate::common::{CA_HASH, PEER, TOKEN, changed, full, minimal, refusal};

#[test]
fn a_minimal_spec_has_the_defaults() {
    let spec = Spec::parse(&minimal()).unwrap();
    assert_eq!(spec.grid.name.as_str(), "chem");
    assert_eq!(spec.grid.id().to_string(), &CA_HASH[..32]);
    assert_eq!(spec.node.roles, Roles::from(Role::Worker));
    assert_eq!(spec.node.name, None);
    assert_eq!(spec.overlay, Overlay::default());
    assert_eq!((spec.overlay.listen_port, spec.vpn.port), (4001, 4242));
    assert_eq!(spec.condor, Condor::default());
    assert!(spec.condor.prefer_group && !spec.condor.allow_election);
}

#[test]
fn a_full_spec_has_every_value() {
    let spec = Spec::parse(&full()).unwrap();
    assert_eq!(spec.node.name.unwrap().as_str(), "w1");
    assert_eq!(spec.node.roles.to_string(), "manager,relay");
    assert_eq!(spec.node.group.unwrap().as_str(), "biochem");
    assert_eq!(spec.enrol.urls.len(), 2);
    assert_eq!(spec.enrol.token.unwrap().expose(), TOKEN);
    assert_eq!(spec.overlay.bootstrap[0].peer().to_string(), PEER);
    assert_eq!(spec.overlay.rendezvous_secret.unwrap().expose(), [0xab; 32]);
    assert_eq!(spec.overlay.listen_port, 4101);
    assert_eq!((spec.vpn.port, spec.vpn.mtu), (4343, Some(1280)));
    assert!(spec.vpn.ipv6);
    assert!(!spec.condor.prefer_group && spec.condor.allow_election);
}

#[test]
fn an_unknown_key_is_told_with_its_line_and_the_nearest_known_one() {
    let text = changed("listen_port = 4101", "listen_prt = 4101");
    assert_eq!(
        refusal(&text),
        "aerie.toml, line 18: overlay.listen_prt is not a known key: did you mean 'listen_port'?"
    );
    assert!(refusal(&changed("prefer_group", "prefer-Group")).contains("did you mean 'prefer_group'?"));
}

#[test]
fn a_key_in_the_wrong_table_is_told_where_it_belongs() {
    let text = changed("[node]\n", "[node]\nmtu = 1400\n");
    let message = refusal(&text);
    assert!(
        message.contains("line 11: node.mtu is not known here: 'mtu' belongs below [vpn]"),
        "{message}"
    );
}

#[test]
fn an_unknown_table_is_told_with_the_nearest_known_one() {
    let message = refusal(&format!("{}[overlai]\nlisten_port = 1\n", minimal()));
    assert!(
        message.contains("line 11: overlai is not a known key: did you mean 'overlay'?"),
        "{message}"
    );
}

#[test]
fn multicast_is_off_unless_switched_on_and_only_then_written() {
    assert!(!Spec::parse(&minimal()).unwrap().vpn.multicast);
    let spec = Spec::parse(&changed("mtu = 1280", "multicast = true")).unwrap();
    assert!(spec.vpn.multicast && spec.to_toml().contains("multicast = true"));
    let spec = Spec::parse(&changed("mtu = 1280", "multicast = false")).unwrap();
    assert!(!spec.to_toml().contains("multicast"));
}

#[test]
fn ipv6_is_on_unless_switched_off_and_only_then_written() {
    let spec = Spec::parse(&changed("mtu = 1280", "ipv6 = false")).unwrap();
    assert!(!spec.vpn.ipv6 && spec.to_toml().contains("ipv6 = false"));
    let spec = Spec::parse(&changed("mtu = 1280", "ipv6 = true")).unwrap();
    assert!(spec.vpn.ipv6 && !spec.to_toml().contains("ipv6"));
    let message = refusal(&changed("mtu = 1280", "ipv6 = 6"));
    assert!(message.contains("vpn.ipv6 must be"), "{message}");
}

#[test]
fn offloads_and_a_cipher_are_written_only_where_they_differ_from_the_usual() {
    let text = changed("mtu = 1280", "offload = false\ncipher = \"chacha20-poly1305\"");
    let spec = Spec::parse(&text).unwrap();
    assert!(!spec.vpn.offload && spec.vpn.cipher == Some(Cipher::ChaCha20));
    assert!(
        spec.to_toml()
            .contains("offload = false\ncipher = \"chacha20-poly1305\"")
    );
    let usual = Spec::parse(&changed("mtu = 1280", "offload = true")).unwrap();
    assert!(usual.vpn.offload && usual.vpn.cipher.is_none());
    assert!(!usual.to_toml().contains("offload") && !usual.to_toml().contains("cipher"));
    let message = refusal(&changed("mtu = 1280", "cipher = \"aes\""));
    assert!(
        message.contains(r#"vpn.cipher must be "aes-256-gcm" or "chacha20-poly1305", or left out"#),
        "{message}"
    );
}

#[test]
fn what_a_relay_carries_is_bounded_only_where_that_is_said() {
    let spec = Spec::parse(&changed("mtu = 1280", "relay_limit = 100")).unwrap();
    assert_eq!(spec.vpn.relay_limit, Some(100));
    assert!(spec.to_toml().contains("relay_limit = 100"));
    let usual = Spec::parse(&changed("mtu = 1280", "")).unwrap();
    assert_eq!(usual.vpn.relay_limit, None);
    assert!(!usual.to_toml().contains("relay_limit"));
    let message = refusal(&changed("mtu = 1280", "relay_limit = 0"));
    assert!(
        message.contains("vpn.relay_limit must be a number from 1 to 65535"),
        "{message}"
    );
}

#[test]
fn the_port_for_members_without_udp_is_written_where_it_is_not_the_usual_one() {
    let usual = Spec::parse(&changed("mtu = 1280", "tls_port = 443")).unwrap();
    assert_eq!(usual.vpn, Spec::parse(&changed("mtu = 1280", "")).unwrap().vpn);
    assert!(!usual.to_toml().contains("tls_port"));
    let none = Spec::parse(&changed("mtu = 1280", "tls_port = 0")).unwrap();
    assert!(none.to_toml().contains("tls_port = 0"));
}

#[test]
fn a_key_like_no_known_one_is_told_what_there_is() {
    let message = refusal(&changed("[vpn]\n", "[vpn]\nxyzzyplugh = 1\n"));
    assert!(
        message.contains(
            "vpn.xyzzyplugh is not a known key: known are port, mtu, ipv6, multicast, offload, cipher, tls_port, relay_limit"
        ),
        "{message}"
    );
}

#[test]
fn a_wrong_type_is_told_with_what_it_should_be() {
    for (from, to, said) in [
        (
            "listen_port = 4101",
            "listen_port = \"4101\"",
            "overlay.listen_port must be a whole number, but is text",
        ),
        (
            "prefer_group = false",
            "prefer_group = \"no\"",
            "must be true or false, without quotes, but is text",
        ),
        (
            "name = \"chem\"",
            "name = 7",
            "grid.name must be text in quotes, but is a whole number",
        ),
        (
            "roles = [\"manager\", \"relay\"]",
            "roles = \"manager\"",
            "node.roles must be a list in square brackets",
        ),
        (
            "\"relay\"]",
            "4]",
            "must hold texts in quotes, but its entry 2 is a whole number",
        ),
        (
            "mtu = 1280",
            "mtu = 1280.5",
            "vpn.mtu must be a whole number, but is a number with a fraction",
        ),
    ] {
        let message = refusal(&changed(from, to));
        assert!(
            message.starts_with("aerie.toml, line ") && message.contains(said),
            "{message}"
        );
    }
    let message = refusal(
        &minimal()
            .replace("[node]\nroles = [\"worker\"]\n", "")
            .replace("version = 1", "version = 1\nnode = 3"),
    );
    assert!(
        message.contains("line 2: node must be a table, headed [node], but is a whole number"),
        "{message}"
    );
}

#[test]
fn a_number_out_of_range_is_told_with_the_range() {
    let message = refusal(&changed("mtu = 1280", "mtu = 100"));
    assert!(
        message.contains("vpn.mtu must be a number from 576 to 9000, but is 100"),
        "{message}"
    );
    let message = refusal(&changed("listen_port = 4101", "listen_port = 70000"));
    assert!(
        message.contains("must be a number from 0 to 65535, but is 70000"),
        "{message}"
    );
    let message = refusal(&changed(
        "listen_port = 4101",
        "listen_port = 99999999999999999999",
    ));
    assert!(message.contains("listen_port"), "{message}");
}

#[test]
fn missing_keys_are_told_all_at_once_with_an_example() {
    let message = refusal("version = 1\n[node]\n");
    for said in [
        "aerie.toml has 5 mistakes:",
        "grid.name is missing: write name = ",
        "grid.ca_hash is missing",
        "grid.range is missing: write range = \"100.96.0.0/11\" below [grid]",
        "enrol.urls is missing: write urls = [\"https://portal.example.org:8443\"] below [enrol]",
        "line 2: node.roles is missing: write roles = [\"worker\"] (or manager, submit, client, relay) below [node]",
    ] {
        assert!(message.contains(said), "{said} in {message}");
    }
}

#[test]
fn an_empty_or_unknown_role_is_told_with_the_roles() {
    let message = refusal(&changed("[\"manager\", \"relay\"]", "[]"));
    assert!(
        message.contains("line 12: node.roles is empty: write roles = [\"worker\"]"),
        "{message}"
    );
    let message = refusal(&changed("\"manager\"", "\"manger\""));
    assert!(
        message.contains("node.roles entry 1 is refused: 'manger' is not a role: use manager,"),
        "{message}"
    );
}

#[test]
fn another_version_is_told_before_all_else() {
    let text = changed("version = 1", "version = 2\nbrand_new = true");
    let error = Spec::parse(&text).unwrap_err();
    assert!(matches!(error, Error::Version { found: 2 }));
    let message = error.to_string();
    assert!(
        message.contains("has version 2, but this program reads version 1: install"),
        "{message}"
    );
}

#[test]
fn a_missing_or_textual_version_is_told() {
    let message = refusal(&changed("version = 1\n", ""));
    assert!(
        message.contains("line 1: version is missing: write version = 1 at the top of the file"),
        "{message}"
    );
    let message = refusal(&changed("version = 1\n", "version = \"1\"\n"));
    assert!(
        message.contains("version must be a whole number, but is text"),
        "{message}"
    );
}

#[test]
fn bad_base64_is_told() {
    let message = refusal(&changed("q6urq6u", "q6u*q6u"));
    assert!(
        message.contains("line 16: overlay.rendezvous_secret must be base64, but does not decode")
            && message.contains("head -c 32 /dev/urandom | base64"),
        "{message}"
    );
    let message = refusal(&changed("q6urq6urq6urq6urq6urq6urq6urq6urq6urq6urq6s=", "q6ur"));
    assert!(message.contains("must have 16 to 64 bytes"), "{message}");
}

#[test]
fn a_bad_range_is_told() {
    for (range, said) in [
        (
            "10.128.0.0",
            "it is not IPv4 CIDR notation; write for example 100.96.0.0/11",
        ),
        ("10.128.0.1/16", "bits set behind its prefix"),
        ("10.128.0.0/30", "too small"),
        ("127.0.0.0/8", "reserved"),
    ] {
        let message = refusal(&changed("10.128.0.0/16", range));
        assert!(
            message.contains("line 6: grid.range is refused") && message.contains(said),
            "{message}"
        );
    }
}

#[test]
fn parts_of_the_range_witnesses_and_an_address_are_read_and_their_mistakes_told() {
    let with = |line: &str| {
        changed(
            "range = \"10.128.0.0/16\"",
            &format!("range = \"10.128.0.0/16\"\n{line}"),
        )
    };
    let spec = Spec::parse(&with(
        "reserved = [\"10.128.0.0/24\"]\nexcluded = [\"10.128.9.0/24\"]",
    ))
    .unwrap();
    let leases = |addr: [u8; 4]| spec.grid.pool.leases(std::net::Ipv4Addr::from(addr).into());
    assert!(leases([10, 128, 0, 9]) && !leases([10, 128, 9, 9]));
    let spec = Spec::parse(&with("witnesses = [\"hub\", \"m1\", \"m2\"]")).unwrap();
    assert_eq!(spec.grid.witnesses.len(), 3);
    for (line, said) in [
        (
            "excluded = [\"10.129.0.0/24\"]",
            "line 6: grid.range is refused with its parts: virtual range '10.129.0.0/24' is not usable",
        ),
        ("reserved = [\"10.128.0.0/33\"]", "line 7: grid.reserved"),
        (
            "witnesses = [\"hub\", \"m1\"]",
            "line 7: grid.witnesses must name three to five nodes",
        ),
        (
            "witnesses = [\"hub\", \"m1\", \"m1\"]",
            "line 7: grid.witnesses must name three to five nodes",
        ),
    ] {
        let message = refusal(&with(line));
        assert!(message.contains(said), "{line}: {message}");
    }
    let spec = Spec::parse(&with("routed = { range = \"10.128.128.0/17\", block = 28 }")).unwrap();
    let pool = &spec.grid.pool;
    assert_eq!(pool.blocks(), 2048);
    assert!(pool.leases_block("10.128.128.16/28".parse().unwrap()));
    assert!(!pool.leases(std::net::Ipv4Addr::new(10, 128, 200, 1).into()));
    for (routed, said) in [
        (
            "{ range = \"10.129.0.0/17\", block = 28 }",
            "line 7: grid.routed is refused: virtual range '10.129.0.0/17' is not usable: it is not within",
        ),
        (
            "{ range = \"10.128.0.0/16\", block = 28 }",
            "line 7: grid.routed is refused: virtual range '10.128.0.0/16' is not usable: nothing of it is left",
        ),
        (
            "{ range = \"10.128.128.0/17\", block = 16 }",
            "its blocks would be larger than it is",
        ),
        (
            "{ range = \"10.128.128.0/17\", block = 31 }",
            "line 7: grid.routed.block must be a number from 8 to 30, but is 31",
        ),
        (
            "{ range = \"10.128.128.0/17\" }",
            "line 7: grid.routed.block is missing: write block = 28",
        ),
        ("{ block = 28 }", "line 7: grid.routed.range is missing"),
        (
            "{ range = \"10.128.128.0/17\", blocks = 28 }",
            "line 7: grid.routed.blocks is not a known key: did you mean 'block'?",
        ),
        (
            "\"10.128.128.0/17\"",
            "line 7: grid.routed must be a table, headed [grid.routed], but is text",
        ),
    ] {
        let message = refusal(&with(&format!("routed = {routed}")));
        assert!(message.contains(said), "{routed}: {message}");
    }
    let address = |addr: &str| changed("[node]\n", &format!("[node]\naddress = \"{addr}\"\n"));
    let spec = Spec::parse(&address("10.128.0.5")).unwrap();
    assert_eq!(
        spec.node.address,
        Some(std::net::Ipv4Addr::new(10, 128, 0, 5).into())
    );
    let message = refusal(&address("10.129.0.5"));
    assert!(
        message.contains("node.address is no address that nodes may have"),
        "{message}"
    );
}

#[test]
fn an_id_that_is_not_the_cas_is_told() {
    let message = refusal(&changed("id = \"0011", "id = \"1111"));
    assert!(
        message.contains("line 4: grid.id does not fit grid.ca_hash"),
        "{message}"
    );
    let message = refusal(&changed("ca_hash = \"0011", "ca_hash = \"11"));
    assert!(
        message.contains("grid.ca_hash must be 64 hexadecimal digits, but it has 62"),
        "{message}"
    );
}

#[test]
fn bad_addresses_are_told_with_their_place_in_the_list() {
    let message = refusal(&changed("\"https://10.0.0.1/aerie\"", "\"http://10.0.0.1\""));
    assert!(
        message.contains("enrol.urls entry 2 is refused: ") || message.contains("entry 2 is no portal"),
        "{message}"
    );
    assert!(message.contains("does not begin with https://"), "{message}");
    let message = refusal(&changed(&format!("quic-v1/p2p/{PEER}"), "quic-v1"));
    assert!(
        message.contains("overlay.bootstrap entry 1 is no bootstrap address: it does not end with /p2p/"),
        "{message}"
    );
    let message = refusal(&changed("/ip4/192.0.2.7/udp/4001/quic-v1", "/unix/socket"));
    assert!(
        message.contains("overlay.bootstrap entry 1 is no bootstrap address: "),
        "{message}"
    );
}

#[test]
fn two_sockets_on_one_port_are_told() {
    let message = refusal(&changed("port = 4343", "port = 4101"));
    assert!(
        message.contains("vpn.port is the same as overlay.listen_port (4101)"),
        "{message}"
    );
    assert!(Spec::parse(&changed("port = 4343", "port = 0")).is_ok());
}

#[test]
fn broken_toml_is_told_by_its_line_without_quoting_it() {
    let message = refusal(&changed(
        &format!("token = \"{TOKEN}\""),
        &format!("token = \"{TOKEN}"),
    ));
    assert!(
        message.contains("line 9: this is not valid TOML: ") && !message.contains(TOKEN),
        "{message}"
    );
    let message = refusal(&format!("{}[node]\n", minimal()));
    assert!(message.contains("line 11: this is not valid TOML: "), "{message}");
}

#[test]
fn no_mistake_quotes_a_secret() {
    let long = "s3cret".repeat(200);
    let message = refusal(&changed(TOKEN, &long));
    assert!(
        message.contains("enrol.token is no join token: paste the whole token"),
        "{message}"
    );
    assert!(!message.contains("s3cret"), "{message}");
    let text = changed("rendezvous_secret = \"", "rendezvous_secret = \"s3cret!");
    assert!(!refusal(&text).contains("s3cret"));
}

#[test]
fn debug_shows_no_secret() {
    let shown = format!("{:?}", Spec::parse(&full()).unwrap());
    assert!(
        shown.contains("chem") && !shown.contains(TOKEN) && !shown.contains("171, 171"),
        "{shown}"
    );
}

#[test]
fn a_spec_beyond_its_limit_is_refused_unread() {
    let text = format!("{}#{}", minimal(), "x".repeat(MAX_SPEC_BYTES));
    assert!(refusal(&text).contains("aerie.toml is larger than 65536 bytes"));
}

#[test]
fn a_list_beyond_its_limit_is_refused() {
    let many = ["\"https://p.example.org\""; 9].join(", ");
    let message = refusal(&changed("\"https://10.0.0.1/aerie\"", &many));
    assert!(
        message.contains("enrol.urls has 10 entries, and at most 8 are allowed"),
        "{message}"
    );
}

#[test]
fn a_flood_of_mistakes_is_cut() {
    let text = (0..500).fold(minimal(), |text, i| format!("{text}k{i} = 1\n"));
    assert!(refusal(&text).lines().count() < 30);
}

#[test]
fn deep_nesting_is_refused() {
    let text = format!("version = 1\nx = {}{}", "[".repeat(20_000), "]".repeat(20_000));
    assert!(Spec::parse(&text).is_err());
}

#[test]
fn a_spec_can_forget_its_token() {
    let spec = Spec::parse(&full()).unwrap().without_token();
    let text = spec.to_toml();
    assert!(!text.contains(TOKEN));
    assert_eq!(Spec::parse(&text).unwrap(), spec);
}

fn name() -> impl Strategy<Value = String> {
    "[a-z][a-z0-9]{0,15}"
}

fn addresses() -> impl Strategy<Value = Vec<BootstrapAddr>> {
    let one = (any::<[u8; 4]>(), 1_u16..).prop_map(|(ip, port)| {
        let ip = std::net::Ipv4Addr::from(ip);
        format!("/ip4/{ip}/udp/{port}/quic-v1/p2p/{PEER}")
            .parse()
            .unwrap()
    });
    prop::collection::vec(one, 0..4)
}

fn any_spec() -> impl Strategy<Value = Spec> {
    let grid = (name(), any::<[u8; 32]>(), any::<u8>());
    let node = (prop::option::of(name()), 1_u8..32, prop::option::of(name()));
    let overlay = (
        addresses(),
        prop::option::of(prop::collection::vec(any::<u8>(), 16..=64)),
        addresses(),
    );
    let numbers = (
        any::<u16>(),
        any::<u16>(),
        prop::option::of(576_u16..=9000),
        any::<bool>(),
        any::<bool>(),
        prop::option::of(prop::sample::select(vec![Cipher::Aes, Cipher::ChaCha20])),
        prop::option::of(1_u16..),
        any::<u16>(),
    );
    let rest = (prop::option::of("[!-~]{1,80}"), any::<bool>(), any::<bool>());
    let parts = (
        prop::collection::vec(0_u8..16, 0..3),
        any::<bool>(),
        any::<bool>(),
        prop::option::of(24_u8..=30),
    );
    (grid, node, overlay, numbers, rest, parts).prop_map(|(grid, node, overlay, numbers, rest, parts)| {
        let range: VirtualRange = format!("10.{}.0.0/16", grid.2).parse().unwrap();
        let part = |third: &u8| format!("10.{}.{third}.0/24", grid.2).parse().unwrap();
        let pool = AddressPool::new(range, parts.0.iter().map(part).collect(), vec![part(&200)]).unwrap();
        let pool = match parts.3 {
            Some(block) => pool.with_routed(part(&201), block).unwrap(),
            None => pool,
        };
        let witnesses = ["a", "b", "c"].map(|name| name.parse().unwrap()).to_vec();
        let vpn_port = if numbers.0 == numbers.1 { 0 } else { numbers.1 };
        Spec {
            grid: Grid {
                name: grid.0.parse().unwrap(),
                ca_hash: CaHash(grid.1),
                pool,
                witnesses: if parts.1 { witnesses } else { Vec::new() },
            },
            enrol: Enrol {
                urls: vec!["https://portal.example.org".parse().unwrap()],
                token: rest.0.map(SecretText::new),
            },
            node: Node {
                name: node.0.map(|name| name.parse().unwrap()),
                roles: Roles::from_bits(node.1).unwrap(),
                group: node.2.map(|name| name.parse().unwrap()),
                address: parts.2.then(|| range.nth(7)),
            },
            overlay: Overlay {
                bootstrap: overlay.0,
                rendezvous_secret: overlay.1.map(|bytes| RendezvousSecret::new(bytes).unwrap()),
                public_bootstrap: overlay.2,
                listen_port: numbers.0,
            },
            vpn: Vpn {
                port: vpn_port,
                mtu: numbers.2,
                ipv6: numbers.3,
                multicast: !numbers.3,
                offload: numbers.4,
                cipher: numbers.5,
                tls_port: numbers.7,
                relay_limit: numbers.6,
            },
            condor: Condor {
                prefer_group: rest.1,
                allow_election: rest.2,
            },
        }
    })
}

proptest! {
    #[test]
    fn every_spec_reads_back_from_its_text(spec in any_spec()) {
        prop_assert_eq!(Spec::parse(&spec.to_toml()).unwrap(), spec);
    }
}
