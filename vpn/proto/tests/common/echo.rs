//! Two nodes that ask and answer, as `ping` does.

use std::time::Duration;

use super::World;

impl World {
    /// A question every `every_ms` milliseconds, and an answer to each. The longest time without an answer.
    pub(crate) fn echo(&mut self, every_ms: u64, a: usize, b: usize, duration: Duration) -> Duration {
        let (end, mut longest, mut last) = (self.now + duration, Duration::ZERO, self.now);
        let mut answered = self.nodes[a].delivered.len();
        let mut asked = self.nodes[b].delivered.len();
        while self.now < end {
            self.send(a, b, b"question");
            self.run(Duration::from_millis(every_ms));
            for _ in asked..self.nodes[b].delivered.len() {
                self.send(b, a, b"answer");
            }
            asked = self.nodes[b].delivered.len();
            if self.nodes[a].delivered.len() > answered {
                answered = self.nodes[a].delivered.len();
                last = self.now;
            }
            longest = longest.max(self.now - last);
        }
        longest
    }
}
