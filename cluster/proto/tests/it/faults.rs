//! Documents with something wrong: each fault is named with its element and place.

use aerie_cluster_proto::Severity;
use aerie_cluster_proto::amount::Lifetime;
use aerie_cluster_proto::description::{Bounds, Document};

use crate::common::{BATCH, BOUNDS, NFS, faults, with};

/// The only fault of a document, which has to begin with this place and hold these words.
#[track_caller]
fn one(text: &str, begins: &str, words: &str) {
    let faults = faults(text);
    assert_eq!(faults.len(), 1, "{faults:#?}");
    assert!(
        faults[0].starts_with(begins) && faults[0].contains(words),
        "{}",
        faults[0]
    );
}

#[test]
fn a_misspelt_key_is_named_with_the_one_that_was_meant() {
    let text = with(BATCH, "all_or_none", "all_or_non");
    one(
        &text,
        "line 7, column 1: all_or_non ",
        "did you mean 'all_or_none'?",
    );
    let text = with(
        BATCH,
        "mac = \"52:54:00:00:02:0a\"",
        "macc = \"52:54:00:00:02:0a\"",
    );
    one(
        &text,
        "line 20, column 1: workspace[0].nic[0].macc ",
        "did you mean 'mac'?",
    );
    let text = with(BATCH, "size = \"2 GiB\"", "size = \"2 GiB\"\nzzzzzz = 1");
    one(
        &text,
        "line 38, column 1: workspace[0].partition[1].zzzzzz ",
        "known here are: name, size",
    );
}

#[test]
fn sets_that_make_the_same_member_are_named_with_their_place() {
    let set = |name: &str, count: u32| {
        format!(
            "[[workspace]]\nname = \"{name}\"\ncount = {count}\nimage = \"debian\"\nresources = {{ cpus = 1, memory = \"1 \
             GiB\", disk = \"1 GiB\" }}\nnic = [{{ kind = \"overlay\" }}]\n"
        )
    };
    let document = |one: String, other: String| format!("version = 1\nname = \"x\"\n{one}{other}");
    one(
        &document(set("web", 2), set("web-1", 1)),
        "line 10, column 8: workspace[1].name ",
        "would name a second member 'web-1', which the set 'web' has;",
    );
    one(
        &document(set("web-2", 1), set("web", 2)),
        "line 10, column 8: workspace[1].name ",
        "would name a second member 'web-2', which the set 'web-2' has;",
    );
    for (first, second) in [(set("web", 1), set("web-1", 1)), (set("web", 2), set("web-3", 1))] {
        assert_eq!(faults(&document(first, second)), Vec::<String>::new());
    }
}

#[test]
fn every_fault_is_told_and_not_the_first_alone() {
    let text = with(BATCH, "count = 8", "count = 0");
    let text = with(&text, "\"1 GiB..16 GiB\"", "\"16 GiB..1 GiB\"");
    let text = with(&text, "lifetime = \"2days\"", "lifetime = \"2years\"");
    let text = with(
        &text,
        "roles = [\"torqueclient\", \"nfsclient\"]",
        "roles = [\"nfsclient\"]",
    );
    let faults = faults(&text);
    assert_eq!(faults.len(), 6, "{faults:#?}");
    assert!(faults[5].contains("warning"), "errors come first: {faults:#?}");
    for words in [
        "line 8, column 12: lifetime is 2years; the grid allows 7days",
        "line 53, column 9: workspace[1].count is 0",
        "workspace[1].resources.memory is an empty range: 16 GiB at least is more than 1 GiB at most",
        "line 49, column 10: workspace[0].requires.roles[0] requires the role 'torqueclient', which no workspace provides",
        "requires the role 'nfsclient', which no workspace provides",
    ] {
        assert!(
            faults.iter().any(|fault| fault.contains(words)),
            "{words}: {faults:#?}"
        );
    }
}

#[test]
fn reading_goes_on_after_a_fault_too() {
    let text = with(NFS, "name = \"server\"", "name = \"-server-\"");
    let text = with(&text, "count = 2", "count = -2");
    let text = with(&text, "size = \"20 GiB\"", "size = 20");
    let text = with(&text, "login = true", "login = \"true\"");
    let faults = faults(&text);
    assert_eq!(faults.len(), 4, "{faults:#?}");
    assert!(
        faults[0].contains("'-server-' is not the name of a workspace"),
        "{}",
        faults[0]
    );
    assert!(
        faults[1].contains("workspace[0].nic[0].login must be true or false"),
        "{}",
        faults[1]
    );
    assert!(
        faults[2].contains("workspace[0].partition[0].size must be text in quotes, but is a whole number")
    );
    assert!(
        faults[3].contains("workspace[1].count is -2; write a number from 0"),
        "{}",
        faults[3]
    );
}

