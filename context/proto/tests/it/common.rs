//! What the tests share: the paper's clusters, and a context with its journal.

use std::collections::BTreeMap;

use aerie_context_proto::{
    Answer, Cluster, Command, Context, ContextId, Creation, Exit, HostKey, Identity, Instance, InstanceHash,
    MemberName, Provided, Record, Refusal, Registration, Retrieved, Settings, Verdict, View, xml,
};
use aerie_types::WallMillis;

pub(crate) const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl";

/// The paper's section 4.1: a server and two clients.
pub(crate) const NFS: &str = r#"<cluster xmlns="http://www.globus.org/2008/06/workspace/metadata/logistics">
  <workspace>
    <name>server</name>
    <image>nfs.gz</image>
    <quantity>1</quantity>
    <nic wantlogin="true">public</nic>
    <ctx>
      <provides>
        <identity />
        <label>nfsserver</label>
      </provides>
      <requires>
        <role name="nfsclient" />
      </requires>
    </ctx>
  </workspace>
  <workspace>
    <name>client</name>
    <image>nfs.gz</image>
    <quantity>2</quantity>
    <nic>public</nic>
    <ctx>
      <provides>
        <identity />
        <role>nfsclient</role>
      </provides>
      <requires>
        <role name="nfsserver" />
      </requires>
    </ctx>
  </workspace>
</cluster>
"#;

pub(crate) const T0: WallMillis = WallMillis(1_900_000_000_000);

pub(crate) fn at(secs: u64) -> WallMillis {
    WallMillis(T0.0 + secs * 1000)
}

pub(crate) fn name(text: &str) -> MemberName {
    text.parse().unwrap()
}

pub(crate) fn instance(number: u8) -> InstanceHash {
    Instance::new([number; 32]).hash()
}

pub(crate) fn provided(ip: &str) -> Provided {
    Provided {
        identities: vec![Identity {
            interface: None,
            ip: ip.parse().unwrap(),
            hostname: None,
            pubkey: None,
        }],
        data: BTreeMap::new(),
    }
}

pub(crate) fn host_key() -> HostKey {
    KEY.parse().unwrap()
}

/// A context as a driver keeps it: what is committed was written down before.
pub(crate) struct Kept {
    pub(crate) context: Context,
    pub(crate) journal: Vec<Record>,
}

impl Kept {
    pub(crate) fn create(cluster: Cluster, settings: Settings, open: bool) -> Result<Self, Refusal> {
        let creation = Creation {
            id: ContextId([7; 16]),
            cluster,
            settings,
            open,
        };
        let record = Context::create(creation, T0)?;
        Ok(Self {
            context: Context::replay([record.clone()]).unwrap(),
            journal: vec![record],
        })
    }

    pub(crate) fn nfs() -> Self {
        Self::create(xml::read_cluster(NFS).unwrap(), Settings::default(), false).unwrap()
    }

    pub(crate) fn ask(&mut self, command: Command, now: WallMillis) -> Result<Answer, Refusal> {
        let before = self.context.clone();
        let decision = self.context.decide(command, now);
        assert_eq!(self.context, before, "to decide changes nothing");
        let decision = decision?;
        if let Some(record) = decision.record {
            self.journal.push(record.clone());
            self.context.commit(record).unwrap();
        }
        Ok(decision.answer)
    }

    pub(crate) fn register(
        &mut self,
        set: &str,
        ip: &str,
        proof: u8,
        secs: u64,
    ) -> Result<MemberName, Refusal> {
        let registration = Registration {
            member: None,
            set: set.parse().unwrap(),
            instance: instance(proof),
            provided: provided(ip),
        };
        match self.ask(Command::Register(registration), at(secs))? {
            Answer::Registered(name) => Ok(name),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn exit(
        &mut self,
        member: &str,
        proof: u8,
        version: u32,
        attempt: u32,
        ok: bool,
        secs: u64,
    ) -> Result<Verdict, Refusal> {
        let command = Command::Exit {
            member: name(member),
            instance: instance(proof),
            exit: Exit {
                version,
                attempt,
                ok,
                message: if ok {
                    String::new()
                } else {
                    "3-data/nfsserver ended with code 1".to_owned()
                },
                steps: Vec::new(),
            },
        };
        match self.ask(command, at(secs))? {
            Answer::Exit(verdict) => Ok(verdict),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn view(&self, member: &str, proof: u8, after: u32) -> Option<View> {
        match self
            .context
            .retrieve(&name(member), instance(proof), after)
            .unwrap()
        {
            Retrieved::View(view) => Some(*view),
            Retrieved::Wait => None,
        }
    }

    /// The addresses of those who play a role, in a member's view.
    pub(crate) fn players(&self, member: &str, proof: u8, role: &str) -> Vec<String> {
        let view = self.view(member, proof, 0).unwrap();
        view.roles[&role.parse().unwrap()]
            .iter()
            .map(|player| player.ip.to_string())
            .collect()
    }

    /// The broker was killed and starts again: the journal through its text form.
    pub(crate) fn restart(&mut self) {
        let text = serde_json::to_string(&self.journal).unwrap();
        let records: Vec<Record> = serde_json::from_str(&text).unwrap();
        let again = Context::replay(records).unwrap();
        assert_eq!(again, self.context, "a replay gives the same context");
        self.context = again;
    }

    pub(crate) fn waits(&self, secs: u64) -> Vec<String> {
        self.context.status(at(secs)).waits
    }
}
