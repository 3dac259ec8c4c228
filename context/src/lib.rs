//! Contextualization: what a set of machines has to know of each other before they are a cluster.