#[test]
fn a_version_that_is_not_known_is_said() {
    one(
        &with(NFS, "version = 1", "version = 2"),
        "line 3, column 11: version ",
        "is 2, and this program reads",
    );
    one(
        &with(NFS, "version = 1\n", ""),
        "line 1, column 1: the document ",
        "lacks 'version'",
    );
}

#[test]
fn ranges_are_sensible_and_within_limits() {
    let resources = "resources = { cpus = 1, memory = \"1 GiB..2 GiB\", disk = \"4 GiB\" }";
    for (changed, words) in [
        (
            "cpus = 0, memory = \"1 GiB\", disk = \"4 GiB\"",
            "cpus is 0 CPUs at least",
        ),
        (
            "cpus = \"4..2\", memory = \"1 GiB\", disk = \"4 GiB\"",
            "4 CPUs at least is more than 2 CPUs at most",
        ),
        (
            "cpus = 1, memory = \"1 GiB\", disk = \"2 PiB\"",
            "disk is up to 2 PiB; 1 PiB are allowed",
        ),
        (
            "cpus = 9999, memory = \"1 GiB\", disk = \"2 GiB\"",
            "cpus is up to 9999 CPUs; 1024 CPUs are allowed",
        ),
        (
            "cpus = 1, memory = \"1 gig\", disk = \"2 GiB\"",
            "write a number with a unit",
        ),
        ("cpus = 1, memory = \"1 GiB\"", "lacks 'disk'"),
    ] {
        one(
            &with(NFS, resources, &format!("resources = {{ {changed} }}")),
            "line 10, column ",
            words,
        );
    }
}

#[test]
fn names_stand_once() {
    one(
        &with(NFS, "name = \"client\"", "name = \"server\""),
        "line 31, column 8: workspace[1].name ",
        "'server'",
    );
    let text = with(
        BATCH,
        "interface = \"eth1\"\naddress",
        "interface = \"eth0\"\naddress",
    );
    assert!(
        faults(&text)
            .iter()
            .any(|fault| fault.contains("is a second interface 'eth0'"))
    );
    let text = with(BATCH, "name = \"swap\"", "name = \"home\"");
    one(
        &text,
        "line 36, column 8: workspace[0].partition[1].name ",
        "is a second partition 'home'",
    );
    let text = with(
        BATCH,
        "\"torqueclient\", \"nfsclient\"",
        "\"torqueclient\", \"nfsclient\", \"nfsclient\"",
    );
    one(&text, "line 64, ", "is a second provided role 'nfsclient'");
}

#[test]
fn members_of_different_sets_have_different_names() {
    let text = with(NFS, "name = \"server\"", "name = \"client-1\"");
    let faults = faults(&text);
    assert!(
        faults[0].contains("would name a second member 'client-1'"),
        "{faults:?}"
    );
}

#[test]
fn a_fixed_address_is_of_one_machine() {
    let text = with(
        BATCH,
        "network = \"cluster\"\ninterface = \"eth0\"",
        "network = \"cluster\"\naddress = \"10.0.0.1\"\ninterface = \"eth0\"",
    );
    let faults = faults(&text);
    assert_eq!(faults.len(), 2, "{faults:#?}");
    assert!(
        faults[0].contains("fixed for 8 workspaces at once")
            || faults[1].contains("fixed for 8 workspaces at once")
    );
    let alike = "is 10.0.0.1, which 'head' has on the private network 'cluster' already";
    assert!(faults.iter().any(|fault| fault.contains(alike)), "{faults:#?}");
    one(
        &with(BATCH, "192.0.2.10", "255.255.255.255"),
        "line 19, ",
        "which no machine can have",
    );
    one(
        &with(BATCH, "192.0.2.10", "192.0.2.300"),
        "line 19, ",
        "is not understood",
    );
    one(
        &with(BATCH, "52:54:00:00:02:0a", "53:54:00:00:02:0a"),
        "line 20, ",
        "of a group",
    );
}

#[test]
fn a_role_is_played_by_an_interface_that_is_there() {
    let text = with(
        BATCH,
        "identities = [\"eth0\", \"eth1\"]",
        "identities = [\"eth0\"]",
    );
    let faults = faults(&text);
    assert_eq!(faults.len(), 2, "{faults:#?}");
    assert!(
        faults[0].contains("add \"eth1\" to 'identities'"),
        "{}",
        faults[0]
    );
    let text = with(
        BATCH,
        "identities = [\"eth0\", \"eth1\"]",
        "identities = [\"eth0\", \"eth1\", \"eth2\"]",
    );
    one(
        &text,
        "line 41, ",
        "the interface 'eth2', which none of the workspace's NICs has",
    );
}

