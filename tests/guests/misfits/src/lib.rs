//! Nothing: each misfit is an example of this package.
