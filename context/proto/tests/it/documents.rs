//! The documents: what is read, what is written, and what is said of one that is wrong.

use aerie_context_proto::{Cluster, Contact, ContextId, Fingerprint, Secret, UserData, xml};

use crate::common::NFS;

/// The paper's section 4.2: a head node with two interfaces, and workers.
const STAR: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<!-- a batch cluster -->
<cluster>
  <workspace>
    <active>true</active>
    <name>head</name>
    <image>osg-head.gz</image>
    <nic interface="eth0" wantlogin="true">public</nic>
    <nic interface="eth1">private</nic>
    <ctx>
      <provides>
        <identity><interface>eth0</interface></identity>
        <identity><interface>eth1</interface></identity>
        <role interface="eth1">
          torqueserver</role>
        <role interface="eth1">nfsserver</role>
      </provides>
      <requires>
        <identity />
        <role name="torqueclient" hostname="true" pubkey="true" />
        <role name="nfsclient" />
        <data name="motd"><![CDATA[1 < 2 & so on]]></data>
      </requires>
    </ctx>
    <deploy><cloud>uchicago</cloud><quantity>1</quantity></deploy>
  </workspace>
  <workspace>
    <name>worker</name>
    <image>osg-wn.gz</image>
    <quantity>100</quantity>
    <nic>private</nic>
    <ctx>
      <provides><identity /><role>torqueclient</role><role>nfsclient</role></provides>
      <requires>
        <identity />
        <role name="torqueserver" hostname="true" pubkey="true" />
        <role name="nfsserver" />
      </requires>
    </ctx>
  </workspace>
</cluster>
"#;

fn star() -> Cluster {
    xml::read_cluster(STAR).unwrap()
}

#[test]
fn the_papers_star_cluster_is_understood() {
    let cluster = star();
    cluster.check(false).unwrap();
    let head = &cluster.workspaces[0];
    assert!(head.active && head.quantity == 1 && head.nics[0].wantlogin);
    assert_eq!(head.provides.roles[0].name.as_str(), "torqueserver");
    assert_eq!(
        head.provides.roles[0].interface.as_ref().unwrap().as_str(),
        "eth1"
    );
    assert!(head.requires.identity && head.requires.roles[0].pubkey && !head.requires.roles[1].pubkey);
    assert_eq!(head.requires.data[0].content.as_deref(), Some("1 < 2 & so on"));
    assert_eq!(cluster.workspaces[1].quantity, 100);
}

#[test]
fn both_forms_say_the_same() {
    for text in [NFS, STAR] {
        let cluster = xml::read_cluster(text).unwrap();
        assert_eq!(xml::read_cluster(&xml::write_cluster(&cluster)).unwrap(), cluster);
        let json = serde_json::to_string(&cluster).unwrap();
        assert_eq!(Cluster::from_json(&json).unwrap(), cluster);
    }
}

#[test]
fn user_data_carries_the_contact_and_shows_its_secret_to_nobody() {
    let data = UserData {
        contact: Contact {
            broker_url: "https://192.0.2.1:8446".to_owned(),
            context: ContextId([3; 16]),
            fingerprint: Fingerprint([4; 32]),
            certificate: vec![1, 2, 3],
            secret: Secret::new(b"very secret".to_vec()),
        },
        member: Some("head".parse().unwrap()),
        cluster: star(),
    };
    let text = xml::write_user_data(&data);
    assert!(text.starts_with("<nimbusctx>\n  <contact>\n    <brokerURL>https://192.0.2.1:8446</brokerURL>"));
    assert_eq!(xml::read_user_data(&text).unwrap(), data);
    assert_eq!(data.active().unwrap().name.as_str(), "head");
    let json = serde_json::to_string(&data).unwrap();
    assert_eq!(serde_json::from_str::<UserData>(&json).unwrap(), data);
    let shown = format!("{data:?}");
    assert!(shown.contains("Secret(redacted)") && !shown.contains("very secret"));
    let broken = text.replace("<secret>", "<secret>!");
    let error = xml::read_user_data(&broken).unwrap_err().to_string();
    assert_eq!(
        error,
        "line 7: <secret> is not usable: base64 of at most 8192 bytes is expected"
    );
    let plain = text.replace("https://", "http://");
    let error = xml::read_user_data(&plain).unwrap_err().to_string();
    assert!(
        error.starts_with("line 3: <brokerURL> is not usable: a broker's URL is https://"),
        "{error}"
    );
}

