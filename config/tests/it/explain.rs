//! What `aerie config check` prints.

use aerie_config::{Bundle, Spec, explain};

use crate::common::{TOKEN, bundle, changed, full, minimal};

#[test]
fn an_explanation_says_what_the_machine_will_do_and_no_secret() {
    let bundle = bundle();
    let text = explain(&bundle.spec().unwrap(), Some(&bundle));
    for said in [
        "Grid       chem (id 00112233445566778899aabbccddeeff)",
        "Range      10.128.0.0/16, 65534 addresses",
        "Enrols at  https://portal.example.org:8443, https://10.0.0.1/aerie",
        "Token      given (not shown)",
        "Role       manager: runs the pool's collector and negotiator",
        "Group      biochem",
        "Overlay    port 4101 (TCP and UDP)",
        "Tunnel     port 4343 (UDP), MTU 1280 bytes",
        "Extra file site.crt, 3000 bytes",
    ] {
        assert!(text.contains(said), "{said} in\n{text}");
    }
    assert!(
        !text.contains(TOKEN) && !text.contains("q6ur") && !text.contains("Warning"),
        "{text}"
    );
}

#[test]
fn an_explanation_says_which_part_is_leased_in_blocks() {
    let text = changed(
        "range = \"10.128.0.0/16\"",
        "range = \"10.128.0.0/16\"\nexcluded = [\"10.128.128.8/30\"]\nrouted = { range = \"10.128.128.0/17\", block = 28 }",
    );
    let spec = Spec::parse(&text).unwrap();
    let text = explain(&spec, None);
    for said in [
        "Range      10.128.0.0/16, 32767 addresses",
        "Routed     10.128.128.0/17, 2047 prefixes of /28 for nodes that route for others",
    ] {
        assert!(text.contains(said), "{said} in\n{text}");
    }
    let json = serde_json::to_string(&spec.summary()).unwrap();
    assert!(json.contains("\"routed\":[\"10.128.128.0/17\",28]"), "{json}");
}

#[test]
fn an_explanation_warns_of_a_machine_that_would_stay_alone() {
    let spec = Spec::parse(&minimal()).unwrap().without_token();
    let text = explain(&spec, None);
    assert!(text.contains("Warning    enrol.token is not set"), "{text}");
    assert!(text.contains("Warning    overlay.bootstrap is empty"), "{text}");
}

#[test]
fn a_relay_on_any_port_is_warned_of() {
    let spec = Spec::parse(&changed("port = 4343", "port = 0")).unwrap();
    assert!(
        spec.warnings()
            .iter()
            .any(|warning| warning.contains("a relay needs ports"))
    );
}

#[test]
fn a_summary_has_no_secret() {
    let json = serde_json::to_string(&Spec::parse(&full()).unwrap().summary()).unwrap();
    assert!(
        json.contains("\"has_token\":true") && json.contains("\"roles\":[\"manager\",\"relay\"]"),
        "{json}"
    );
    assert!(!json.contains(TOKEN) && !json.contains("q6ur"), "{json}");
}

#[test]
fn a_bundle_of_a_spec_reads_back() {
    let spec = Spec::parse(&full()).unwrap();
    assert_eq!(Bundle::of_spec(&spec).spec().unwrap(), spec);
}
