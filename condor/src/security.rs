//! Who may do what: the permissions of each role, all bound to certificates.
//!
//! | permission          | manager                            | submit                     | worker     |
//! |---------------------|------------------------------------|----------------------------|------------|
//! | READ                | members, users, local accounts     | local accounts             | the same   |
//! | WRITE               | itself                             | local accounts             | itself     |
//! | NEGOTIATOR          | itself                             | itself, each manager       | itself     |
//! | ADVERTISE_STARTD    | managers, submit nodes, workers    | itself                     | itself     |
//! | ADVERTISE_SCHEDD    | managers, submit nodes             | itself                     | itself     |
//! | ADVERTISE_MASTER    | managers, submit nodes, workers    | itself                     | itself     |
//! | DAEMON, ADMINISTRATOR | itself                           | itself                     | itself     |
//! | CONFIG              | nobody                             | nobody                     | nobody     |
//!
//! A certificate names the highest role of a node with several, so a manager that also runs jobs advertises its
//! startd under its manager's certificate: hence managers in the lists of ads. DAEMON never names another member:
//! it implies WRITE. Claims between a schedd and a startd are authorised by the secret of the match instead.
//!
//! The lists say which kind of ad a member may send; `COLLECTOR_REQUIREMENTS` says for which machine. It demands
//! the same of every type of ad, since an ad's type is text that its sender chose.

use aerie_types::{GridName, Role};

use crate::Error;
use crate::identity;
use crate::intent::{Intent, Manager, config_path};
use crate::knobs::Knobs;

/// Every permission that HTCondor knows, so that none keeps a default or a packaged value.
pub(crate) const PERMISSIONS: [&str; 10] = [
    "READ",
    "WRITE",
    "NEGOTIATOR",
    "ADMINISTRATOR",
    "CONFIG",
    "DAEMON",
    "ADVERTISE_MASTER",
    "ADVERTISE_STARTD",
    "ADVERTISE_SCHEDD",
    "CLIENT",
];

pub(crate) fn credentials(knobs: &mut Knobs, intent: &Intent) -> Result<(), Error> {
    let files = &intent.credentials;
    knobs.heading("Every connection is authenticated and encrypted; the grid's CA is the only one trusted.");
    for level in std::iter::once("DEFAULT").chain(PERMISSIONS) {
        for what in ["AUTHENTICATION", "ENCRYPTION", "INTEGRITY"] {
            knobs.set(format!("SEC_{level}_{what}"), "REQUIRED");
        }
        // The file system first: a local user who also has a certificate is a local user to his own schedd.
        knobs.set(format!("SEC_{level}_AUTHENTICATION_METHODS"), "FS, SSL");
    }
    for side in ["SERVER", "CLIENT"] {
        knobs.set(format!("AUTH_SSL_{side}_CAFILE"), config_path(&files.ca)?);
        knobs.set(format!("AUTH_SSL_{side}_CADIR"), "");
        knobs.set(
            format!("AUTH_SSL_{side}_CERTFILE"),
            config_path(&files.node.certificate)?,
        );
        knobs.set(format!("AUTH_SSL_{side}_KEYFILE"), config_path(&files.node.key)?);
        knobs.set(format!("AUTH_SSL_{side}_USE_DEFAULT_CAS"), "False");
    }
    if let Some(user) = &files.user {
        knobs.heading("The tools use the users' short-lived credential: the node's key is for root alone.");
        for tool in ["TOOL", "SUBMIT"] {
            knobs.set(
                format!("{tool}.AUTH_SSL_CLIENT_CERTFILE"),
                config_path(&user.certificate)?,
            );
            knobs.set(format!("{tool}.AUTH_SSL_CLIENT_KEYFILE"), config_path(&user.key)?);
        }
    }
    let map = intent.layout.identity_map(intent.grid_id);
    knobs.heading("A certificate is mandatory on both sides and must map to a member.");
    knobs.set("CERTIFICATE_MAPFILE", config_path(&map)?);
    knobs.set_all(&[
        ("CERTIFICATE_MAPFILE_ASSUME_HASH_KEYS", "True"),
        ("AUTH_SSL_REQUIRE_CLIENT_CERTIFICATE", "True"),
        ("AUTH_SSL_REQUIRE_CLIENT_MAPPING", "True"),
        ("AUTH_SSL_ALLOW_CLIENT_PROXY", "False"),
        ("AUTH_SSL_USE_VOMS_IDENTITY", "False"),
        ("SSL_SKIP_HOST_CHECK", "False"),
    ]);
    knobs.heading(
        "No other way in: no tokens, no certificates made or trusted on first use, no administration from afar.",
    );
    knobs.set_all(&[
        ("SEC_ENABLE_TOKEN_FETCH", "False"),
        ("SEC_ENABLE_TOKEN_REQUEST", "False"),
        ("SEC_ENABLE_REMOTE_ADMINISTRATION", "False"),
        ("COLLECTOR_BOOTSTRAP_SSL_CERTIFICATE", "False"),
        ("BOOTSTRAP_SSL_SERVER_TRUST", "False"),
        ("BOOTSTRAP_SSL_SERVER_TRUST_PROMPT_USER", "False"),
        ("ENABLE_RUNTIME_CONFIG", "False"),
        ("ENABLE_PERSISTENT_CONFIG", "False"),
    ]);
    Ok(())
}

