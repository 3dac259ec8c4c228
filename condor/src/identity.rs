//! From a certificate to the identity that HTCondor's permissions name.
//!
//! The CA signs `/O=<grid>/OU=<role>/CN=<name>`. The map of certificates turns this into `<name>@<role>.<grid>.grid`
//! and nothing else: a certificate of another shape maps to no identity and is refused. A person at a node of its
//! own proves herself by the file system (HTCondor's `FS`) and becomes `<account>@<node>.<grid>.grid`.
//!
//! Both kinds share one name space, `<left>@<label>.<grid>.grid`. A node named `worker` would make its local `root`
//! (`root@worker.<grid>.grid`) look like a member named `root` with the role worker, and the other way round. So a
//! node may not be named like a role, or `user`; [`reserved`] tells, and no plan is made for such a node.

use aerie_types::{GridName, NodeName, Role};

use crate::intent::RESERVED_NODE_NAMES;

/// The organisational unit in the certificates of ordinary users.
pub const USER_UNIT: &str = "user";

/// The identity of a member: `<node>@<role>.<grid>.grid`.
#[must_use]
pub fn member(node: &NodeName, role: Role, grid: &GridName) -> String {
    format!("{node}@{role}.{grid}.grid")
}

/// The pattern of every member whose certificate has this role.
#[must_use]
pub fn members(role: Role, grid: &GridName) -> String {
    format!("*@{role}.{grid}.grid")
}

/// The pattern of every person with a user credential.
#[must_use]
pub fn users(grid: &GridName) -> String {
    format!("*@{USER_UNIT}.{grid}.grid")
}

/// Whether a node of this name would be confused with a role's identities. The CA should not give out such names.
#[must_use]
pub fn reserved(node: &NodeName) -> bool {
    RESERVED_NODE_NAMES.contains(&node.as_str())
}

/// The map file: one line per role, one for users, one for `FS`. No line matches anything else.
#[must_use]
pub(crate) fn map_file(grid: &GridName) -> String {
    let units = Role::ALL.into_iter().map(Role::as_str).chain([USER_UNIT]);
    let mut text =
        String::from("# Written by aerie. Which certificate is whom: the CA's subject becomes name@role.\n");
    for unit in units {
        text.push_str(&format!(
            "SSL /^\\/O={grid}\\/OU={unit}\\/CN=([a-z][a-z0-9-]*)$/ \\1@{unit}.{grid}.grid\n"
        ));
    }
    text.push_str("FS /^([A-Za-z0-9_.-]+)$/ \\1\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_of_each_role_maps_to_that_roles_domain() {
        let map = map_file(&"lab".parse().unwrap());
        assert!(map.contains("SSL /^\\/O=lab\\/OU=worker\\/CN=([a-z][a-z0-9-]*)$/ \\1@worker.lab.grid\n"));
        assert!(map.contains("\\1@user.lab.grid\n"));
        assert_eq!(map.lines().filter(|line| line.starts_with("SSL ")).count(), 6);
    }

    #[test]
    fn every_role_word_is_a_reserved_node_name() {
        for role in Role::ALL {
            assert!(reserved(&role.as_str().parse().unwrap()), "{role}");
        }
        assert!(reserved(&"user".parse().unwrap()) && !reserved(&"w1".parse().unwrap()));
    }
}
