//! The manager's core in a world of its own: hosts that keep their guests, a journal, and a clock that is moved.

mod behaviour;
mod crashes;
mod orders;
mod refusals;
mod sim;
