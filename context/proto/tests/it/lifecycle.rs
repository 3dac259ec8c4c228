//! From the first report to the last, with everything that is refused on the way.

use std::time::Duration;

use aerie_context_proto::{Command, Context, Phase, Refusal, Registration, Settings, Verdict, xml};

use crate::common::{Kept, NFS, at, host_key, instance, name, provided};

#[test]
fn the_papers_nfs_cluster_is_filled_in_as_the_paper_shows() {
    let mut kept = Kept::nfs();
    assert_eq!(
        kept.register("server", "10.0.0.1", 1, 1).unwrap().as_str(),
        "server"
    );
    assert_eq!(
        kept.register("client", "10.0.0.2", 2, 2).unwrap().as_str(),
        "client-1"
    );
    assert_eq!(kept.view("server", 1, 0), None, "nobody is told half of it");
    assert_eq!(
        kept.register("client", "10.0.0.3", 3, 3).unwrap().as_str(),
        "client-2"
    );
    assert_eq!(kept.players("client-1", 2, "nfsserver"), ["10.0.0.1"]);
    assert_eq!(kept.players("client-2", 3, "nfsserver"), ["10.0.0.1"]);
    assert_eq!(kept.players("server", 1, "nfsclient"), ["10.0.0.2", "10.0.0.3"]);
    let view = kept.view("server", 1, 0).unwrap();
    assert_eq!(
        xml::write_view(&view),
        "<requires version=\"1\" member=\"server\">\n  <role name=\"nfsclient\">10.0.0.2</role>\n  \
         <role name=\"nfsclient\">10.0.0.3</role>\n</requires>\n"
    );
    for (member, proof) in [("server", 1), ("client-1", 2), ("client-2", 3)] {
        assert_eq!(kept.exit(member, proof, 1, 1, true, 5), Ok(Verdict::Accepted));
    }
    let status = kept.context.status(at(6));
    assert!(
        status.complete && status.all_ok && !status.error_present,
        "{status:?}"
    );
    assert_eq!((status.total_nodes, status.registered, status.ok), (3, 3, 3));
    kept.restart();
}

#[test]
fn the_status_says_who_waits_for_what() {
    let mut kept = Kept::nfs();
    kept.register("client", "10.0.0.2", 2, 2).unwrap();
    assert_eq!(
        kept.waits(40),
        [
            "server has not reported for 40 s; it has 860 s left",
            "client-1 waits for role nfsserver: provided by nobody yet",
            "client-2 has not reported for 40 s; it has 860 s left",
        ]
    );
    kept.register("server", "10.0.0.1", 1, 41).unwrap();
    assert_eq!(
        kept.waits(42),
        [
            "server waits for role nfsclient: provided by 1 of 2 yet",
            "client-2 has not reported for 42 s; it has 858 s left",
        ]
    );
}

#[test]
fn a_role_that_nobody_can_provide_is_named_at_creation_with_its_line() {
    let text = NFS.replace("<label>nfsserver</label>", "");
    let cluster = xml::read_cluster(&text).unwrap();
    let Err(refusal) = Kept::create(cluster.clone(), Settings::default(), false) else {
        panic!("created");
    };
    assert_eq!(
        refusal.to_string(),
        "line 28: workspace 'client' requires the role 'nfsserver', which no workspace provides; add it to the \
         <provides> of one, or create the context open and add the provider before closing it"
    );
    let mut open = Kept::create(cluster, Settings::default(), true).unwrap();
    open.register("server", "10.0.0.1", 1, 1).unwrap();
    open.register("client", "10.0.0.2", 2, 1).unwrap();
    assert!(
        open.waits(2)
            .contains(&"client-1 waits for role nfsserver: no workspace provides it".to_owned())
    );
    let refusal = open.ask(Command::Close, at(3)).unwrap_err();
    assert!(matches!(refusal, Refusal::Document(_)), "{refusal}");
}

#[test]
fn an_open_context_publishes_nothing_and_a_closed_one_takes_no_data() {
    let text = NFS.replace(
        "<role name=\"nfsserver\" />",
        "<role name=\"nfsserver\" /><data name=\"munge\" />",
    );
    let mut kept = Kept::create(xml::read_cluster(&text).unwrap(), Settings::default(), true).unwrap();
    kept.register("server", "10.0.0.1", 1, 1).unwrap();
    kept.register("client", "10.0.0.2", 2, 1).unwrap();
    kept.register("client", "10.0.0.3", 3, 1).unwrap();
    assert_eq!(kept.view("server", 1, 0), None);
    let refusal = kept.ask(Command::Close, at(2)).unwrap_err();
    assert!(
        refusal.to_string().contains("requires the data 'munge'"),
        "{refusal}"
    );
    let inject = |content: &str| Command::Inject {
        name: "munge".parse().unwrap(),
        content: content.to_owned(),
    };
    kept.ask(inject("wrong"), at(3)).unwrap();
    kept.ask(inject("key"), at(3)).unwrap();
    kept.ask(Command::Close, at(4)).unwrap();
    kept.ask(Command::Close, at(4)).unwrap();
    let view = kept.view("client-1", 2, 0).unwrap();
    assert_eq!(view.data[&"munge".parse().unwrap()][0].content, "key");
    assert_eq!(
        kept.ask(inject("key"), at(5)),
        Ok(aerie_context_proto::Answer::Done)
    );
    assert_eq!(kept.ask(inject("other"), at(5)), Err(Refusal::Closed));
    kept.restart();
}

