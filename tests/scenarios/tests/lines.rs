//! Members at the ends of long lines that lose packets.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use aerie_lab::grid::{Grid, Join, Member};
use aerie_lab::{Lab, Nat, Quality};
use aerie_scenarios::{GROUP, SOON, lab, small_grid};

/// Bytes of a transfer.
const BULK: usize = 512 << 10;
const PINGS: u32 = 200;

/// Two members, each behind a NAT and a line of its own. Between them a packet takes a tenth of a second there and
/// back, and so many of a hundred are lost on each way.
fn apart(lab: &Lab, grid: &Grid<'_>, names: [&str; 2], lost: f64) -> [Member; 2] {
    let line = Quality {
        delay: Duration::from_millis(25),
        jitter: Duration::from_millis(4),
        loss: lost / 2.0,
    };
    names.map(|name| {
        let site = lab.site(name, Nat::PortRestricted).unwrap();
        lab.lengthen(&site, line).unwrap();
        let join = Join::new(name, &site, GROUP, "client").option("--no-condor");
        grid.prepare(&join).unwrap()
    })
}

/// Sends bytes over a TCP connection inside the grid and reads them back.
fn exchange(a: &Member, b: &Member) {
    let addr = b.addr().unwrap();
    let listener = b
        .node
        .net()
        .unwrap()
        .enter(|| Ok(TcpListener::bind((&*addr, 0))?))
        .unwrap();
    let port = listener.local_addr().unwrap().port();
    let echo = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut bytes = vec![0; BULK];
        stream.read_exact(&mut bytes).unwrap();
        stream.write_all(&bytes).unwrap();
    });
    let mut stream = a
        .node
        .net()
        .unwrap()
        .enter(|| Ok(TcpStream::connect((&*addr, port))?))
        .unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.set_write_timeout(Some(SOON)).unwrap();
    let sent: Vec<u8> = (0..BULK).map(|at| (at * 31 + at / 251) as u8).collect();
    stream.write_all(&sent).unwrap();
    let mut back = vec![0; BULK];
    stream.read_exact(&mut back).unwrap();
    assert!(back == sent, "what came back is not what was sent");
    echo.join().unwrap();
}

#[test]
fn members_at_the_ends_of_lossy_lines_are_direct_and_lose_no_more_than_the_lines() {
    let lab = lab("lines").unwrap();
    let grid = small_grid(&lab).unwrap();
    let relay = lab.site("r1", Nat::Open).unwrap();
    let relay = Join::new("r1", &relay, GROUP, "relay").option("--no-condor");
    let relay = grid.prepare(&relay).unwrap();
    let pairs = [
        (apart(&lab, &grid, ["a", "b"], 1.0), 1.0),
        (apart(&lab, &grid, ["c", "d"], 5.0), 5.0),
    ];
    let members = || pairs.iter().flat_map(|(pair, _)| pair).chain([&relay]);
    members().for_each(|member| member.start().unwrap());
    grid.wait_ready(members()).unwrap();
    for ([a, b], lost) in &pairs {
        let (addr, name) = (b.addr().unwrap(), b.node.name());
        a.ping(&addr).unwrap();
        let path = || a.said::<serde_json::Value>(&["path", name]).unwrap().0;
        lab.wait_until(Duration::from_secs(20), "a direct path", || {
            Ok(path()["path"]
                .as_str()
                .is_some_and(|path| path.starts_with("direct"))
                .then_some(()))
        })
        .unwrap();
        let before = path()["changes"].as_array().unwrap().len();
        let count = PINGS.to_string();
        let argv = ["ping", "-n", "-q", "-i", "0.05", "-c", &count, "-W", "2", &addr];
        let said = a.node.exec("root", &argv).unwrap().stdout;
        let number = |from: &str, to: &str| -> f64 {
            let rest = said.split_once(from).unwrap().1;
            rest.split_once(to).unwrap().0.trim().parse().unwrap()
        };
        let round_trip = number("rtt min/avg/max/mdev = ", "/");
        assert!((95.0..130.0).contains(&round_trip), "{said}");
        let missing = number("received, ", "% packet loss");
        // There and back, and what chance may add: four standard deviations.
        let expected = 2.0 * lost;
        let chance = 4.0 * (expected * (100.0 - expected) / f64::from(PINGS)).sqrt();
        assert!(missing <= expected + chance, "{said}");
        exchange(a, b);
        let after = path();
        assert_eq!(after["changes"].as_array().unwrap().len(), before, "{after:#}");
    }
}
