use super::super::book::{FIRST_PAUSE, MAX_PAUSE, MAX_PINNED_PAUSE};
use super::*;
use crate::peer;

const NOW: Duration = Duration::ZERO;
const LATER: Duration = Duration::from_secs(10);

fn contact(index: usize) -> Contact {
    peer(index).into()
}

fn beginning_at(first: usize) -> Begin {
    Begin {
        bootstrap: vec![contact(first)],
        ..Begin::default()
    }
}

fn wishes(mesh: &mut Mesh) -> Vec<Wish> {
    std::iter::from_fn(|| mesh.poll_wish()).collect()
}

/// Lets every dial succeed until there is nothing to dial.
fn settle(mesh: &mut Mesh) {
    loop {
        mesh.tick_at = Some(LATER);
        mesh.handle_timeout(LATER);
        let dials: Vec<_> = wishes(mesh)
            .into_iter()
            .filter_map(|wish| match wish {
                Wish::Dial(contact) => Some(contact),
                _ => None,
            })
            .collect();
        if dials.is_empty() {
            return;
        }
        assert!(dials.len() <= MAX_ATTEMPTS);
        for contact in dials {
            mesh.connected(contact, LATER);
        }
    }
}

#[test]
fn everybody_is_dialled_while_there_is_room_and_then_the_nearest_only() {
    let mut mesh = Mesh::new(contact(0), &beginning_at(1), 30, 1, NOW);
    settle(&mut mesh);
    assert_eq!(mesh.live().collect::<Vec<_>>(), [contact(1)]);
    let named: Vec<_> = (2..200).map(contact).collect();
    assert!(mesh.answered(&named, NOW));
    settle(&mut mesh);
    let mut nearest: Vec<_> = (1..200).map(contact).collect();
    nearest.sort_by_key(|other| other.distance(&contact(0).position));
    let live: BTreeSet<_> = mesh.live().collect();
    assert!(nearest.iter().take(K).all(|near| live.contains(near)));
    assert!(live.len() >= 30 && live.len() <= 30 + K, "{}", live.len());

    mesh.handle_timeout(PRUNE_EVERY);
    let dropped: Vec<_> = wishes(&mut mesh)
        .into_iter()
        .filter_map(|wish| match wish {
            Wish::Close(contact) => Some(contact),
            _ => None,
        })
        .collect();
    assert_eq!(dropped.len(), live.len() - 30);
    assert!(!dropped.contains(&contact(1)));
    assert!(nearest.iter().take(K).all(|near| !dropped.contains(near)));
}

/// A member that has no room, the nearest of the others, the farthest of them, and those between.
fn full() -> (Mesh, Contact, Contact, Vec<Contact>) {
    let mut mesh = Mesh::new(contact(0), &Begin::default(), 30, 1, NOW);
    let mut others: Vec<_> = (1..=40).map(contact).collect();
    others.sort_by_key(|other| other.distance(&contact(0).position));
    for other in &others {
        mesh.connected(*other, NOW);
    }
    let _ = wishes(&mut mesh);
    let (near, far) = (others.remove(0), others.remove(38));
    (mesh, near, far, others)
}

#[test]
fn a_near_one_that_was_lost_is_dialled_although_there_is_no_room_and_a_far_one_is_not() {
    let (mut mesh, near, far, _) = full();
    for lost in [near, far] {
        mesh.closed(lost, NOW);
    }
    for _ in 0..3 {
        let soon = mesh.poll_timeout().unwrap() + MAX_PAUSE;
        mesh.tick_at = Some(soon);
        mesh.handle_timeout(soon);
        let dials = wishes(&mut mesh);
        assert!(
            dials.contains(&Wish::Dial(near)) && !dials.contains(&Wish::Dial(far)),
            "{dials:?}"
        );
        mesh.dial_failed(near, soon);
    }
}

