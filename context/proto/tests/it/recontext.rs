//! Members that come and go after the first version.

use aerie_context_proto::{Answer, Command, Context, Refusal, Settings, Verdict, xml};

use crate::common::{Kept, NFS, at, name};

fn running() -> Kept {
    let mut kept = Kept::nfs();
    kept.register("server", "10.0.0.1", 1, 1).unwrap();
    kept.register("client", "10.0.0.2", 2, 1).unwrap();
    kept.register("client", "10.0.0.3", 3, 1).unwrap();
    for (member, proof) in [("server", 1), ("client-1", 2), ("client-2", 3)] {
        kept.exit(member, proof, 1, 1, true, 2).unwrap();
    }
    kept
}

fn expect(kept: &mut Kept, set: &str, quantity: u32, secs: u64) -> Result<Vec<String>, Refusal> {
    let command = Command::Expect {
        set: set.parse().unwrap(),
        quantity,
    };
    match kept.ask(command, at(secs))? {
        Answer::Expected(names) => Ok(names.iter().map(ToString::to_string).collect()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_joiner_makes_a_new_version_for_those_who_require_it_and_for_nobody_else() {
    let mut kept = running();
    let names = expect(&mut kept, "client", 3, 10).unwrap();
    assert_eq!(names, ["client-1", "client-2", "client-3"]);
    let again = expect(&mut kept, "client", 3, 10).unwrap();
    assert_eq!(again, names, "a total is asked for, so that twice is once");
    assert!(!kept.context.is_complete());
    assert_eq!(
        kept.view("server", 1, 1),
        None,
        "version 1 stands until the joiner reports"
    );
    assert_eq!(
        kept.register("client", "10.0.0.4", 4, 11).unwrap().as_str(),
        "client-3"
    );
    let view = kept.view("server", 1, 1).unwrap();
    assert_eq!(view.version, 2);
    assert_eq!(
        kept.players("server", 1, "nfsclient"),
        ["10.0.0.2", "10.0.0.3", "10.0.0.4"]
    );
    assert_eq!(kept.view("client-3", 4, 0).unwrap().version, 2);
    assert_eq!(kept.view("client-1", 2, 1), None, "its server is the same");
    let status = kept.context.status(at(12));
    assert_eq!((status.version, status.ok), (2, 2), "{status:?}");
    assert_eq!(kept.exit("server", 1, 1, 2, true, 12), Ok(Verdict::Superseded));
    kept.exit("server", 1, 2, 1, true, 12).unwrap();
    kept.exit("client-3", 4, 2, 1, true, 12).unwrap();
    assert!(kept.context.status(at(13)).all_ok);
    kept.restart();
}

#[test]
fn a_member_that_leaves_is_gone_from_the_next_version_and_its_name_is_not_used_again() {
    let mut kept = running();
    let leave = Command::Leave {
        member: name("client-1"),
        instance: crate::common::instance(2),
    };
    kept.ask(leave, at(10)).unwrap();
    assert_eq!(kept.players("server", 1, "nfsclient"), ["10.0.0.3"]);
    assert_eq!(kept.view("server", 1, 1).unwrap().version, 2);
    assert_eq!(
        kept.exit("client-1", 2, 1, 1, true, 11),
        Err(Refusal::UnknownMember(name("client-1")))
    );
    let names = expect(&mut kept, "client", 2, 12).unwrap();
    assert_eq!(names, ["client-2", "client-3"]);
    let refusal = expect(&mut kept, "client", 1, 12).unwrap_err();
    assert!(
        refusal.to_string().contains("remove members by their names"),
        "{refusal}"
    );
    // The machine that left may come again, as a new member.
    assert_eq!(
        kept.register("client", "10.0.0.2", 2, 13).unwrap().as_str(),
        "client-3"
    );
    kept.restart();
}

#[test]
fn the_last_provider_of_a_role_leaves_and_its_requirers_are_told() {
    let mut kept = running();
    let remove = Command::Remove {
        member: name("server"),
    };
    kept.ask(remove, at(10)).unwrap();
    let view = kept.view("client-1", 2, 1).unwrap();
    assert_eq!(
        (view.version, view.missing),
        (2, vec!["role nfsserver".to_owned()])
    );
    assert!(kept.context.status(at(11)).error_present);
}

#[test]
fn a_joiner_that_never_comes_holds_nothing_up_beyond_its_deadline() {
    let mut kept = running();
    expect(&mut kept, "client", 4, 100).unwrap();
    kept.register("client", "10.0.0.4", 4, 101).unwrap();
    kept.ask(Command::Tick, at(1000)).unwrap();
    assert_eq!(kept.view("server", 1, 1).unwrap().version, 2);
    assert_eq!(kept.players("server", 1, "nfsclient").len(), 3);
    // Of four members one failed; it may still come.
    assert_eq!(
        kept.register("client", "10.0.0.5", 5, 1001).unwrap().as_str(),
        "client-4"
    );
    assert_eq!(kept.view("server", 1, 2).unwrap().version, 3);
}

#[test]
fn a_set_of_one_grows() {
    let mut kept = running();
    assert_eq!(
        expect(&mut kept, "server", 2, 10).unwrap(),
        ["server", "server-2"]
    );
    kept.register("server", "10.0.0.9", 9, 11).unwrap();
    assert_eq!(kept.players("client-1", 2, "nfsserver"), ["10.0.0.1", "10.0.0.9"]);
}

#[test]
fn a_snapshot_stands_for_all_before_it() {
    let mut kept = running();
    expect(&mut kept, "client", 3, 10).unwrap();
    kept.journal = vec![kept.context.snapshot()];
    kept.register("client", "10.0.0.4", 4, 11).unwrap();
    kept.restart();
    assert_eq!(kept.view("server", 1, 1).unwrap().version, 2);
}

#[test]
fn data_of_members_reaches_those_who_require_it() {
    let text = NFS
        .replace(
            "<label>nfsserver</label>",
            "<label>nfsserver</label><data name=\"exports\"/>",
        )
        .replace(
            "<role name=\"nfsserver\" />",
            "<role name=\"nfsserver\" /><data name=\"exports\"/>",
        );
    let mut kept = Kept::create(xml::read_cluster(&text).unwrap(), Settings::default(), false).unwrap();
    kept.register("client", "10.0.0.2", 2, 1).unwrap();
    kept.register("client", "10.0.0.3", 3, 1).unwrap();
    let refusal = kept.register("server", "10.0.0.1", 1, 1).unwrap_err();
    assert!(
        refusal.to_string().contains("did not report the data 'exports'"),
        "{refusal}"
    );
    let mut provided = crate::common::provided("10.0.0.1");
    provided
        .data
        .insert("exports".parse().unwrap(), "/srv".to_owned());
    let command = Command::Register(aerie_context_proto::Registration {
        member: Some(name("server")),
        set: "server".parse().unwrap(),
        instance: crate::common::instance(1),
        provided,
    });
    kept.ask(command, at(2)).unwrap();
    let view = kept.view("client-2", 3, 0).unwrap();
    let blob = &view.data[&"exports".parse().unwrap()][0];
    assert_eq!(
        (blob.content.as_str(), blob.from.as_ref()),
        ("/srv", Some(&name("server")))
    );
    kept.restart();
    let _: &Context = &kept.context;
}
