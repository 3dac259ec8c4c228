//! What a member that means no good can send, one kind a test, against a witness with real keys: each is a counted
//! drop or a refusal that says why, and never costs another member its lease.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests fail the test"
)]

use std::time::Duration;

use aerie_dht_proto::limits::{CLOCK_SKEW, MAX_MESSAGE};
use aerie_dht_proto::{AcquireRequest, Certificate, Input, Kind, Proof, Stats, Terms, Want, addr_key};
use aerie_types::{GridId, Instance, Role, VirtualAddr, WallMillis};

mod common;

use common::wire::{self, Answer, Gossip, Refusal, Request};
use common::{HOLDER, LIAR, LONG, OTHERS, WITNESS, World, unmoved};

/// Everything that has been counted as dropped or refused.
fn dropped(stats: &Stats) -> u64 {
    stats.malformed
        + stats.bad_certificates
        + stats.bad_credentials
        + stats.bad_entries
        + stats.refused
        + stats.over_bound
        + stats.too_far
}

/// A certificate that proves nothing: a claim on it is refused as such, a witness that is handed it drops it, and
/// a holder whose key it names is not moved. `forge` makes it for the terms it is given.
fn proves_nothing(forge: impl Fn(&World, &Terms) -> Certificate) {
    let (mut world, lease) = World::with_lease();
    let free = world.terms(LIAR, world.addr(9));
    let forged = forge(&world, &free);
    let since = Terms {
        since: Some(forged.since()),
        ..free.clone()
    };
    let counted = world.stats().bad_certificates;
    let answer = world.claim(LIAR, &since, 1, Some(world.proof(&forged)));
    assert_eq!(answer, Answer::Refused(Refusal::BadProof));
    assert_eq!(world.stats().bad_certificates, counted + 1);
    assert_eq!(world.hand_over(LIAR, &forged, LONG), Answer::Done);
    assert_eq!(world.stats().bad_certificates, counted + 2);
    assert_eq!(world.look_up(free.key), None);

    let older = Terms {
        since: Some(WallMillis(1)),
        ..world.terms(LIAR, lease.terms.leased)
    };
    let forged = forge(&world, &older);
    unmoved(&mut world, &lease, |world| {
        let counted = world.stats().bad_certificates;
        world.hand_over(LIAR, &forged, LONG);
        let handed = wire::Handed {
            proof: world.proof(&forged),
            remaining_ms: LONG,
        };
        world.ask(LIAR, &Request::Conflict(handed));
        world.claim(LIAR, &older, 1, Some(world.proof(&forged)));
        assert_eq!(world.stats().bad_certificates, counted + 3);
    });
}

#[test]
fn what_the_forged_certificates_below_are_made_from_is_one_that_counts() {
    let (mut world, _) = World::with_lease();
    let free = world.terms(LIAR, world.addr(9));
    let right = world.certify(&free, &OTHERS, |_| {});
    let since = Terms {
        since: Some(right.since()),
        ..free
    };
    let answer = world.claim(LIAR, &since, 1, Some(world.proof(&right)));
    assert!(
        matches!(&answer, Answer::Granted { receipt, .. } if receipt.ttl_ms == LONG),
        "{answer:?}"
    );
    assert_eq!(world.look_up(since.key).unwrap().0, right);
}

#[test]
fn a_long_lease_of_an_address_takes_the_long_certificate_of_its_own_name_with_it() {
    let (mut world, lease) = World::with_lease();
    let free = world.terms(LIAR, world.addr(9));
    let right = world.certify(&free, &OTHERS, |_| {});
    let since = Terms {
        since: Some(right.since()),
        ..free.clone()
    };
    let short = world.certify(&world.name_terms(LIAR, free.leased), &OTHERS, |receipt| {
        receipt.ttl_ms = 10_000;
    });
    let homes = [
        None,
        Some(world.home(HOLDER, &free)),
        Some(world.home(LIAR, &lease.terms)),
        Some(world.proof(&right)),
        Some(world.proof(&short)),
    ];
    unmoved(&mut world, &lease, |world| {
        for home in homes {
            let mut claim = world.claim_of(LIAR, &since, 1, Some(world.proof(&right)));
            claim.home = home;
            let answer = world.ask(LIAR, &Request::Claim(claim));
            assert_eq!(answer, Answer::Refused(Refusal::BadProof));
        }
    });
}

