//! Whatever the order of commands and events, what has to be true at every moment is.

use std::time::Duration;

use aerie_cluster_manager_proto::{GuestState, Operation, Scope};
use proptest::prelude::*;

use crate::sim::{SECOND, Sim, UNDEPLOY, amounts, caller, description, operate, request};

#[derive(Debug, Clone)]
enum Event {
    Request {
        name: usize,
        count: u32,
        all: bool,
        target: usize,
    },
    Operate {
        name: usize,
        what: usize,
        whole: bool,
    },
    HostDies {
        host: usize,
        secs: u64,
    },
    GuestEnds {
        host: usize,
        crashes: bool,
    },
    Killed,
    Wait {
        millis: u64,
    },
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let one = prop_oneof![
        3 => (0..3_usize, 1..5_u32, any::<bool>(), 0..3_usize)
            .prop_map(|(name, count, all, target)| Event::Request { name, count, all, target }),
        6 => (0..3_usize, 0..8_usize, any::<bool>()).prop_map(|(name, what, whole)| Event::Operate { name, what, whole }),
        1 => (0..2_usize, 1..200_u64).prop_map(|(host, secs)| Event::HostDies { host, secs }),
        1 => (0..2_usize, any::<bool>()).prop_map(|(host, crashes)| Event::GuestEnds { host, crashes }),
        1 => Just(Event::Killed),
        6 => (1..20_000_u64).prop_map(|millis| Event::Wait { millis }),
    ];
    prop::collection::vec(one, 1..40)
}

fn happens(sim: &mut Sim, event: &Event) {
    let ada = caller("ada");
    let names = ["x", "y", "z"];
    let hosts = ["h1", "h2"];
    match event {
        Event::Request {
            name,
            count,
            all,
            target,
        } => {
            let target = ["propagated", "started", "paused"][*target];
            let asked = description(target, *all, &[("w", *count, "debian"), ("v", 1, "other")]);
            sim.ask_later(Duration::ZERO, &ada, request(names[*name], asked));
        }
        Event::Operate { name, what, whole } => {
            let scope = if *whole {
                Scope::Cluster
            } else {
                Scope::Set("w".parse().unwrap())
            };
            let save = Some("ada/kept".parse().unwrap());
            let operation = match what {
                0 => Operation::Deploy,
                1 => Operation::Start,
                2 => Operation::Pause,
                3 => Operation::Unpause,
                4 => Operation::Suspend,
                5 => Operation::Stop,
                6 => Operation::Undeploy { save },
                _ => UNDEPLOY,
            };
            sim.ask_later(Duration::ZERO, &ada, operate(names[*name], scope, operation));
        }
        Event::HostDies { host, secs } => {
            sim.die_later(Duration::ZERO, hosts[*host], Duration::from_secs(*secs))
        }
        Event::GuestEnds { host, crashes } => {
            let running = |guest: &&mut crate::host::Guest| guest.state == GuestState::Running;
            if let Some(guest) = sim.host(hosts[*host]).guests.values_mut().find(running) {
                let why = "by chance".to_owned();
                guest.state = if *crashes {
                    GuestState::Crashed { why }
                } else {
                    GuestState::Stopped
                };
            }
        }
        Event::Killed => sim.kill(),
        Event::Wait { millis } => sim.run(Duration::from_millis(*millis)),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn no_order_of_commands_and_events_holds_too_much_or_leaves_a_guest(seed in any::<u64>(), events in events()) {
        let mut sim = Sim::new(seed, &[("h1", amounts(4, 8, 60)), ("h2", amounts(4, 8, 60))]);
        sim.fail_one_in = 30;
        sim.run(SECOND);
        for event in &events {
            happens(&mut sim, event);
        }
        sim.run(Duration::from_secs(600));
        sim.fail_one_in = 0;
        // A question that was lost is asked again once its time is over, and copying an image has three quarters of an hour.
        sim.run(Duration::from_secs(4000));
        prop_assert_eq!(sim.is_settled(), Ok(()));
        for name in ["x", "y", "z"] {
            sim.ask_later(SECOND, &caller("ada"), operate(name, Scope::Cluster, UNDEPLOY));
        }
        sim.run(Duration::from_secs(600));
        prop_assert_eq!(sim.is_empty(), Ok(()));
    }
}
