//! Disks that boot into a grid.
