//! What the machine's ads say of it: the appliance's version and the programs that jobs may look for.

use std::path::Path;

use aerie_condor::Program;

/// Programs that users of a grid ask for, looked for on this machine.
const LOOKED_FOR: &[&str] = &[
    "apptainer",
    "awk",
    "bash",
    "gcc",
    "g++",
    "gfortran",
    "java",
    "julia",
    "make",
    "matlab",
    "mpirun",
    "octave",
    "perl",
    "podman",
    "python3",
    "R",
    "singularity",
];

/// The folders of programs that every user has.
const FOLDERS: &[&str] = &["/usr/local/bin", "/usr/bin", "/bin"];

/// The appliance's version.
pub(crate) fn version() -> Program {
    #[expect(
        clippy::expect_used,
        reason = "a version of cargo's has only letters that are allowed"
    )]
    env!("CARGO_PKG_VERSION").parse().expect("a version")
}

/// The programs of the list that are installed.
pub(crate) fn installed() -> Vec<Program> {
    LOOKED_FOR
        .iter()
        .filter(|name| FOLDERS.iter().any(|folder| Path::new(folder).join(name).exists()))
        .filter_map(|name| name.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_looked_for_can_stand_in_an_ad() {
        for name in LOOKED_FOR {
            assert!(name.parse::<Program>().is_ok(), "{name}");
        }
        assert_eq!(version().as_str(), env!("CARGO_PKG_VERSION"));
    }
}
