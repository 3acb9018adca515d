//! This library is empty. Each misfit is an example of this package, so that each becomes a component of its own.
