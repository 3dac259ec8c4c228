//! Why a way is not direct, for a person.

use super::pair::State;
use super::{Agent, Route};

impl Agent {
    /// Why the way in use is not direct: one reason for each address that was tried.
    pub(crate) fn why(&self, own_symmetric: bool) -> Option<String> {
        if matches!(self.selected, Some(Route::Direct(_))) {
            return None;
        }
        let Some(remote) = &self.remote else {
            return Some("the peer has not answered over the overlay yet".to_owned());
        };
        let mut reasons: Vec<String> = self
            .pairs
            .iter()
            .filter_map(|(route, pair)| {
                let Route::Direct(addr) = route else { return None };
                let state = match pair.state {
                    State::Failed(failure) => failure.to_string(),
                    State::Probing => format!("being probed ({} sent)", pair.tries),
                    State::Alive => "answers".to_owned(),
                };
                Some(format!("{addr} ({}): {state}", pair.kind))
            })
            .collect();
        if reasons.is_empty() {
            reasons.push("the peer announced no address that can be reached".to_owned());
        }
        match (own_symmetric, remote.symmetric) {
            (true, true) => {
                reasons.push("both NATs give every destination another port (symmetric)".to_owned())
            }
            (true, false) => {
                reasons.push("our NAT gives every destination another port (symmetric)".to_owned())
            }
            (false, true) => {
                reasons.push("the peer's NAT gives every destination another port (symmetric)".to_owned());
            }
            (false, false) => {}
        }
        Some(reasons.join("; "))
    }
}
