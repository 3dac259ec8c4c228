//! Guests that make the same thing happen over and over.

use super::{Host, by_script};
use crate::conformance::{Bench, Program, counts_beyond, next_of, started};
use crate::{Kind, State};

#[tokio::test]
#[ignore = "needs QEMU"]
async fn what_guests_do_in_a_loop_does_not_push_out_what_others_do() {
    // A disk that takes nothing after its first 32 KiB: QEMU's write fails, and is no signal.
    let mut bench = Host::with(|config| by_script(config, "trap '' 25\nulimit -f 64", "")).await;
    let mut events = bench.driver().events();
    let mut resets_too = bench.driver().events();
    let resets = started(&mut bench, 1, Program::Loops).await;
    let writes = started(&mut bench, 2, Program::Writes).await;
    let failed = Kind::DiskFailed {
        path: bench.guest(2, Program::Writes).disks[0]
            .path
            .display()
            .to_string(),
        stopped: false,
    };
    for (events, id, kind) in [
        (&mut events, writes, failed),
        (&mut resets_too, resets, Kind::Reset),
    ] {
        for expected in [Kind::Defined, Kind::Started, kind.clone()] {
            assert_eq!(next_of(events, id).await, expected);
        }
        let Kind::Repeated { kind: again, times } = next_of(events, id).await else {
            panic!("it was told each time");
        };
        assert_eq!(*again, kind);
        assert!(times > 1, "{times}");
    }
    // Both go on.
    assert_eq!(bench.driver().status(resets).unwrap().state, State::Running);
    counts_beyond(bench.driver(), writes, 3).await;
    // What is left out is said before what ends it.
    for (events, id) in [(&mut events, writes), (&mut resets_too, resets)] {
        bench.driver().destroy(id).await.unwrap();
        loop {
            match next_of(events, id).await {
                Kind::Repeated { .. } => {}
                last => break assert_eq!(last, Kind::Destroyed),
            }
        }
    }
}
