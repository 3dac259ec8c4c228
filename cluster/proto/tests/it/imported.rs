//! Nimbus's cluster documents.

use aerie_cluster_proto::Severity;
use aerie_cluster_proto::description::{Document, Import, Network};

use crate::common::{BOUNDS, with};

const XML: &str = r#"<?xml version="1.0"?>
<cluster xmlns="http://www.globus.org/2008/06/workspace/metadata/logistics">
  <workspace>
    <name>head</name>
    <image>osg-ce.gz</image>
    <quantity>1</quantity>
    <nic wantlogin="true" interface="eth0">public</nic>
    <nic interface="eth1">private</nic>
    <ctx>
      <provides>
        <identity><interface>eth0</interface></identity>
        <identity><interface>eth1</interface></identity>
        <role interface="eth1">torqueserver</role>
      </provides>
      <requires>
        <identity />
        <role name="torqueclient" hostname="true" pubkey="true" />
      </requires>
    </ctx>
  </workspace>
  <workspace>
    <name>worker</name>
    <image>osg-wn.gz</image>
    <quantity>3</quantity>
    <nic interface="eth0">private</nic>
    <ctx>
      <provides>
        <identity />
        <label>torqueclient</label>
      </provides>
      <requires>
        <role name="torqueserver" hostname="true" />
        <data name="motd">hello</data>
      </requires>
    </ctx>
  </workspace>
</cluster>
"#;

fn import() -> Import {
    Import::new("star".parse().unwrap())
}

#[test]
fn a_cluster_document_becomes_a_description_with_what_it_lacks_given_along() {
    let (document, warnings) = Document::from_cluster_xml(XML, &import()).unwrap();
    assert_eq!(warnings, []);
    assert_eq!(document.check(&BOUNDS).unwrap(), []);
    let description = document.description;
    assert_eq!((description.name.as_str(), description.count()), ("star", 4));
    let head = &description.workspaces[0];
    assert_eq!(head.nics[0].network, Network::Overlay);
    assert!(head.nics[0].login);
    assert_eq!(
        head.nics[1].network,
        Network::Private {
            network: "private".parse().unwrap()
        }
    );
    assert_eq!(head.resources, import().resources);
    // And is one in every respect: it can be written as such.
    let toml = description.to_toml();
    assert_eq!(Document::from_toml(&toml).unwrap().description, description);
}

#[test]
fn a_fault_of_a_cluster_document_has_its_element_and_line() {
    let wrong = |text: &str| {
        let faults = Document::from_cluster_xml(text, &import()).unwrap_err().listed;
        faults[0].to_string()
    };
    let fault = wrong(&with(
        XML,
        "<image>osg-wn.gz</image>",
        "<image>http://x/y z</image>",
    ));
    assert!(
        fault.starts_with("line 21: <image> of the workspace 'worker' is not understood"),
        "{fault}"
    );
    let fault = wrong(&with(XML, "<quantity>3</quantity>", "<quantitty>3</quantitty>"));
    assert!(
        fault.starts_with("line 24: <quantitty> is not known within <workspace>"),
        "{fault}"
    );
    let fault = wrong(&with(
        XML,
        "<?xml version=\"1.0\"?>",
        "<!DOCTYPE x [<!ENTITY a \"b\">]>",
    ));
    assert!(fault.contains("document type"), "{fault}");
    let fault = wrong(&with(XML, "hello", "&lol;"));
    assert!(
        fault.starts_with("line 33") && fault.contains("names an entity"),
        "{fault}"
    );
}

#[test]
fn what_a_check_finds_in_a_cluster_document_has_the_line_of_its_workspace() {
    let text = with(XML, "<quantity>3</quantity>", "<quantity>0</quantity>");
    let (document, _) = Document::from_cluster_xml(&text, &import()).unwrap();
    let faults = document.check(&BOUNDS).unwrap_err().listed;
    let shown: Vec<_> = faults.iter().map(ToString::to_string).collect();
    assert!(
        shown
            .iter()
            .any(|fault| fault.starts_with("line 21: workspace[1].count is 0")),
        "{shown:#?}"
    );
}

#[test]
fn what_has_no_counterpart_is_a_warning() {
    let deploy =
        "</ctx>\n    <deploy><cloud>x</cloud><quantity>1</quantity></deploy>\n  </workspace>\n</cluster>";
    let text = with(XML, "</ctx>\n  </workspace>\n</cluster>", deploy);
    let (_, warnings) = Document::from_cluster_xml(&text, &import()).unwrap();
    assert_eq!(warnings.len(), 1);
    assert_eq!(warnings[0].severity, Severity::Warning);
    assert!(
        warnings[0]
            .to_string()
            .contains("<deploy> of the workspace 'worker'"),
        "{}",
        warnings[0]
    );
}
