//! A witness whose disk fails, or that is killed, at every single write of a scripted run: what it answered is on the
//! disk, it grants nothing that it could not write, and it goes on when the disk does.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests fail the test"
)]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::time::{Duration, Instant};

use aerie_dht_proto::{
    AcquireRequest, Change, Input, Kind, MemoryStore, Output, Rows, Store, StoreError, Table, Terms,
};
use aerie_types::{Key, PeerId};

mod common;

use common::wire::{self, Answer, Refusal, Request, State};
use common::{HOLDER, LIAR, LONG, OTHERS, WITNESS, World};

/// What happens at a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// It fails, as on a full disk.
    Refused,
    /// It is reported to have failed, and is made all the same.
    Unsure,
    /// The process is killed before it is durable.
    KilledBefore,
    /// The process is killed after it is durable, and before anybody is told.
    KilledAfter,
}

const FAULTS: [Fault; 4] = [
    Fault::Refused,
    Fault::Unsure,
    Fault::KilledBefore,
    Fault::KilledAfter,
];

#[derive(Debug)]
struct Disk {
    rows: MemoryStore,
    writes: usize,
    fault: Fault,
    at: Range<usize>,
    killed: bool,
    failed: u64,
}

/// What stays when the register is gone.
#[derive(Debug, Clone)]
struct Faulty(Rc<RefCell<Disk>>);

impl Store for Faulty {
    fn load(&mut self, table: Table) -> Result<Rows, StoreError> {
        self.0.borrow_mut().rows.load(table)
    }

    fn persist(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        let mut disk = self.0.borrow_mut();
        let error = || StoreError("the disk fails".to_owned());
        if disk.killed {
            return Err(error());
        }
        disk.writes += 1;
        if !disk.at.contains(&disk.writes) {
            return disk.rows.persist(changes);
        }
        disk.failed += 1;
        if matches!(disk.fault, Fault::Unsure | Fault::KilledAfter) {
            disk.rows.persist(changes)?;
        }
        disk.killed = matches!(disk.fault, Fault::KilledBefore | Fault::KilledAfter);
        Err(error())
    }
}

struct Run {
    disk: Faulty,
    world: World<Faulty>,
    /// Who was promised what, until when.
    promised: BTreeMap<Key, (Terms, Instant)>,
    /// The number of the last receipt that was sent.
    number: u64,
    granted: usize,
    restarts: usize,
}

impl Run {
    fn new(fault: Fault, at: Range<usize>) -> Self {
        let disk = Faulty(Rc::new(RefCell::new(Disk {
            rows: MemoryStore::default(),
            writes: 0,
            fault,
            at,
            killed: false,
            failed: 0,
        })));
        let world = World::over(disk.clone());
        let mut run = Self {
            disk,
            world,
            promised: BTreeMap::new(),
            number: 0,
            granted: 0,
            restarts: 0,
        };
        run.survive();
        run
    }

    /// Whether the process was not killed. If it was, it is started again: nothing of what it was doing was told.
    fn survive(&mut self) -> bool {
        if !self.disk.0.borrow().killed {
            self.own_lease_is_on_the_disk();
            return true;
        }
        self.restart();
        false
    }

    fn restart(&mut self) {
        self.disk.0.borrow_mut().killed = false;
        self.restarts += 1;
        self.world.pass_nothing(Duration::from_millis(1));
        // The grid's first node is started as its founder until it has granted something.
        let founder = self.granted == 0;
        self.world.restart(founder, self.disk.clone());
        let peer = self.world.peer(OTHERS[0]);
        self.input(Input::MemberUp { peer });
        for _ in 0..7 {
            self.pass(Duration::from_secs(1));
        }
        assert!(self.world.node.is_ready(), "it votes again");
        self.everything_promised_is_kept();
    }

    fn input(&mut self, input: Input) {
        self.world.node.handle_input(input, self.world.now);
        self.outputs();
        self.survive();
    }

    fn pass(&mut self, time: Duration) {
        self.world.pass_nothing(time);
        self.world.node.handle_timeout(self.world.now);
        self.outputs();
        self.survive();
    }

    /// One other member answers what it is asked for its state; nobody else answers anything.
    fn outputs(&mut self) {
        while let Some(output) = self.world.node.poll_output() {
            if self.disk.0.borrow().killed {
                continue;
            }
            let Output::Send { to, id, bytes } = output else {
                continue;
            };
            let other = to == self.world.peer(OTHERS[0]);
            if other && let Some(Request::Merge { .. }) = wire::from_bytes(&bytes) {
                let state = State {
                    whole: true,
                    credential: self.world.members[OTHERS[0]].der.to_vec(),
                    members: Vec::new(),
                    summaries: Vec::new(),
                    next: None,
                };
                let result = Ok(wire::to_bytes(&Answer::State(state)));
                let input = Input::Reply { id, result };
                self.world.node.handle_input(input, self.world.now);
            }
        }
    }

