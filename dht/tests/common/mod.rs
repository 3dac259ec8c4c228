//! One witness with real keys and a clock that the test moves, and members whose keys the test has, so that it can
//! forge with them whatever a member could.
#![allow(
    unreachable_pub,
    dead_code,
    clippy::unwrap_used,
    reason = "shared by test binaries, each of which uses a part; helpers of tests fail the test"
)]

use std::sync::{Arc, RwLock};
use std::time::{Duration, SystemTime};

use aerie_dht::IdentityKeys;
use aerie_dht_proto::{
    Certificate, Config, Input, Leased, MemoryStore, Now, Output, Proof, Receipt, Register, Stats, Store,
    Terms,
};
use aerie_identity::{EnrolRequest, GridCa, NodeKeys, Subject, Verifier};
use aerie_types::{
    AddressPool, GridId, Instance, Key, NodeName, PeerId, Role, Roles, VirtualAddr, VirtualRange, WallMillis,
};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use tokio::sync::watch;

#[path = "../../proto/tests/common/wire.rs"]
pub mod wire;

use wire::{Answer, Claim, Handed, Refusal, Request};

pub const RANGE: &str = "10.77.0.0/21";

/// The lease of a renewal.
pub const LONG: u32 = 30 * 60 * 1000;

/// The witness itself.
pub const WITNESS: usize = 0;
/// Has a lease and does no wrong.
pub const HOLDER: usize = 1;
/// Sends what no honest member does.
pub const LIAR: usize = 2;
/// Other members, with whose keys receipts are signed.
pub const OTHERS: [usize; 3] = [3, 4, 5];

pub type Node<S = MemoryStore> = Register<S, IdentityKeys>;

pub struct Member {
    pub name: NodeName,
    pub keys: NodeKeys,
    pub der: Arc<Vec<u8>>,
}

impl Member {
    pub fn peer(&self) -> PeerId {
        self.keys.peer_id()
    }
}

pub struct World<S = MemoryStore> {
    pub ca: GridCa,
    pub verifier: Arc<RwLock<Verifier>>,
    pub members: Vec<Member>,
    pub node: Node<S>,
    pub now: Now,
}

pub fn range() -> VirtualRange {
    RANGE.parse().unwrap()
}

/// The range, of which the last 128 addresses are leased in blocks of eight.
pub fn pool() -> AddressPool {
    let pool = AddressPool::from(range());
    pool.with_routed("10.77.7.128/25".parse().unwrap(), 29).unwrap()
}

pub fn grid_ca(now: WallMillis) -> GridCa {
    GridCa::create("lab".parse().unwrap(), range(), now).unwrap()
}

pub fn enrol(ca: &GridCa, number: u64, roles: Roles, now: WallMillis, life: Duration) -> Member {
    let name: NodeName = format!("n{number}").parse().unwrap();
    let keys = NodeKeys::generate().unwrap();
    let request = EnrolRequest::create(&keys, ca.grid_id(), name.clone(), true).unwrap();
    let subject = Subject {
        node: name.clone(),
        user: "ada".parse().unwrap(),
        group: "chem".parse().unwrap(),
        roles,
    };
    let issued = ca.issue(&request, &subject, number + 1, now, life).unwrap();
    Member {
        name,
        keys,
        der: Arc::new(issued.overlay_der),
    }
}

fn register<S: Store>(
    ca: &GridCa,
    verifier: &Arc<RwLock<Verifier>>,
    member: &Member,
    founder: bool,
    store: S,
    now: Now,
) -> Node<S> {
    let (_, own) = watch::channel(Arc::clone(&member.der));
    let keys = IdentityKeys::new(member.keys.overlay_signer(), Arc::clone(verifier), own);
    let mut config = Config::new(ca.grid_id(), range());
    config.pool = pool();
    config.founder = founder;
    // Another start has another instance.
    let mut rng = ChaCha8Rng::seed_from_u64(now.wall.0);
    Register::new(config, keys, store, &mut rng, now).unwrap()
}

impl World {
    /// A founder that votes, and five more members.
    pub fn new() -> Self {
        let world = Self::over(MemoryStore::default());
        assert!(world.node.is_ready());
        world
    }