#[test]
fn an_error_names_the_element_and_its_line() {
    let cases = [
        (
            "<name>server</name>",
            "<name>a b</name>",
            "line 3: <name> is not usable: 'a b' is not the name of a workspace",
        ),
        (
            "<quantity>2</quantity>",
            "<quantity>two</quantity>",
            "line 20: <quantity> is not usable: invalid digit",
        ),
        (
            "<role name=\"nfsserver\" />",
            "<role nane=\"x\"/>",
            "line 28: <role> has an attribute 'nane'; known are: name, hostname, pubkey",
        ),
        (
            "<role name=\"nfsserver\" />",
            "<rolle name=\"x\"/>",
            "line 28: <rolle> is not known within <requires>; known are: identity, role, data",
        ),
        (
            "<role name=\"nfsserver\" />",
            "<role/>",
            "line 28: <role> lacks name=",
        ),
        (
            "<quantity>1</quantity>",
            "<quantity>1</quantity><quantity>1</quantity>",
            "line 5: <quantity> stands twice within <workspace>",
        ),
        (
            "<image>nfs.gz</image>\n    <quantity>1",
            "<image>nfs.gz</imag>\n    <quantity>1",
            "line 4: the document is not well-formed XML",
        ),
        (
            "<label>nfsserver</label>",
            "<data name=\"x\">y</data>",
            "line 10: <data> has a content; the member itself reports that",
        ),
        (
            "wantlogin=\"true\"",
            "wantlogin=\"maybe\"",
            "line 6: <nic> has wantlogin= neither 'true' nor 'false'",
        ),
    ];
    for (from, to, expected) in cases {
        let text = NFS.replacen(from, to, 1);
        assert_ne!(text, NFS, "{from}");
        let error = xml::read_cluster(&text).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}\n  instead of\n{expected}");
    }
    let cases = [
        (
            "<name>client</name>",
            "<name>server</name>",
            "line 17: workspace 'server' has the required role",
        ),
        (
            "<role>nfsclient</role>",
            "<role interface=\"eth1\">nfsclient</role>",
            "line 17: workspace 'client' provides the role 'nfsclient' by eth1 without",
        ),
        (
            "<quantity>2</quantity>",
            "<quantity>5000</quantity>",
            "there are too many members in the cluster; 4096 are allowed",
        ),
    ];
    for (from, to, expected) in &cases[1..] {
        let text = NFS.replacen(from, to, 1);
        let error = xml::read_cluster(&text)
            .unwrap()
            .check(false)
            .unwrap_err()
            .to_string();
        assert!(error.starts_with(expected), "{error}\n  instead of\n{expected}");
    }
    let doubled = NFS
        .replacen("<name>client</name>", "<name>server</name>", 1)
        .replacen("<quantity>2</quantity>", "<quantity>1</quantity>", 1);
    let error = xml::read_cluster(&doubled)
        .unwrap()
        .check(false)
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "line 17: workspace 'server' would name a second member 'server'; choose another name"
    );
    let error = Cluster::from_json("{\n \"workspaces\": [{\"nane\": 1}]}")
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("line 2: the document is not understood: unknown field `nane`"),
        "{error}"
    );
}

#[test]
fn nothing_expands() {
    let laughs = "<!DOCTYPE l [<!ENTITY a \"ha\"><!ENTITY b \"&a;&a;&a;&a;\">]><cluster>&b;</cluster>";
    let error = xml::read_cluster(laughs).unwrap_err().to_string();
    assert_eq!(
        error,
        "line 1: the document has a document type, which is not accepted; remove it"
    );
    for text in [
        "<cluster>\n&b;</cluster>",
        "<cluster><workspace><name>&ext;</name></workspace></cluster>",
    ] {
        let error = xml::read_cluster(text).unwrap_err().to_string();
        assert!(error.contains("names an entity; only &lt;"), "{error}");
    }
    let error = xml::read_cluster("<cluster a=\"&b;\"/>").unwrap_err().to_string();
    assert!(error.contains("damaged attribute"), "{error}");
    let text = "<cluster><workspace><image>&lt;&#65;&amp;</image></workspace></cluster>";
    assert_eq!(xml::read_cluster(text).unwrap().workspaces[0].image, "<A&");
}

#[test]
fn depth_and_number_of_elements_are_bounded() {
    let deep = "<cluster>".repeat(1000);
    assert!(
        xml::read_cluster(&deep)
            .unwrap_err()
            .to_string()
            .contains("too many levels")
    );
    let wide = format!("<cluster>{}</cluster>", "<w/>".repeat(30_000));
    assert!(
        xml::read_cluster(&wide)
            .unwrap_err()
            .to_string()
            .contains("too many elements")
    );
    let long = format!("<cluster>{}</cluster>", " ".repeat(2_000_000));
    assert!(
        xml::read_cluster(&long)
            .unwrap_err()
            .to_string()
            .contains("too many bytes")
    );
    assert!(Cluster::from_json(&"[".repeat(100_000)).is_err());
}