#[test]
fn a_message_above_the_bound_or_cut_anywhere_is_counted_and_answered() {
    let (mut world, lease) = World::with_lease();
    let terms = world.terms(LIAR, world.addr(9));
    let claim = Request::Claim(world.claim_of(LIAR, &terms, 1, Some(world.proof(&lease))));
    let bytes = wire::to_bytes(&claim);
    unmoved(&mut world, &lease, |world| {
        let counted = world.stats().malformed;
        for length in 0..bytes.len() {
            let answer = world.ask_bytes(LIAR, bytes[..length].to_vec());
            assert_eq!(
                answer,
                Answer::Malformed,
                "cut to {length} of {} bytes",
                bytes.len()
            );
        }
        let mut long = bytes.clone();
        long.resize(MAX_MESSAGE + 1, 0);
        assert_eq!(world.ask_bytes(LIAR, long), Answer::Malformed);
        let followed = [bytes.as_slice(), &[0]].concat();
        assert_eq!(world.ask_bytes(LIAR, followed), Answer::Malformed);
        let all = bytes.len() as u64 + 2;
        assert_eq!(world.stats().malformed, counted + all);
    });
}

#[test]
fn a_claim_for_a_holder_that_did_not_send_it_is_counted_and_changes_nothing() {
    let (mut world, lease) = World::with_lease();
    unmoved(&mut world, &lease, |world| {
        let counted = world.stats().malformed;
        for terms in [lease.terms.clone(), world.terms(HOLDER, world.addr(9))] {
            let proof = world.proof(&lease);
            let replayed = world.claim(LIAR, &terms, 5, Some(proof));
            assert_eq!(replayed, Answer::Malformed);
        }
        assert_eq!(world.stats().malformed, counted + 2);
    });
}

#[test]
fn a_claim_repeated_after_a_later_one_or_after_its_release_comes_too_late() {
    let mut world = World::new();
    let terms = world.terms(HOLDER, world.addr(0));
    assert!(matches!(
        world.claim(HOLDER, &terms, 1, None),
        Answer::Granted { .. }
    ));
    assert!(matches!(
        world.claim(HOLDER, &terms, 2, None),
        Answer::Granted { .. }
    ));
    let late = Answer::Refused(Refusal::Late);
    assert_eq!(world.claim(HOLDER, &terms, 1, None), late);
    let (key, instance) = (terms.key, terms.instance);
    let release = Request::Release {
        key,
        instance,
        seq: 2,
        held: true,
    };
    assert_eq!(world.ask(HOLDER, &release), Answer::Done);
    assert_eq!(world.claim(HOLDER, &terms, 2, None), late);
    assert!(matches!(
        world.claim(HOLDER, &terms, 3, None),
        Answer::Granted { .. }
    ));
    // The release once more: what was claimed after it stays.
    assert_eq!(world.ask(HOLDER, &release), Answer::Done);
    let theirs = world.terms(LIAR, terms.leased);
    let answer = world.claim(LIAR, &theirs, 1, None);
    assert!(
        matches!(answer, Answer::Refused(Refusal::Taken { .. })),
        "{answer:?}"
    );
}