    /// The same, where the holder has a long lease on the first address, and the witness has seen its certificate.
    pub fn with_lease() -> (Self, Certificate) {
        let mut world = Self::new();
        let terms = world.terms(HOLDER, world.addr(0));
        let first = world.certify(&terms, &OTHERS, |receipt| receipt.ttl_ms = 10_000);
        let answer = world.claim(HOLDER, &terms, 1, None);
        assert!(matches!(answer, Answer::Granted { .. }), "{answer:?}");
        let terms = Terms {
            since: Some(first.since()),
            ..terms
        };
        let answer = world.claim(HOLDER, &terms, 2, Some(world.proof(&first)));
        assert!(
            matches!(&answer, Answer::Granted { receipt, .. } if receipt.ttl_ms == LONG),
            "{answer:?}"
        );
        let long = world.certify(&terms, &OTHERS, |_| {});
        assert_eq!(world.hand_over(HOLDER, &long, LONG), Answer::Done);
        let (seen, _) = world.look_up(terms.key).unwrap();
        assert_eq!(seen, long);
        (world, long)
    }

    /// Another register, of one of the members, with an empty store.
    pub fn start(&self, member: usize, founder: bool) -> Node {
        let member = &self.members[member];
        let store = MemoryStore::default();
        register(&self.ca, &self.verifier, member, founder, store, self.now)
    }
}

impl<S: Store> World<S> {
    /// A founder with this store, and five more members.
    pub fn over(store: S) -> Self {
        let now = Now {
            instant: std::time::Instant::now(),
            wall: SystemTime::now().into(),
        };
        let ca = grid_ca(now.wall);
        let verifier = Arc::new(RwLock::new(ca.verifier().unwrap()));
        let day = Duration::from_secs(24 * 3600);
        let members: Vec<_> = (0..6)
            .map(|number| enrol(&ca, number, Role::Worker.into(), now.wall, day))
            .collect();
        let node = register(&ca, &verifier, &members[WITNESS], true, store, now);
        Self {
            ca,
            verifier,
            members,
            node,
            now,
        }
    }

    /// The witness is killed, and started again over what its store has.
    pub fn restart(&mut self, founder: bool, store: S) {
        let member = &self.members[WITNESS];
        self.node = register(&self.ca, &self.verifier, member, founder, store, self.now);
    }

    pub fn grid(&self) -> GridId {
        self.ca.grid_id()
    }

    pub fn peer(&self, member: usize) -> PeerId {
        self.members[member].peer()
    }

    pub fn addr(&self, index: u32) -> VirtualAddr {
        range().nth(index)
    }

    /// What a member may honestly claim: an address, or a prefix, under its own name.
    pub fn terms(&self, member: usize, leased: impl Into<Leased>) -> Terms {
        let leased = leased.into();
        Terms {
            grid: self.grid(),
            key: leased.key(self.grid()),
            holder: self.peer(member),
            leased,
            name: self.members[member].name.clone(),
            instance: Instance(100 + member as u64),
            since: None,
        }
    }

    /// The same under the key by which it is counted.
    pub fn name_terms(&self, member: usize, leased: impl Into<Leased>) -> Terms {
        let terms = self.terms(member, leased);
        Terms {
            key: terms.leased.home_key(self.grid(), &terms.name),
            ..terms
        }
    }

    /// A receipt over the terms that this member's key signs, whatever it says.
    pub fn receipt(&self, signer: usize, terms: &Terms, adjust: impl FnOnce(&mut Receipt)) -> Receipt {
        let mut receipt = Receipt {
            witness: self.peer(signer),
            number: 1,
            time: self.now.wall,
            ttl_ms: LONG,
            members: 5,
            signature: [0; 64].into(),
        };
        adjust(&mut receipt);
        let message = wire::receipt_message(&receipt, terms);
        receipt.signature = self.members[signer].keys.overlay_signer().sign(&message).into();
        receipt
    }

    /// A certificate with receipts of these members. Three of five suffice.
    pub fn certify(
        &self,
        terms: &Terms,
        witnesses: &[usize],
        mut adjust: impl FnMut(&mut Receipt),
    ) -> Certificate {
        let mut receipts: Vec<_> = witnesses
            .iter()
            .map(|witness| self.receipt(*witness, terms, &mut adjust))
            .collect();
        receipts.sort_by_key(|receipt| receipt.witness);
        Certificate {
            terms: terms.clone(),
            receipts,
        }
    }

