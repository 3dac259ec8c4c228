use super::*;

/// Cut off between its handshake and its first stream, a connection knows of no round trip.
#[tokio::test(start_paused = true)]
async fn a_connection_on_which_no_stream_can_be_opened_is_dead_in_time() {
    let (interval, timeout) = (Duration::from_secs(5), Duration::from_secs(4));
    let protocol = StreamProtocol::new("/test/alive");
    let mut handler = Handler::new(protocol, interval, timeout);
    let begun = Instant::now();
    loop {
        let event = std::future::poll_fn(|cx| handler.poll(cx));
        // The swarm's own limit for the negotiation of a stream.
        match tokio::time::timeout(Duration::from_secs(10), event).await {
            Ok(ConnectionHandlerEvent::NotifyBehaviour(Found::Dead { .. })) => break,
            Ok(_) => {}
            Err(_) => {
                let error = DialUpgradeError {
                    info: (),
                    error: StreamUpgradeError::Timeout,
                };
                handler.on_connection_event(ConnectionEvent::DialUpgradeError(error));
            }
        }
        assert!(
            begun.elapsed() < timeout * 6,
            "not dead after {:?}",
            begun.elapsed()
        );
    }
}

/// A handler that has probed before and has an idle stream, as far as it knows.
fn settled(rtt: Duration) -> Handler {
    let (interval, timeout) = (Duration::from_secs(5), Duration::from_secs(4));
    let mut handler = Handler::new(StreamProtocol::new("/test/alive"), interval, timeout);
    handler.rtt = Some(rtt);
    handler.answered = Some(Instant::now());
    handler
}

async fn time_to_death(handler: &mut Handler) -> (Duration, bool) {
    let begun = Instant::now();
    loop {
        let event = std::future::poll_fn(|cx| handler.poll(cx)).await;
        if let ConnectionHandlerEvent::NotifyBehaviour(Found::Dead { suspect }) = event {
            return (begun.elapsed(), suspect);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_in_doubt_is_dead_soon() {
    let mut idle = settled(Duration::from_millis(20));
    idle.on_behaviour_event(Ask::Doubt);
    assert_eq!(time_to_death(&mut idle).await, (DOUBT, false));

    let mut waiting = settled(Duration::from_millis(20));
    waiting.outbound = Outbound::Waiting(std::future::pending().boxed());
    waiting.set_deadline();
    waiting.on_behaviour_event(Ask::Doubt);
    assert_eq!(time_to_death(&mut waiting).await, (DOUBT, false));

    // Its member was killed before the first probe, and is back.
    let mut young = settled(Duration::from_millis(20));
    (young.rtt, young.answered) = (None, None);
    young.on_behaviour_event(Ask::Doubt);
    assert_eq!(time_to_death(&mut young).await, (DOUBT * 4, false));

    let mut opening = settled(Duration::from_millis(20));
    (opening.rtt, opening.answered, opening.outbound) = (None, None, Outbound::Opening);
    opening.set_deadline();
    opening.on_behaviour_event(Ask::Doubt);
    assert_eq!(time_to_death(&mut opening).await, (DOUBT * 4, false));

    let mut far = settled(Duration::from_millis(300));
    far.on_behaviour_event(Ask::Doubt);
    assert_eq!(
        time_to_death(&mut far).await,
        (Duration::from_millis(1200), false)
    );
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_not_in_doubt_has_its_time() {
    let mut handler = settled(Duration::from_millis(20));
    handler.set_timer(Duration::ZERO);
    assert_eq!(time_to_death(&mut handler).await, (Duration::from_secs(8), true));
}

#[test]
fn the_probes_of_a_node_do_not_grow_with_the_grid() {
    let per_interval = |connections: usize| connections as f64 / f64::from(step(connections));
    assert!((1..=64).all(|connections| per_interval(connections) <= 5.0));
    assert_eq!([step(0), step(5), step(6), step(11), step(64)], [1, 1, 2, 4, 16]);
}