#[test]
fn a_member_that_reports_twice_is_the_same_member_if_it_says_the_same() {
    let mut kept = Kept::nfs();
    kept.register("client", "10.0.0.2", 2, 1).unwrap();
    let records = kept.journal.len();
    assert_eq!(
        kept.register("client", "10.0.0.2", 2, 9).unwrap().as_str(),
        "client-1"
    );
    assert_eq!(kept.journal.len(), records, "nothing to write down");
    let refusal = kept.register("client", "10.0.0.9", 2, 9).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "'client-1' has reported other identities before; remove the member and expect a new one if the machine was \
         replaced"
    );
    let refusal = kept.register("server", "10.0.0.2", 2, 9).unwrap_err();
    assert_eq!(refusal, Refusal::AlreadyMember(name("client-1")));
}

#[test]
fn nobody_reports_for_another() {
    let mut kept = Kept::nfs();
    kept.register("client", "10.0.0.2", 2, 1).unwrap();
    let as_first = |set: &str, ip: &str| {
        Command::Register(Registration {
            member: Some(name("client-1")),
            set: set.parse().unwrap(),
            instance: instance(9),
            provided: provided(ip),
        })
    };
    let yours = Err(Refusal::NotYours(name("client-1")));
    assert_eq!(kept.ask(as_first("client", "10.0.0.9"), at(2)), yours);
    assert_eq!(kept.ask(as_first("server", "10.0.0.9"), at(2)), yours);
    let refusal = kept.register("client", "10.0.0.2", 9, 2).unwrap_err();
    assert!(
        matches!(&refusal, Refusal::IdentityTaken { by, .. } if by.as_str() == "client-1"),
        "{refusal}"
    );
    kept.register("client", "10.0.0.3", 3, 3).unwrap();
    kept.register("server", "10.0.0.1", 1, 3).unwrap();
    assert_eq!(
        kept.exit("client-1", 3, 1, 1, true, 4),
        Err(Refusal::NotYours(name("client-1")))
    );
    let retrieved = kept.context.retrieve(&name("client-1"), instance(3), 0);
    assert_eq!(retrieved, Err(Refusal::NotYours(name("client-1"))));
    let leave = Command::Leave {
        member: name("client-1"),
        instance: instance(3),
    };
    assert_eq!(kept.ask(leave, at(5)), Err(Refusal::NotYours(name("client-1"))));
    let refusal = kept.register("client", "10.0.0.4", 4, 5).unwrap_err();
    assert!(
        matches!(refusal, Refusal::NoPlace { quantity: 2, .. }),
        "{refusal}"
    );
}

#[test]
fn what_another_set_requires_of_a_member_has_to_be_reported() {
    let text = NFS.replace(
        "<role name=\"nfsclient\" />",
        "<role name=\"nfsclient\" pubkey=\"true\" hostname=\"1\" />",
    );
    let mut kept = Kept::create(xml::read_cluster(&text).unwrap(), Settings::default(), false).unwrap();
    let refusal = kept.register("client", "10.0.0.2", 2, 1).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "'client' has to report its host name, because 'server' requires it; the machine has none"
    );
    let mut whole = provided("10.0.0.2");
    whole.identities[0].hostname = Some("c1.lab".parse().unwrap());
    let register = |provided| {
        Command::Register(Registration {
            member: None,
            set: "client".parse().unwrap(),
            instance: instance(2),
            provided,
        })
    };
    let refusal = kept.ask(register(whole.clone()), at(1)).unwrap_err();
    assert!(refusal.to_string().contains("its SSH host key"), "{refusal}");
    whole.identities[0].pubkey = Some(host_key());
    kept.ask(register(whole), at(1)).unwrap();
    kept.register("server", "10.0.0.1", 1, 1).unwrap();
}