    /// The certificate with the credentials of its witnesses.
    pub fn proof(&self, certificate: &Certificate) -> Proof {
        let signed = |peer| certificate.receipts.iter().any(|receipt| receipt.witness == peer);
        let witnesses = self.members.iter().filter(|member| signed(member.peer()));
        Proof {
            certificate: certificate.clone(),
            credentials: witnesses.map(|member| member.der.to_vec()).collect(),
        }
    }

    /// The certificate of a member's name with what the terms are about.
    pub fn home(&self, member: usize, terms: &Terms) -> Proof {
        let name = self.name_terms(member, terms.leased);
        self.proof(&self.certify(&name, &OTHERS, |_| {}))
    }

    pub fn claim_of(&self, member: usize, terms: &Terms, seq: u64, proof: Option<Proof>) -> Claim {
        Claim {
            terms: terms.clone(),
            seq,
            ttl_ms: LONG,
            proof,
            home: Some(self.home(member, terms)),
            credential: Some(self.members[member].der.to_vec()),
            want_credential: false,
        }
    }

    pub fn claim(&mut self, from: usize, terms: &Terms, seq: u64, proof: Option<Proof>) -> Answer {
        let claim = self.claim_of(from, terms, seq, proof);
        self.ask(from, &Request::Claim(claim))
    }

    pub fn hand_over(&mut self, from: usize, certificate: &Certificate, remaining_ms: u32) -> Answer {
        let proof = self.proof(certificate);
        self.ask(from, &Request::HandOver(vec![Handed { proof, remaining_ms }]))
    }

    pub fn look_up(&mut self, key: Key) -> Option<(Certificate, u32)> {
        match self.ask(LIAR, &Request::LookUp { key }) {
            Answer::Found(handed) => Some((handed.proof.certificate, handed.remaining_ms)),
            Answer::NotFound => None,
            other => panic!("{other:?}"),
        }
    }

    pub fn ask(&mut self, from: usize, request: &Request) -> Answer {
        self.ask_bytes(from, wire::to_bytes(request))
    }

    pub fn ask_bytes(&mut self, from: usize, bytes: Vec<u8>) -> Answer {
        let from = self.peer(from);
        let id = u64::MAX;
        self.node
            .handle_input(Input::Request { from, id, bytes }, self.now);
        let mut answer = None;
        while let Some(output) = self.node.poll_output() {
            if let Output::Answer { id: u64::MAX, bytes } = output {
                answer = wire::from_bytes(&bytes);
            }
        }
        answer.expect("each request is answered at once, in a form that can be read")
    }

    pub fn stats(&self) -> Stats {
        self.node.stats().clone()
    }

    /// Time passes, and nobody is told yet.
    pub fn pass_nothing(&mut self, time: Duration) {
        self.now = after(self.now, time);
    }

    pub fn pass(&mut self, time: Duration) {
        self.pass_nothing(time);
        self.node.handle_timeout(self.now);
        while self.node.poll_output().is_some() {}
    }
}

pub fn after(now: Now, time: Duration) -> Now {
    Now {
        instant: now.instant + time,
        wall: now.wall.plus(time),
    }
}

/// The holder's lease as the witness has it, in every detail.
fn state_of(world: &World, lease: &Certificate) -> String {
    world.node.explain(lease.terms.key)
}

/// Does what the liar does, and sees that the holder has its lease as before, renews it, and the liar cannot take it.
pub fn unmoved<T>(world: &mut World, lease: &Certificate, act: impl FnOnce(&mut World) -> T) -> T {
    let before = state_of(world, lease);
    let result = act(world);
    assert_eq!(state_of(world, lease), before);
    assert_eq!(world.look_up(lease.terms.key).unwrap().0, *lease);
    let theirs = world.terms(LIAR, lease.terms.leased);
    let answer = world.claim(LIAR, &theirs, u64::MAX, None);
    assert!(
        matches!(&answer, Answer::Refused(Refusal::Taken { holder, certified: true, proof: Some(_), .. })
            if *holder == lease.terms.holder),
        "{answer:?}"
    );
    let renewal = Terms {
        since: Some(lease.since()),
        ..lease.terms.clone()
    };
    let answer = world.claim(HOLDER, &renewal, 1000, Some(world.proof(lease)));
    assert!(matches!(answer, Answer::Granted { .. }), "{answer:?}");
    result
}
