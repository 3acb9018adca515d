//! Structured log records. The host adds request, module and view.
//!
//! ```
//! use amphi_sdk::log;
//!
//! let (user, count) = ("ann", 3);
//! log::info!("saved {count} entries", user = user);
//! log::warn!("slow: {} ms", 1200);
//! ```

pub use crate::bindings::amphi::view::log::Level;
pub use crate::{
    __debug as debug, __error as error, __info as info, __trace as trace, __warn as warn,
};

/// Writes a record. The macros are shorter.
pub fn write(level: Level, message: &str, fields: &[(&str, &dyn std::fmt::Display)]) {
    let fields: Vec<(String, String)> = fields
        .iter()
        .map(|(name, value)| ((*name).to_owned(), value.to_string()))
        .collect();
    crate::host::log(level, message, &fields);
}

/// `log!(Level, "message {inline}", field = value, …)`, or with positional arguments instead of fields.
#[doc(hidden)]
#[macro_export]
macro_rules! __log {
    ($level:ident, $message:literal $(, $name:ident = $value:expr)* $(,)?) => {
        $crate::log::write(
            $crate::log::Level::$level,
            &::std::format!($message),
            &[$((::core::stringify!($name), &$value as &dyn ::core::fmt::Display)),*],
        )
    };
    ($level:ident, $message:literal, $($argument:expr),+ $(,)?) => {
        $crate::log::write($crate::log::Level::$level, &::std::format!($message, $($argument),+), &[])
    };
}

/// For the steps within a view: `trace!("row {id}", table = name)`.
#[doc(hidden)]
#[macro_export]
macro_rules! __trace {
    ($($record:tt)+) => { $crate::__log!(Trace, $($record)+) };
}

/// For finding mistakes: `debug!("row {id}", table = name)`.
#[doc(hidden)]
#[macro_export]
macro_rules! __debug {
    ($($record:tt)+) => { $crate::__log!(Debug, $($record)+) };
}

/// For what happens: `info!("saved {id}", user = name)`.
#[doc(hidden)]
#[macro_export]
macro_rules! __info {
    ($($record:tt)+) => { $crate::__log!(Info, $($record)+) };
}

/// For what should not happen often: `warn!("no answer from {url}", tries = 3)`.
#[doc(hidden)]
#[macro_export]
macro_rules! __warn {
    ($($record:tt)+) => { $crate::__log!(Warn, $($record)+) };
}

/// For what someone has to mend: `error!("cannot read {name}")`.
#[doc(hidden)]
#[macro_export]
macro_rules! __error {
    ($($record:tt)+) => { $crate::__log!(Error, $($record)+) };
}