#[test]
fn a_release_by_another_member_or_instance_changes_nothing() {
    let (mut world, lease) = World::with_lease();
    let key = lease.terms.key;
    let (mine, theirs) = (lease.terms.instance, Instance(7));
    for (from, instance) in [(LIAR, mine), (LIAR, theirs), (HOLDER, theirs)] {
        let seq = u64::MAX;
        let request = Request::Release {
            key,
            instance,
            seq,
            held: true,
        };
        assert_eq!(world.ask(from, &request), Answer::Done);
        let answer = world.claim(LIAR, &world.terms(LIAR, lease.terms.leased), 1, None);
        assert!(
            matches!(answer, Answer::Refused(Refusal::Taken { holder, .. }) if holder == lease.terms.holder),
            "{answer:?}"
        );
    }
    let renewal = Terms {
        since: Some(lease.since()),
        ..lease.terms.clone()
    };
    let answer = world.claim(HOLDER, &renewal, 3, Some(world.proof(&lease)));
    assert!(matches!(answer, Answer::Granted { .. }), "{answer:?}");
}

#[test]
fn terms_of_another_grid_are_counted_as_malformed() {
    let (mut world, lease) = World::with_lease();
    let addr = world.addr(9);
    let elsewhere = GridId([9; 16]);
    let named = Terms {
        grid: elsewhere,
        ..world.terms(LIAR, addr)
    };
    let keyed = Terms {
        key: addr_key(elsewhere, addr),
        ..world.terms(LIAR, addr)
    };
    unmoved(&mut world, &lease, |world| {
        let counted = world.stats().malformed;
        for terms in [named, keyed] {
            assert_eq!(world.claim(LIAR, &terms, 1, None), Answer::Malformed);
        }
        assert_eq!(world.stats().malformed, counted + 2);
    });
}

#[test]
fn a_certificate_of_another_grid_proves_nothing() {
    proves_nothing(|world, terms| {
        let elsewhere = Terms {
            grid: GridId([9; 16]),
            ..terms.clone()
        };
        Certificate {
            terms: terms.clone(),
            ..world.certify(&elsewhere, &OTHERS, |_| {})
        }
    });
}

#[test]
fn a_certificate_with_a_receipt_that_another_signed_proves_nothing() {
    proves_nothing(|world, terms| {
        let mut forged = world.certify(terms, &OTHERS, |_| {});
        let other = world.receipt(LIAR, terms, |receipt| {
            receipt.witness = forged.receipts[0].witness
        });
        forged.receipts[0] = other;
        forged
    });
}

/// The receipts that are not needed would tell which of two certificates is the later.
#[test]
fn a_certificate_with_a_forged_receipt_beside_enough_good_ones_proves_nothing() {
    proves_nothing(|world, terms| {
        let mut forged = world.certify(terms, &OTHERS, |_| {});
        let more = world.receipt(LIAR, terms, |receipt| {
            receipt.witness = world.peer(HOLDER);
            receipt.number = u64::MAX;
        });
        forged.receipts.push(more);
        forged.receipts.sort_by_key(|receipt| receipt.witness);
        forged
    });
}

#[test]
fn a_certificate_with_receipts_for_other_terms_proves_nothing() {
    proves_nothing(|world, terms| {
        let other = world.terms(LIAR, world.addr(10));
        let mut forged = world.certify(terms, &OTHERS, |_| {});
        forged.receipts[1] = world.certify(&other, &OTHERS, |_| {}).receipts[1].clone();
        forged
    });
}

#[test]
fn a_certificate_with_too_few_receipts_proves_nothing() {
    proves_nothing(|world, terms| world.certify(terms, &OTHERS[..2], |_| {}));
    proves_nothing(|world, terms| world.certify(terms, &[], |_| {}));
}

#[test]
fn a_certificate_that_names_one_witness_twice_proves_nothing() {
    proves_nothing(|world, terms| {
        let mut forged = world.certify(terms, &OTHERS[..2], |_| {});
        let again = world.receipt(OTHERS[1], terms, |receipt| receipt.number = 2);
        let at = forged
            .receipts
            .iter()
            .position(|receipt| receipt.witness == again.witness);
        forged.receipts.insert(at.unwrap(), again);
        forged
    });
}

