use proptest::prelude::*;

use super::*;
use crate::plan::tests::{net, plan, port_id};

const OWN: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 3);

/// A network with guests 1 and 2 on a clock that the test moves.
struct World {
    guests: Guests,
    tokens: Tokens,
    now: Duration,
    made: u8,
}

fn world(change: impl FnOnce(&mut Facts)) -> World {
    let mut plan = plan();
    change(Arc::make_mut(&mut plan.ports.get_mut(&port_id(1)).unwrap().facts));
    World {
        guests: guests(&plan, &net("one")),
        tokens: Tokens::default(),
        now: Duration::ZERO,
        made: 0,
    }
}

impl World {
    fn ask(&mut self, from: Ipv4Addr, request: Request<'_>) -> (u16, String) {
        self.made = self.made.wrapping_add(1);
        let random = [self.made; TOKEN_BYTES];
        let said = answer(request, from, &self.guests, &mut self.tokens, random, self.now);
        (said.status, String::from_utf8(said.body).unwrap())
    }

    fn token(&mut self, from: Ipv4Addr, ttl: &str) -> String {
        let (status, text) = self.ask(from, put(Some(ttl)));
        assert_eq!(status, 200, "{text}");
        text
    }

    fn get(&mut self, path: &str) -> (u16, String) {
        let token = self.token(OWN, "60");
        self.ask(OWN, get(path, Some(&token)))
    }
}

fn get<'a>(path: &'a str, token: Option<&'a str>) -> Request<'a> {
    Request {
        method: "GET",
        path,
        token,
        ttl: None,
        forwarded: false,
    }
}

fn put(ttl: Option<&str>) -> Request<'_> {
    Request {
        method: "PUT",
        path: "/latest/api/token",
        token: None,
        ttl,
        forwarded: false,
    }
}

#[test]
fn a_guest_reads_itself_with_a_token() {
    let mut world = world(|_| ());
    let mac = port_id(1).mac();
    let interface = format!("/latest/meta-data/network/interfaces/macs/{mac}/local-ipv4s");
    for (path, expected) in [
        ("/latest/user-data", "hello"),
        ("/2009-04-04/user-data", "hello"),
        ("/2007-01-19/user-data", "hello"),
        (
            "/latest/meta-data/instance-id",
            "i-00000000000000000000000000000001",
        ),
        ("/latest/meta-data/local-ipv4", "10.1.0.2"),
        ("/latest/meta-data/mac", &mac.to_string()),
        ("/latest/meta-data/hostname", "node-1"),
        ("/latest/meta-data/public-keys/", "0=aerie"),
        ("/latest/meta-data/public-keys/0/", "openssh-key"),
        (
            "/latest/meta-data/public-keys/0/openssh-key",
            "ssh-ed25519 AAAA me",
        ),
        ("/latest/", "meta-data/\nuser-data"),
        ("//latest//user-data?x", "hello"),
        (&interface, "10.1.0.2"),
        ("/openstack/latest/user_data", "hello"),
    ] {
        assert_eq!(world.get(path), (200, expected.to_owned()), "{path}");
    }
    let (_, versions) = world.get("/");
    assert!(versions.ends_with("\nlatest"), "{versions}");
    let (_, names) = world.get("/latest/meta-data");
    assert!(names.contains("network/\npublic-keys/"), "{names}");
    for path in [
        "/latest/user-data/x",
        "/latest/nothing",
        "/1999/user-data",
        "/latest/../etc",
    ] {
        assert_eq!(world.get(path).0, 404, "{path}");
    }
}

#[test]
fn openstacks_clients_find_what_they_look_for() {
    let (_, text) = world(|_| ()).get("/openstack/latest/meta_data.json");
    let meta: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(meta["uuid"], port_id(1).guest.to_string());
    assert_eq!(meta["public_keys"]["aerie"], "ssh-ed25519 AAAA me");
    let (_, text) = world(|_| ()).get("/openstack/latest/network_data.json");
    let network: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(network["networks"][0]["type"], "ipv4_dhcp");
}

