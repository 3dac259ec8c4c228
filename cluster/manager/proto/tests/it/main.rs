//! The manager's core in a world of its own: hosts that keep their guests, a journal, and a clock that is moved.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod behaviour;
mod crashes;
mod host;
mod inventories;
mod orders;
mod refusals;
mod sim;
