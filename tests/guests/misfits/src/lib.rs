//! Empty: each misfit is an example of this package, and so a component of its own.
