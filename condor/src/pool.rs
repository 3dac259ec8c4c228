//! The pool as `condor_status -json` shows it, as typed values.
//!
//! The answer comes from a collector, which holds what members sent: everything in it is hostile input. An ad that
//! lacks a name is left out, an attribute of another type than expected reads as absent.

use serde::Serialize;
use serde_json::Value;

use crate::Error;

/// The attributes that are asked for; the answer stays small in large pools.
pub(crate) const ATTRIBUTES: [&str; 13] = [
    "Name",
    "Machine",
    "State",
    "Activity",
    "Cpus",
    "TotalSlotCpus",
    "Memory",
    "TotalSlotMemory",
    "SlotType",
    "RemoteOwner",
    "GridGroup",
    "AerieVersion",
    "AeriePrograms",
];

/// Slots beyond this number are left out: an answer is for a person or a decision, not an archive.
pub(crate) const MAX_SLOTS: usize = 100_000;

/// One slot of a startd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Slot {
    /// Its name, for example `slot1_2@w1.lab.grid`.
    pub name: String,
    /// The full name of its machine.
    pub machine: String,
    /// `Unclaimed`, `Claimed`, `Owner`, `Preempting`, `Drained`, ...
    pub state: String,
    /// `Idle`, `Busy`, `Suspended`, `Vacating`, ...
    pub activity: String,
    /// Processors of the slot (of a partitionable slot: those not yet cut off).
    pub cpus: u64,
    /// Memory of the slot, likewise, in MiB.
    pub memory_mib: u64,
    /// Processors that the slot began with.
    pub total_cpus: u64,
    /// Memory that the slot began with, in MiB.
    pub total_memory_mib: u64,
    /// Whether smaller slots are cut from this one.
    pub partitionable: bool,
    /// Who runs a job in it, for example `alice@s1.lab.grid`.
    pub remote_owner: Option<String>,
    /// The user group of the machine.
    pub group: Option<String>,
    /// The appliance's version on the machine.
    pub version: Option<String>,
    /// Programs that the machine says it has.
    pub programs: Vec<String>,
}

/// Reads the answer of `condor_status -json`. No output at all is an empty pool.
///
/// # Errors
/// [`Error::Answer`] if it is not a JSON list.
pub fn parse_slots(output: &[u8]) -> Result<Vec<Slot>, Error> {
    if output.iter().all(u8::is_ascii_whitespace) {
        return Ok(Vec::new());
    }
    let ads: Vec<Value> = serde_json::from_slice(output).map_err(|error| Error::Answer {
        command: "condor_status -json".into(),
        reason: error.to_string(),
    })?;
    Ok(ads.iter().filter_map(slot).take(MAX_SLOTS).collect())
}

fn slot(ad: &Value) -> Option<Slot> {
    let text = |name: &str| ad.get(name).and_then(Value::as_str).map(str::to_owned);
    let number = |name: &str| match ad.get(name) {
        // HTCondor writes some counts as reals.
        Some(value) => value
            .as_u64()
            .or_else(|| value.as_f64().map(|real| real.max(0.0) as u64))
            .unwrap_or(0),
        None => 0,
    };
    Some(Slot {
        name: text("Name")?,
        machine: text("Machine")?,
        state: text("State").unwrap_or_default(),
        activity: text("Activity").unwrap_or_default(),
        cpus: number("Cpus"),
        memory_mib: number("Memory"),
        total_cpus: number("TotalSlotCpus"),
        total_memory_mib: number("TotalSlotMemory"),
        partitionable: text("SlotType").as_deref() == Some("Partitionable"),
        remote_owner: text("RemoteOwner"),
        group: text("GridGroup"),
        version: text("AerieVersion"),
        programs: programs(ad.get("AeriePrograms")),
    })
}

fn programs(value: Option<&Value>) -> Vec<String> {
    let texts = |list: &Vec<Value>| {
        list.iter()
            .filter_map(|program| program.as_str().map(str::to_owned))
            .take(crate::intent::MAX_PROGRAMS)
            .collect()
    };
    match value {
        Some(Value::Array(list)) => texts(list),
        // Older versions write a list as an expression: "\/Expr({ \"gcc\" })\/".
        Some(Value::String(text)) => text
            .split('"')
            .skip(1)
            .step_by(2)
            .map(|program| program.trim_end_matches('\\').to_owned())
            .take(crate::intent::MAX_PROGRAMS)
            .collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_reads_from_what_condor_status_prints() {
        let slots = parse_slots(include_bytes!("../tests/data/condor_status.json")).unwrap();
        let names: Vec<_> = slots.iter().map(|slot| slot.name.as_str()).collect();
        assert_eq!(
            names,
            ["slot1@s1.lab.grid", "slot1@w1.lab.grid", "slot1_1@w1.lab.grid"]
        );
        assert!(slots[1].partitionable && !slots[2].partitionable);
        assert_eq!(slots[1].programs, ["gcc", "python3.13"]);
        assert_eq!(slots[2].remote_owner.as_deref(), Some("alice@s1.lab.grid"));
        assert_eq!((slots[1].total_cpus, slots[1].cpus), (2, 1));
    }

    #[test]
    fn an_empty_pool_is_no_error() {
        assert_eq!(parse_slots(b"\n").unwrap(), []);
        assert_eq!(parse_slots(b"[]").unwrap(), []);
    }

    #[test]
    fn hostile_ads_are_left_out_or_read_as_absent() {
        let slots = parse_slots(
            br#"[1, {}, {"Name": 7, "Machine": "m"}, {"Name": "s@m", "Machine": "m", "Cpus": -3.5, "Memory": "x"}]"#,
        )
        .unwrap();
        assert_eq!(slots.len(), 1);
        assert_eq!((slots[0].cpus, slots[0].memory_mib), (0, 0));
        assert!(parse_slots(b"{").is_err());
    }
}