#[test]
fn a_certificate_with_receipts_out_of_order_or_more_than_the_bound_proves_nothing() {
    proves_nothing(|world, terms| {
        let mut forged = world.certify(terms, &OTHERS, |_| {});
        forged.receipts.reverse();
        forged
    });
    proves_nothing(|world, terms| {
        let mut forged = world.certify(terms, &OTHERS, |_| {});
        let last = forged.receipts[2].clone();
        for byte in 0..30 {
            let mut more = last.clone();
            more.witness.0[0] = 0xff;
            more.witness.0[31] = byte;
            forged.receipts.push(more);
        }
        forged.receipts.sort_by_key(|receipt| receipt.witness);
        forged
    });
}

#[test]
fn a_certificate_that_has_ended_proves_nothing() {
    let ended = Duration::from_millis(LONG.into()) + CLOCK_SKEW;
    proves_nothing(|world, terms| {
        world.certify(terms, &OTHERS, |receipt| {
            receipt.time = WallMillis(receipt.time.0 - ended.as_millis() as u64);
        })
    });
}

#[test]
fn a_certificate_from_beyond_the_skew_of_clocks_proves_nothing() {
    proves_nothing(|world, terms| {
        world.certify(terms, &OTHERS, |receipt| {
            receipt.time = receipt.time.plus(CLOCK_SKEW + Duration::from_millis(1));
        })
    });
    proves_nothing(|world, terms| {
        world.certify(terms, &OTHERS, |receipt| receipt.time = WallMillis(u64::MAX))
    });
}

#[test]
fn a_certificate_of_no_life_proves_nothing() {
    proves_nothing(|world, terms| world.certify(terms, &OTHERS, |receipt| receipt.ttl_ms = 0));
}

#[test]
fn a_certificate_whose_count_of_members_asks_for_more_receipts_proves_nothing() {
    for members in [6, 13, 1000, u32::MAX] {
        proves_nothing(|world, terms| {
            let mut left = OTHERS.len();
            world.certify(terms, &OTHERS, |receipt| {
                left -= 1;
                if left == 0 {
                    receipt.members = members;
                }
            })
        });
    }
}

#[test]
fn a_certificate_that_a_stranger_signed_proves_nothing() {
    let (mut world, lease) = World::with_lease();
    let ca = common::grid_ca(world.now.wall);
    let life = Duration::from_secs(3600);
    world
        .members
        .push(common::enrol(&ca, 40, Role::Worker.into(), world.now.wall, life));
    let older = Terms {
        since: Some(WallMillis(1)),
        ..world.terms(LIAR, lease.terms.leased)
    };
    let forged = world.certify(&older, &[3, 4, 6], |_| {});
    unmoved(&mut world, &lease, |world| {
        let counted = world.stats();
        world.hand_over(LIAR, &forged, LONG);
        let stats = world.stats();
        assert!(dropped(&stats) > dropped(&counted), "{stats:?}");
        // A stranger's credential is not learned, so that its receipt is one of an unknown witness.
        let answer = world.claim(LIAR, &older, 1, Some(world.proof(&forged)));
        assert_eq!(answer, Answer::NeedCredentials);
    });
}

#[test]
fn numbers_of_grants_at_the_end_of_their_range_disturb_neither_a_witness_nor_a_reader() {
    let (mut world, lease) = World::with_lease();
    let terms = world.terms(LIAR, world.addr(9));
    let absurd = world.certify(&terms, &OTHERS, |receipt| receipt.number = u64::MAX);
    unmoved(&mut world, &lease, |world| {
        assert_eq!(world.hand_over(LIAR, &absurd, LONG), Answer::Done);
    });
    let numbers = [1, 2].map(|seq| {
        let since = Terms {
            since: Some(absurd.since()),
            ..terms.clone()
        };
        match world.claim(LIAR, &since, seq, Some(world.proof(&absurd))) {
            Answer::Granted { receipt, .. } => receipt.number,
            other => panic!("{other:?}"),
        }
    });
    assert_eq!(numbers[1], numbers[0] + 1);
    assert!(
        numbers[1] < u64::MAX / 2,
        "its own numbers, which are times: {numbers:?}"
    );
    // A reader remembers the numbers of what it uses, and reads a later certificate of another witness's number.
    for number in [u64::MAX, 1] {
        let again = world.certify(&terms, &OTHERS, |receipt| receipt.number = number);
        world.hand_over(LIAR, &again, LONG);
        world.node.look_up(terms.key, world.now);
    }
}