    /// Asks, and holds the witness to its answer. `None` where it was killed.
    fn ask(&mut self, from: usize, request: &Request) -> Option<Answer> {
        let failed = self.disk.0.borrow().failed;
        // Who gives up relies on nothing any more, whether or not it is heard.
        if let Request::Release { key, .. } = request {
            self.promised.remove(key);
        }
        let answer = self.world.ask(from, request);
        if !self.survive() {
            return None;
        }
        match (request, &answer) {
            (Request::Claim(claim), Answer::Granted { receipt, .. }) => {
                let now = self.world.now.instant;
                let key = claim.terms.key;
                if let Some((terms, until)) = self.promised.get(&key) {
                    assert!(
                        *until <= now || terms.holder == claim.terms.holder,
                        "promised to another: {terms:?}"
                    );
                }
                assert!(receipt.number > self.number, "numbers rise, also over restarts");
                self.number = receipt.number;
                self.granted += 1;
                let until = now + Duration::from_millis(receipt.ttl_ms.into());
                self.promised.insert(key, (claim.terms.clone(), until));
                assert!(self.is_on_the_disk(key), "answered, and not on the disk");
                assert!(self.number_on_the_disk() >= receipt.number);
            }
            (Request::Claim(claim), Answer::Unready) if self.disk.0.borrow().failed == failed => {
                panic!("abstains for no reason: {:?}", claim.terms);
            }
            (Request::Release { key, .. }, Answer::Done) => {
                let holder = self.world.peer(from);
                if self
                    .promised
                    .get(key)
                    .is_some_and(|(terms, _)| terms.holder == holder)
                {
                    self.promised.remove(key);
                }
            }
            _ => {}
        }
        Some(answer)
    }

    fn claim(&mut self, from: usize, terms: &Terms, seq: u64, certified: bool) -> Option<Answer> {
        let mut terms = terms.clone();
        let proof = certified.then(|| {
            let certificate = self.world.certify(&terms, &OTHERS, |_| {});
            terms.since = Some(certificate.since());
            self.world.proof(&certificate)
        });
        let claim = self.world.claim_of(from, &terms, seq, proof);
        self.ask(from, &Request::Claim(claim))
    }

    fn rows(&self, table: Table) -> Rows {
        self.disk.0.borrow_mut().rows.load(table).unwrap()
    }

    fn is_on_the_disk(&self, key: Key) -> bool {
        self.rows(Table::Grants).iter().any(|(row, _)| *row == key.0)
    }

    fn number_on_the_disk(&self) -> u64 {
        let meta = self.rows(Table::Meta);
        let row = meta.iter().find(|(name, _)| name == b"number");
        row.map_or(0, |(_, value)| {
            u64::from_be_bytes(value.as_slice().try_into().unwrap())
        })
    }

    fn own_lease_is_on_the_disk(&self) {
        let Some(lease) = self.world.node.lease(Kind::Addr) else {
            return;
        };
        if lease.until > self.world.now.instant {
            for certificate in [lease.certificate, lease.name_certificate] {
                assert!(
                    self.is_on_the_disk(certificate.terms.key),
                    "held, and not on the disk"
                );
            }
        }
    }

    fn everything_promised_is_kept(&mut self) {
        let now = self.world.now.instant;
        self.promised.retain(|_, (_, until)| *until > now);
        let promised: Vec<_> = self.promised.values().cloned().collect();
        let holder_of = |world: &World<Faulty>, member| -> PeerId { world.peer(member) };
        for (terms, _) in promised {
            let asker = if terms.holder == holder_of(&self.world, LIAR) {
                HOLDER
            } else {
                LIAR
            };
            let theirs = self.world.terms(asker, terms.leased);
            if theirs.key != terms.key {
                continue;
            }
            match self.claim(asker, &theirs, 1, false) {
                Some(Answer::Refused(Refusal::Taken { holder, .. })) => assert_eq!(holder, terms.holder),
                None | Some(Answer::Unready) => {}
                other => panic!("promised to {}: {other:?}", terms.holder),
            }
        }
    }

    /// Claims, votes lost, renewals, hand-overs, releases, the next holder, the end of leases, and a restart.
    fn script(&mut self) {
        let name = self.world.members[WITNESS].name.clone();
        let request = AcquireRequest::addr(name, Some(self.world.addr(100)));
        self.world.node.acquire(request, self.world.now);
        self.survive();
        let peer = self.world.peer(OTHERS[0]);
        self.input(Input::MemberUp { peer });
        let [first, second, third] = [0, 1, 2].map(|index| self.world.addr(index));
        let theirs = self.world.terms(HOLDER, first);
        self.claim(HOLDER, &theirs, 1, false);
        self.claim(LIAR, &self.world.terms(LIAR, first), 1, false);
        self.claim(HOLDER, &theirs, 2, true);
        self.claim(HOLDER, &self.world.name_terms(HOLDER, first), 2, true);
        for (member, addr) in [(OTHERS[0], second), (OTHERS[1], third), (OTHERS[2], third)] {
            self.claim(member, &self.world.terms(member, addr), 1, false);
        }
        let certificate = self.world.certify(&theirs, &OTHERS, |_| {});
        let handed = wire::Handed {
            proof: self.world.proof(&certificate),
            remaining_ms: LONG,
        };
        self.ask(OTHERS[0], &Request::HandOver(vec![handed]));
        self.pass(Duration::from_secs(12));
        self.claim(LIAR, &self.world.terms(LIAR, second), 2, false);
        self.pass(Duration::from_secs(300));
        self.claim(HOLDER, &theirs, 3, true);
        let (key, instance) = (theirs.key, theirs.instance);
        self.ask(
            HOLDER,
            &Request::Release {
                key,
                instance,
                seq: 3,
                held: true,
            },
        );
        self.claim(LIAR, &self.world.terms(LIAR, first), 3, false);
        self.pass(Duration::from_secs(11));
        self.claim(OTHERS[1], &self.world.terms(OTHERS[1], second), 4, false);
        self.everything_promised_is_kept();
    }