#[test]
fn a_private_network_with_one_machine_is_a_warning() {
    let text = with(
        BATCH,
        "[[workspace.nic]]\nkind = \"private\"\nnetwork = \"cluster\"\ninterface = \"eth0\"",
        "[[workspace.nic]]\nkind = \"private\"\nnetwork = \"clutser\"\ninterface = \"eth0\"",
    );
    let warnings = Document::from_toml(&text).unwrap().check(&BOUNDS).unwrap();
    assert_eq!(warnings.len(), 1, "eight workers are on the other: {warnings:?}");
    assert_eq!(warnings[0].severity, Severity::Warning);
    let shown = warnings[0].to_string();
    assert!(
        shown.starts_with("line 25, column 11: warning: workspace[0].nic[1].network "),
        "{shown}"
    );
    assert!(shown.contains("'cluster' with nobody else"), "{shown}");
}

#[test]
fn a_kind_of_interface_has_its_own_keys() {
    let superfluous = with(
        BATCH,
        "bridge = \"lab0\"",
        "bridge = \"lab0\"\nnetwork = \"lab0\"",
    );
    one(
        &superfluous,
        "line 18, column 11: workspace[0].nic[0].network ",
        "belongs to the kind \"private\" alone",
    );
    one(&with(BATCH, "bridge = \"lab0\"\n", ""), "line ", "lacks 'bridge'");
    one(
        &with(BATCH, "kind = \"bridge\"", "kind = \"bridged\""),
        "line 16, column 8",
        "write \"overlay\", \"private\"",
    );
}

#[test]
fn a_life_time_is_bounded_and_either_named_or_the_grids() {
    one(
        &with(NFS, "\"12h\"", "\"0s\""),
        "line 5, column 12: lifetime is zero",
        "such as",
    );
    one(
        &with(NFS, "\"12h\"", "\"8days\""),
        "line 5, column 12: lifetime ",
        "the grid allows 7days",
    );
    let text = with(NFS, "lifetime = \"12h\"\n", "");
    assert_eq!(faults(&text), Vec::<String>::new());
    let strict = Bounds {
        default_lifetime: None,
        max_lifetime: Lifetime::secs(60),
    };
    let message = Document::from_toml(&text)
        .unwrap()
        .check(&strict)
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("names no lifetime, and the grid has no default"),
        "{message}"
    );
}

#[test]
fn partitions_have_a_size_and_are_mounted_if_they_can_be() {
    one(
        &with(BATCH, "size = \"2 GiB\"", "size = \"0 B\""),
        "line 37, ",
        "is 0 B",
    );
    let text = with(
        BATCH,
        "filesystem = \"swap\"",
        "filesystem = \"swap\"\nmount = \"/swap\"",
    );
    one(&text, "line 39, ", "of a partition without a file system");
    one(
        &with(BATCH, "mount = \"/home\"", "mount = \"/home/../etc\""),
        "line 33, ",
        "is not a mount point",
    );
    one(
        &with(BATCH, "size = \"100 GiB\"", "size = \"1 PiB\""),
        "line ",
        "together with the disk",
    );
}

#[test]
fn data_is_provided_or_brought_along_and_is_text() {
    one(
        &with(BATCH, ", content = \"$logevent 255\\n\" ", ""),
        "line 69, ",
        "requires the data 'torque.conf'",
    );
    one(
        &with(BATCH, "255\\n", "255\\u0000"),
        "line 69, ",
        "has control characters",
    );
    let long = format!("{}\\n", "x".repeat(65 * 1024));
    one(
        &with(BATCH, "$logevent 255\\n", &long),
        "line 69, ",
        "65536 are allowed",
    );
}

#[test]
fn there_is_something_to_run_and_not_too_much_of_it() {
    one("version = 1\nname = \"x\"\n", "the document ", "has no workspace");
    let faults = faults(&with(NFS, "count = 2", "count = 4294967295"));
    assert!(
        faults.iter().any(|fault| fault.contains("4096 are allowed")),
        "{faults:?}"
    );
    let faults = self::faults(&with(NFS, "count = 2", "count = 4096"));
    assert!(
        faults[0].contains("has 4097 members in all its sets"),
        "{faults:?}"
    );
}

#[test]
fn json_has_places_too() {
    let text =
        "{\n  \"version\": 1,\n  \"name\": \"x\",\n  \"workspace\": [{\"nam\": \"w\", \"count\": \"2\"}]\n}";
    let faults = Document::from_json(text).unwrap_err().listed;
    let shown: Vec<_> = faults.iter().map(ToString::to_string).collect();
    assert!(
        shown.iter().any(|fault| fault
            .starts_with("line 4, column 25: workspace[0].nam is not known; did you mean 'name'?")),
        "{shown:#?}"
    );
    assert!(
        shown
            .iter()
            .any(|fault| fault.starts_with("line 4, column 39: workspace[0].count must be a whole number")),
        "{shown:#?}"
    );
    let message = Document::from_json("{\"version\": 1,\n \"name\": }")
        .unwrap_err()
        .to_string();
    assert!(message.contains("line 2, column 10"), "{message}");
}