#[test]
fn a_token_is_needed_unless_the_guest_may_do_without() {
    let mut strict = world(|_| ());
    for path in ["/latest/user-data", "/openstack/latest/user_data", "/"] {
        assert_eq!(strict.ask(OWN, get(path, None)).0, 401, "{path}");
    }
    let mut open = world(|facts| facts.allow_v1 = true);
    assert_eq!(open.ask(OWN, get("/latest/user-data", None)).0, 200);
    assert_eq!(open.ask(OWN, get("/latest/user-data", Some("wrong"))).0, 401);
    assert_eq!(
        open.ask(OTHER, get("/latest/user-data", None)).0,
        401,
        "the other may not"
    );
}

#[test]
fn a_token_is_good_for_its_guest_and_its_time() {
    let mut world = world(|_| ());
    let token = world.token(OWN, "60");
    let data = get("/latest/user-data", Some(&token));
    assert_eq!(world.ask(OTHER, data).0, 401, "another guest's");
    world.now = Duration::from_millis(59_999);
    assert_eq!(world.ask(OWN, data).0, 200);
    world.now = Duration::from_secs(60);
    assert_eq!(world.ask(OWN, data).0, 401, "over");
}

#[test]
fn tokens_are_refused_to_proxies_and_to_who_says_no_time() {
    let mut world = world(|_| ());
    for request in [put(Some("60")), get("/latest/user-data", None)] {
        let forwarded = Request {
            forwarded: true,
            ..request
        };
        assert_eq!(world.ask(OWN, forwarded).0, 403);
    }
    for ttl in [None, Some("0"), Some("21601"), Some("-1"), Some("x"), Some("")] {
        assert_eq!(world.ask(OWN, put(ttl)).0, 400, "{ttl:?}");
    }
    let wrong = Request {
        method: "GET",
        ..put(Some("60"))
    };
    assert_eq!(world.ask(OWN, wrong).0, 405);
    let post = Request {
        method: "POST",
        ..get("/latest/user-data", None)
    };
    assert_eq!(world.ask(OWN, post).0, 405);
}

#[test]
fn the_oldest_token_goes_when_a_guest_asks_for_too_many() {
    let mut world = world(|_| ());
    let first = world.token(OWN, "60");
    let others = world.token(OTHER, "60");
    for _ in 0..MAX_TOKENS - 1 {
        world.token(OWN, "60");
    }
    assert_eq!(world.ask(OWN, get("/latest/user-data", Some(&first))).0, 200);
    world.token(OWN, "60");
    assert_eq!(world.ask(OWN, get("/latest/user-data", Some(&first))).0, 401);
    assert_eq!(world.ask(OTHER, get("/latest/user-data", Some(&others))).0, 200);
    world.guests.remove(&OTHER);
    world.token(OWN, "60");
    assert_eq!(world.tokens.0.len(), 1, "who is gone is forgotten");
}

#[test]
fn a_stranger_learns_nothing() {
    let mut world = world(|facts| facts.allow_v1 = true);
    let stranger = Ipv4Addr::new(10, 1, 0, 9);
    for request in [get("/latest/user-data", None), put(Some("60")), get("/", None)] {
        assert_eq!(world.ask(stranger, request).0, 404);
    }
}

#[test]
fn what_was_not_given_is_not_there() {
    let mut world = world(|facts| {
        facts.user_data = None;
        facts.public_keys.clear();
    });
    assert_eq!(world.get("/latest/user-data").0, 404);
    assert_eq!(world.get("/latest/meta-data/public-keys/").0, 404);
    assert_eq!(world.get("/latest/"), (200, "meta-data/".to_owned()));
}

proptest! {
    #[test]
    fn hostile_requests_do_no_harm(
        method in "[A-Z]{0,8}",
        path in any::<String>(),
        token in prop::option::of(any::<String>()),
        ttl in prop::option::of(any::<String>()),
    ) {
        let request = Request { method: &method, path: &path, token: token.as_deref(), ttl: ttl.as_deref(), forwarded: false };
        let (status, _) = world(|_| ()).ask(OWN, request);
        prop_assert!(status != 200 || (method == "PUT" && path.contains("token")));
    }
}