    /// The disk has room again: all is as if nothing had been, also after another restart.
    fn recover(&mut self) {
        self.disk.0.borrow_mut().at = 0..0;
        self.everything_promised_is_kept();
        let fresh = self.world.terms(LIAR, self.world.addr(50));
        let answer = self.claim(LIAR, &fresh, 9, false);
        assert!(matches!(answer, Some(Answer::Granted { .. })), "{answer:?}");
        let lease = self.world.terms(HOLDER, self.world.addr(51));
        let answer = self.claim(HOLDER, &lease, 9, true);
        assert!(matches!(answer, Some(Answer::Granted { .. })), "{answer:?}");
        self.restart();
        assert!(self.promised.len() >= 2);
        assert_eq!(self.world.stats().store_failures, 0);
    }

    fn writes(&self) -> usize {
        self.disk.0.borrow().writes
    }
}

/// The script without a fault does what the faults are put into.
fn writes_of_the_script() -> usize {
    let mut run = Run::new(Fault::Refused, 0..0);
    run.script();
    assert_eq!((run.restarts, run.granted), (0, 9));
    let tables = Table::ALL.map(|table| run.rows(table).len());
    assert!(tables.iter().all(|rows| *rows > 0), "{tables:?}");
    run.writes()
}

#[test]
fn a_witness_killed_or_refused_at_any_write_keeps_what_it_answered_and_goes_on() {
    let writes = writes_of_the_script();
    assert!(writes > 20, "{writes}");
    for fault in FAULTS {
        for at in 1..=writes {
            let mut run = Run::new(fault, at..at + 1);
            run.script();
            assert_eq!(run.disk.0.borrow().failed, 1, "{fault:?} at write {at}");
            let killed = matches!(fault, Fault::KilledBefore | Fault::KilledAfter);
            assert_eq!(run.restarts, usize::from(killed));
            run.recover();
        }
    }
}

#[test]
fn what_comes_with_one_message_is_one_transaction() {
    let mut run = Run::new(Fault::Refused, 0..0);
    let theirs = run.world.terms(HOLDER, run.world.addr(0));
    run.claim(HOLDER, &theirs, 1, false);
    let before = run.writes();
    let certified = run.rows(Table::Certificates).len();
    run.claim(HOLDER, &theirs, 2, true);
    assert_eq!(run.rows(Table::Certificates).len(), certified + 1);
    assert_eq!(run.writes(), before + 1, "the certificate with the grant");
    let certificates = [1, 2, 3].map(|place| {
        let terms = run.world.terms(OTHERS[0], run.world.addr(place));
        let certificate = run.world.certify(&terms, &OTHERS, |_| {});
        wire::Handed {
            proof: run.world.proof(&certificate),
            remaining_ms: LONG,
        }
    });
    run.ask(OTHERS[0], &Request::HandOver(certificates.to_vec()));
    assert_eq!(run.rows(Table::Certificates).len(), certified + 4);
    assert_eq!(run.writes(), before + 2, "all certificates that were handed over");
}

#[test]
fn a_disk_that_stays_full_from_any_write_on_lets_nothing_new_be_granted() {
    for from in 1..=writes_of_the_script() {
        let mut run = Run::new(Fault::Refused, from..usize::MAX);
        run.script();
        let granted = run.granted;
        let fresh = run.world.terms(LIAR, run.world.addr(52));
        assert_eq!(run.claim(LIAR, &fresh, 8, false), Some(Answer::Unready));
        assert_eq!(run.granted, granted);
        assert_eq!(run.world.stats().store_failures, run.disk.0.borrow().failed);
        run.recover();
    }
}

#[test]
fn what_has_ended_leaves_the_disk_though_it_was_full_at_the_time() {
    for full in [false, true] {
        let mut run = Run::new(Fault::Refused, 0..0);
        run.script();
        if full {
            run.disk.0.borrow_mut().at = 0..usize::MAX;
        }
        run.world.node.release_all(run.world.now);
        run.pass(Duration::from_secs(3600));
        run.disk.0.borrow_mut().at = 0..0;
        run.pass(Duration::from_secs(60));
        assert_eq!(run.rows(Table::Grants), [], "full: {full}");
        assert_eq!(run.rows(Table::Certificates), [], "full: {full}");
    }
}