#[test]
fn when_one_that_was_missed_is_back_the_near_ones_that_are_missed_are_dialled_at_once() {
    let (mut mesh, near, far, others) = full();
    let (second, third) = (others[0], others[1]);
    for lost in [near, second, third] {
        mesh.closed(lost, NOW);
        for _ in 0..9 {
            mesh.dial(lost);
            mesh.dial_failed(lost, NOW);
        }
    }
    let _ = wishes(&mut mesh);
    let dialled_within = |mesh: &mut Mesh, end: Duration| {
        while let Some(at) = mesh.poll_timeout().filter(|at| *at <= end) {
            mesh.handle_timeout(at);
        }
        let wishes = wishes(mesh);
        let dials = wishes.iter().filter(|wish| matches!(wish, Wish::Dial(_)));
        (
            dials.count(),
            wishes.contains(&Wish::Ask(near)),
            wishes.contains(&Wish::Dial(far)),
        )
    };
    let soon = LOST_SPREAD + GIVE_WAY + GIVE_WAY_BUSY * 2;
    assert_eq!(dialled_within(&mut mesh, NOW + soon), (0, false, false));
    mesh.connected(near, LATER);
    assert_eq!(dialled_within(&mut mesh, LATER + soon), (2, true, false));
    // Those that come right after the first one are not each a sign of their own.
    for missed in [second, third] {
        mesh.dial_failed(missed, LATER + soon);
    }
    mesh.connected(second, LATER + soon);
    assert_eq!(dialled_within(&mut mesh, LATER + soon * 2), (0, false, false));
}

#[test]
fn the_first_three_are_asked_at_once_and_others_ever_more_rarely() {
    let mut mesh = Mesh::new(contact(0), &Begin::default(), 64, 1, NOW);
    for index in 1..=5 {
        mesh.connected(contact(index), NOW);
    }
    let asked: Vec<_> = (1..=3).map(|index| Wish::Ask(contact(index))).collect();
    assert_eq!(wishes(&mut mesh), asked);
    let mut pauses = Vec::new();
    let mut before = NOW;
    for _ in 0..16 {
        let at = mesh.poll_timeout().unwrap();
        mesh.handle_timeout(at);
        pauses.push(at - before);
        before = at;
    }
    assert!(pauses[15] > LONGEST / 2, "{pauses:?}");
    assert!(mesh.answered(&[contact(9)], before));
    assert!(mesh.question_at <= before + SHORTEST);
}

#[test]
fn an_answer_leaves_out_whom_the_asker_knows() {
    let mut mesh = Mesh::new(contact(0), &Begin::default(), 100, 1, NOW);
    for index in 1..=80 {
        mesh.connected(contact(index), NOW);
    }
    let known: BTreeSet<_> = (2..=40).map(peer).collect();
    let named = mesh.named(peer(1), &known);
    assert_eq!(named.len(), 40);
    assert!(named.iter().all(|named| !known.contains(&named.peer)));
    assert_eq!(mesh.named(peer(1), &BTreeSet::new()).len(), MAX_NAMED);
}

#[test]
fn who_is_not_reached_is_tried_again_after_ever_longer_pauses() {
    let mut mesh = Mesh::new(contact(0), &beginning_at(1), 64, 1, NOW);
    let mut now = NOW;
    let mut pauses = Vec::new();
    for _ in 0..12 {
        let before = now;
        while wishes(&mut mesh).is_empty() {
            now = mesh.poll_timeout().unwrap();
            mesh.handle_timeout(now);
        }
        pauses.push(now - before);
        mesh.dial_failed(contact(1), now);
    }
    assert!(
        pauses[1] >= FIRST_PAUSE / 2 && pauses[11] >= MAX_PINNED_PAUSE / 2,
        "{pauses:?}"
    );
}

#[test]
fn one_that_is_alone_dials_those_whom_it_met_again_soon() {
    let mut mesh = Mesh::new(contact(0), &Begin::default(), 64, 1, NOW);
    mesh.connected(contact(1), NOW);
    mesh.connected(contact(2), NOW);
    assert!(!mesh.answered(&[], NOW));
    assert!(mesh.has_heard());
    mesh.closed(contact(1), NOW);
    for _ in 0..9 {
        mesh.dial(contact(1));
        assert!(mesh.dial_failed(contact(1), NOW));
    }
    let _ = wishes(&mut mesh);
    mesh.closed(contact(2), NOW);
    assert!(!mesh.has_heard());
    let soon = NOW + ALONE_SPREAD + GIVE_WAY_BUSY * 2;
    while let Some(at) = mesh.poll_timeout().filter(|at| *at <= soon) {
        mesh.handle_timeout(at);
    }
    assert!(wishes(&mut mesh).contains(&Wish::Dial(contact(1))));
}