/// The lists of who may do what. `managers` are those that this node reports or flocks to.
pub(crate) fn permissions(knobs: &mut Knobs, intent: &Intent, managers: &[&Manager]) {
    let grid = &intent.grid;
    let fqdn = intent.fqdn();
    let local = format!("*@{fqdn}");
    let itself = own_identities(intent).join(", ");
    let of = |roles: &[Role]| -> String {
        let patterns = roles.iter().map(|role| identity::members(*role, grid));
        patterns.collect::<Vec<_>>().join(", ")
    };
    let manager = intent.roles.contains(Role::Manager);
    let submit = intent.roles.contains(Role::Submit);
    let daemons = [Role::Manager, Role::Submit, Role::Worker];

    knobs.heading("Who may do what. Names in front of '@' are bound to certificates by the map.");
    knobs.set("AERIE_SELF", &itself);
    for permission in PERMISSIONS {
        let mut allowed = vec!["$(AERIE_SELF)".to_owned()];
        match permission {
            "READ" => {
                allowed.push(local.clone());
                if manager {
                    allowed.push(of(&[Role::Manager, Role::Submit, Role::Worker, Role::Client]));
                    allowed.push(identity::users(grid));
                }
            }
            "WRITE" if submit => allowed.push(local.clone()),
            "NEGOTIATOR" if submit => allowed.extend(
                managers
                    .iter()
                    .map(|manager| identity::member(&manager.node, Role::Manager, grid)),
            ),
            "ADVERTISE_MASTER" | "ADVERTISE_STARTD" if manager => allowed.push(of(&daemons)),
            "ADVERTISE_SCHEDD" if manager => allowed.push(of(&[Role::Manager, Role::Submit])),
            "CONFIG" => allowed.clear(),
            // Whom this node's own clients accept as a server. FS proves the client only, so a server reached by it
            // has no name: it is accepted at this node's own address and nowhere else.
            "CLIENT" => {
                allowed.push(of(&daemons));
                allowed.push(format!("unauthenticated@unmapped/{}", intent.addr));
                // The name of whoever knows the secret of a match or of a submitter's ad; no certificate maps to it.
                allowed.push("*@matchsession".to_owned());
            }
            _ => {}
        }
        knobs.set(format!("ALLOW_{permission}"), allowed.join(", "));
    }
    if manager {
        knobs.heading("An ad is believed only about the machine whose certificate its sender has shown.");
        for kind in ["MASTER", "STARTD", "SCHEDD"] {
            knobs.set(format!("SEC_ADVERTISE_{kind}_AUTHENTICATION_METHODS"), "SSL");
        }
        knobs.set("COLLECTOR_REQUIREMENTS", collector_requirements(intent, grid));
    }
}

/// The identities under which this node's own daemons and its root speak to each other.
fn own_identities(intent: &Intent) -> Vec<String> {
    let fqdn = intent.fqdn();
    let mut own = vec![
        format!("condor@{fqdn}"),
        format!("root@{fqdn}"),
        "condor@family".to_owned(),
        "condor@child".to_owned(),
        "condor@parent".to_owned(),
    ];
    own.extend(
        intent
            .certificate_role()
            .map(|role| identity::member(&intent.node, role, &intent.grid)),
    );
    own
}

/// True of an ad from this node itself, or that names its sender wherever an ad can name a machine.
///
/// The names must be plain texts. An expression (`ifThenElse(time() > ..., "other.lab.grid", "mine.lab.grid")`)
/// could name the sender while it is checked and somebody else afterwards, so the ad is also searched as text for
/// a name that is not a literal; a match anywhere only ever refuses. The collector's ad about itself does not come
/// over the network and so has no sender.
fn collector_requirements(intent: &Intent, grid: &GridName) -> String {
    let own = own_identities(intent).join(",");
    let fqdn = intent.fqdn();
    let identity = "TARGET.AuthenticatedIdentity";
    let sender = format!("strcat(split({identity}, \"@\")[0], \".{grid}.grid\")");
    let is_sender = |attr: &str| format!("(TARGET.{attr} =?= undefined || TARGET.{attr} =?= {sender})");
    let literals = "regexp(\"[[; ](Machine|ScheddName|Name) = (?!\\\"[A-Za-z0-9@._+-]*\\\"( ]|;))\", \
                    string(TARGET), \"i\") =?= false";
    format!(
        "ifThenElse({identity} =?= undefined, TARGET.MyType =?= \"Collector\" && TARGET.Machine =?= \"{fqdn}\", \
         stringListMember({identity}, \"{own}\") || ({machine} && {schedd} && (TARGET.Name =?= {sender} || \
         substr(TARGET.Name, 0 - size({sender}) - 1) =?= strcat(\"@\", {sender})) && {literals}))",
        machine = is_sender("Machine"),
        schedd = is_sender("ScheddName"),
    )
}