#[test]
fn a_life_of_nothing_or_of_weeks_is_granted_within_the_bounds() {
    let mut world = World::new();
    let terms = world.terms(LIAR, world.addr(9));
    for (seq, asked, given) in [(1, u32::MAX, 10_000), (2, 0, 0)] {
        let mut claim = world.claim_of(LIAR, &terms, seq, None);
        claim.ttl_ms = asked;
        let answer = world.ask(LIAR, &Request::Claim(claim));
        assert!(
            matches!(&answer, Answer::Granted { receipt, .. } if receipt.ttl_ms == given),
            "{answer:?}"
        );
    }
    // The shorter wish did not shorten what was promised.
    let answer = world.claim(HOLDER, &world.terms(HOLDER, terms.leased), 1, None);
    assert!(
        matches!(
            answer,
            Answer::Refused(Refusal::Taken {
                remaining_ms: 10_000,
                ..
            })
        ),
        "{answer:?}"
    );
    // Nor does a certificate, or a witness's word, hold longer than a lease.
    let weeks = world.certify(&terms, &OTHERS, |receipt| receipt.ttl_ms = u32::MAX);
    world.hand_over(LIAR, &weeks, u32::MAX);
    let (_, remaining) = world.look_up(terms.key).unwrap();
    assert_eq!(remaining, LONG);
    let since = Terms {
        since: Some(weeks.since()),
        ..terms
    };
    let mut claim = world.claim_of(LIAR, &since, 3, Some(world.proof(&weeks)));
    claim.ttl_ms = u32::MAX;
    let answer = world.ask(LIAR, &Request::Claim(claim));
    assert!(
        matches!(&answer, Answer::Granted { receipt, .. } if receipt.ttl_ms == LONG),
        "{answer:?}"
    );
}

#[test]
fn a_word_that_a_lease_ends_sooner_does_not_shorten_it() {
    let (mut world, lease) = World::with_lease();
    unmoved(&mut world, &lease, |world| {
        for remaining in [0, 1] {
            assert_eq!(world.hand_over(LIAR, &lease, remaining), Answer::Done);
        }
    });
}

#[test]
fn a_name_that_is_not_the_credentials_is_refused_and_counted() {
    let (mut world, lease) = World::with_lease();
    let addr = world.addr(9);
    let name = world.members[HOLDER].name.clone();
    let by_addr = Terms {
        name: name.clone(),
        ..world.terms(LIAR, addr)
    };
    let by_name = Terms {
        name,
        key: world.name_terms(HOLDER, addr).key,
        ..world.terms(LIAR, addr)
    };
    unmoved(&mut world, &lease, |world| {
        let counted = world.stats().bad_credentials;
        for terms in [by_addr, by_name] {
            let answer = world.claim(LIAR, &terms, 1, None);
            assert_eq!(answer, Answer::Refused(Refusal::BadCredential));
        }
        assert_eq!(world.stats().bad_credentials, counted + 2);
    });
}