#[test]
fn a_failed_attempt_is_tried_again_until_none_is_left() {
    let mut kept = Kept::nfs();
    kept.register("server", "10.0.0.1", 1, 1).unwrap();
    kept.register("client", "10.0.0.2", 2, 1).unwrap();
    kept.register("client", "10.0.0.3", 3, 1).unwrap();
    let retry = Verdict::Retry {
        after: Duration::from_secs(5),
    };
    assert_eq!(kept.exit("server", 1, 1, 1, false, 2), Ok(retry));
    assert_eq!(
        kept.exit("server", 1, 1, 1, false, 2),
        Ok(retry),
        "the answer was lost"
    );
    let refusal = kept.exit("server", 1, 1, 1, true, 2).unwrap_err();
    assert!(matches!(refusal, Refusal::Differs { .. }), "{refusal}");
    assert_eq!(kept.exit("server", 1, 1, 2, false, 3), Ok(retry));
    assert_eq!(
        kept.exit("server", 1, 1, 1, false, 3),
        Ok(Verdict::Superseded),
        "an old one that the network kept"
    );
    assert_eq!(kept.exit("server", 1, 1, 3, false, 4), Ok(Verdict::GivenUp));
    let status = kept.context.status(at(5));
    assert!(status.complete && !status.all_ok && status.error_present);
    assert_eq!(status.members[0].phase, Phase::Failed);
    assert_eq!(
        status.members[0].reason,
        "failed at attempt 3: 3-data/nfsserver ended with code 1"
    );
    assert_eq!(
        kept.exit("server", 1, 2, 1, true, 5),
        Err(Refusal::UnknownVersion {
            member: name("server"),
            version: 2
        })
    );
}

#[test]
fn at_the_deadline_the_missing_fail_and_the_others_go_on() {
    let mut kept = Kept::nfs();
    kept.register("server", "10.0.0.1", 1, 1).unwrap();
    kept.register("client", "10.0.0.2", 2, 1).unwrap();
    assert_eq!(kept.context.next_deadline(), Some(at(900)));
    kept.ask(Command::Tick, at(899)).unwrap();
    assert_eq!(kept.context.version(), 0);
    kept.restart();
    kept.ask(Command::Tick, at(900)).unwrap();
    assert_eq!(kept.players("server", 1, "nfsclient"), ["10.0.0.2"]);
    let status = kept.context.status(at(901));
    assert!(status.complete && status.error_present);
    assert_eq!(
        status.waits[2], "client-2 did not report within 900 s",
        "{:?}",
        status.waits
    );
    kept.exit("client-1", 2, 1, 1, true, 902).unwrap();
    assert_eq!(kept.context.next_deadline(), Some(at(1800)));
    kept.ask(Command::Tick, at(1800)).unwrap();
    let status = kept.context.status(at(1800));
    assert_eq!(
        status.waits[0],
        "server sent no exit report for version 1 within 900 s"
    );
    assert_eq!(kept.context.next_deadline(), None, "nobody is waited for");
    kept.exit("server", 1, 1, 1, true, 1900).unwrap();
    assert_eq!(
        kept.context.status(at(1900)).ok,
        2,
        "a report that comes late is better than none"
    );
    kept.restart();
}

#[test]
fn a_member_whose_provider_never_came_is_told_what_is_missing() {
    let mut kept = Kept::nfs();
    kept.register("client", "10.0.0.2", 2, 1).unwrap();
    kept.register("client", "10.0.0.3", 3, 1).unwrap();
    kept.ask(Command::Tick, at(900)).unwrap();
    let view = kept.view("client-1", 2, 0).unwrap();
    assert_eq!(view.missing, ["role nfsserver"]);
    assert_eq!(
        kept.waits(901)[1],
        "client-1 cannot be configured: role nfsserver is provided by nobody; server should have"
    );
    assert_eq!(kept.context.next_deadline(), None, "it has nothing to report");
    // The server's machine was slow.
    kept.register("server", "10.0.0.1", 1, 950).unwrap();
    let view = kept.view("client-1", 2, 1).unwrap();
    assert_eq!((view.version, view.missing.len()), (2, 0));
}

#[test]
fn an_agent_of_a_destroyed_context_is_told_so_whatever_it_asks() {
    let mut kept = Kept::nfs();
    kept.register("server", "10.0.0.1", 1, 1).unwrap();
    kept.ask(Command::Destroy, at(2)).unwrap();
    kept.ask(Command::Destroy, at(2)).unwrap();
    kept.restart();
    let destroyed = Refusal::Destroyed(kept.context.id());
    assert_eq!(kept.register("client", "10.0.0.2", 2, 3), Err(destroyed.clone()));
    assert_eq!(kept.exit("server", 1, 1, 1, true, 3), Err(destroyed.clone()));
    assert_eq!(
        kept.context.retrieve(&name("server"), instance(1), 0),
        Err(destroyed)
    );
    assert_eq!(kept.context.next_deadline(), None);
}

#[test]
fn a_journal_that_is_not_one_is_refused_with_the_records_number() {
    let kept = Kept::nfs();
    let mut journal = kept.journal.clone();
    journal.push(kept.journal[0].clone());
    let corrupt = Context::replay(journal).unwrap_err();
    assert_eq!(
        corrupt.to_string(),
        "record 1 of the context's journal cannot be replayed: it begins a context anew"
    );
    assert!(Context::replay([]).is_err());
}