#[test]
fn a_credential_that_has_ended_or_is_of_another_ca_is_refused_and_counted() {
    let mut world = World::new();
    let life = Duration::from_secs(3600);
    let past = WallMillis(world.now.wall.0 - 2 * 3_600_000);
    let other = common::grid_ca(world.now.wall);
    let ended = common::enrol(&world.ca, 41, Role::Worker.into(), past, life);
    let strange = common::enrol(&other, 42, Role::Worker.into(), world.now.wall, life);
    world.members.extend([ended, strange]);
    for member in [6, 7] {
        let counted = world.stats().bad_credentials;
        let terms = world.terms(member, world.addr(9));
        let answer = world.claim(member, &terms, 1, None);
        assert_eq!(answer, Answer::Refused(Refusal::BadCredential));
        assert!(world.stats().bad_credentials > counted);
        let members = vec![wire::Told {
            credential: world.members[member].der.to_vec(),
            age_ms: 0,
        }];
        let credential = world.members[LIAR].der.to_vec();
        let merge = Request::Merge {
            credential,
            votes: false,
            members,
            after: None,
        };
        world.ask(LIAR, &merge);
        assert_eq!(world.node.members_known(world.now), 1, "nobody invents members");
    }
}

#[test]
fn an_address_beside_the_range_is_refused_by_its_name() {
    let mut world = World::new();
    let addr: VirtualAddr = "192.168.0.1".parse::<std::net::Ipv4Addr>().unwrap().into();
    let terms = world.terms(LIAR, addr);
    let answer = world.claim(LIAR, &terms, 1, None);
    assert_eq!(
        answer,
        Answer::Refused(Refusal::OutOfRange { leased: terms.leased })
    );
}

#[test]
fn gossip_of_a_restart_that_nobody_made_costs_no_lease() {
    let mut world = World::new();
    world.node.acquire(
        AcquireRequest::addr(world.members[WITNESS].name.clone(), None),
        world.now,
    );
    let held = world.node.lease(Kind::Addr).expect("nobody else is there");
    let gossip = Gossip::Restarting {
        holder: world.peer(WITNESS),
        instance: Instance(3),
    };
    let (from, bytes) = (world.peer(LIAR), wire::to_bytes(&gossip));
    world.node.handle_input(Input::Gossip { from, bytes }, world.now);
    world.pass(Duration::from_secs(5));
    assert_eq!(
        world.node.lease(Kind::Addr).map(|lease| lease.leased),
        Some(held.leased)
    );
}

#[test]
fn a_certificate_of_witnesses_whose_credentials_do_not_come_along_is_counted() {
    let (mut world, _) = World::with_lease();
    let ca = common::grid_ca(world.now.wall);
    let life = Duration::from_secs(3600);
    for number in [40, 41, 42] {
        world.members.push(common::enrol(
            &ca,
            number,
            Role::Worker.into(),
            world.now.wall,
            life,
        ));
    }
    let terms = world.terms(LIAR, world.addr(9));
    let forged = world.certify(&terms, &[6, 7, 8], |_| {});
    let proof = Proof {
        certificate: forged,
        credentials: Vec::new(),
    };
    let counted = world.stats().bad_certificates;
    let handed = vec![wire::Handed {
        proof,
        remaining_ms: LONG,
    }];
    world.ask(LIAR, &Request::HandOver(handed));
    assert_eq!(world.stats().bad_certificates, counted + 1);
    assert_eq!(world.look_up(terms.key), None);
}

#[test]
fn a_certificate_that_was_given_up_takes_nothing_from_the_next_holder() {
    let (mut world, lease) = World::with_lease();
    let (key, instance) = (lease.terms.key, lease.terms.instance);
    let release = Request::Release {
        key,
        instance,
        seq: 2,
        held: true,
    };
    assert_eq!(world.ask(HOLDER, &release), Answer::Done);
    world.pass(Duration::from_secs(60));
    world.node.acquire(
        AcquireRequest {
            name: world.members[WITNESS].name.clone(),
            want: Want::This(lease.terms.leased),
        },
        world.now,
    );
    let held = world.node.lease(Kind::Addr).expect("the address is free");
    assert_eq!(world.hand_over(LIAR, &lease, LONG), Answer::Done);
    let handed = wire::Handed {
        proof: world.proof(&lease),
        remaining_ms: LONG,
    };
    world.ask(LIAR, &Request::Conflict(handed));
    assert_eq!(world.node.lease(Kind::Addr), Some(held));
}
