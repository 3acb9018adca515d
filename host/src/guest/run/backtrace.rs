//! The stack of a guest that failed, without the functions of the standard library, the SDK and the compiler (R17).

use std::fmt::{self, Write};

use wasmtime::WasmBacktrace;

use crate::telemetry::report::Frame;

/// The most frames that are kept, from the innermost.
const FRAMES_MAX: usize = 32;
/// The longest mangled name that is demangled, and the most bytes of any name that are kept. A component can have names
/// of any length, and a short mangled name can stand for a very long one.
const MANGLED_MAX: usize = 4096;
const NAME_MAX: usize = 512;

/// The guest's functions, the innermost first. A frame has a file and a line if the component has debug information
/// (`amphi up` builds with it) and the engine reads it ([`super::Engines::for_development`]). Functions of the standard
/// library and of the SDK are left out, unless there are no others.
pub fn frames(backtrace: &WasmBacktrace) -> Vec<Frame> {
    let mut all = Vec::new();
    for frame in backtrace.frames() {
        // The functions that the compiler inlined into this one, the innermost first, then the function itself.
        let symbols = frame.symbols();
        let name = frame.func_name();
        for (index, symbol) in symbols.iter().enumerate() {
            // The debug information has short names only. `name` is the full name of the function itself, not of
            // inlined ones.
            let whole = name.filter(|_| index + 1 == symbols.len());
            let frame = Frame {
                function: demangled(whole.or(symbol.name()).unwrap_or("?")),
                file: symbol.file().map(str::to_owned),
                line: symbol.line().filter(|line| *line > 0),
                column: symbol.column().filter(|column| *column > 0),
            };
            all.push((frame, whole.is_some()));
        }
        if let (Some(name), true) = (name, symbols.is_empty()) {
            let function = demangled(name);
            let frame = Frame {
                function,
                ..Frame::default()
            };
            all.push((frame, true));
        }
    }
    own(all)
}

/// The frames of the guest's own source, or all frames if none is. The flag of a frame says whether its name is the
/// full one.
fn own(all: Vec<(Frame, bool)>) -> Vec<Frame> {
    let (own, machinery): (Vec<_>, Vec<_>) =
        (all.into_iter()).partition(|(frame, whole)| !is_machinery(frame, *whole));
    let some = if own.is_empty() { machinery } else { own };
    let mut kept: Vec<Frame> = Vec::new();
    for (mut frame, _) in some.into_iter().take(FRAMES_MAX) {
        if let Some(view) = view(&frame.function) {
            frame.function = view.to_owned();
            // The compiler inlined the view into the SDK's wrapper around it. Both frames stand for one view, so keep
            // one frame, with the wrapper's longer name.
            if let Some(before) = kept.last_mut()
                && frame.function.rsplit("::").next() == Some(&before.function)
            {
                before.function = frame.function;
                continue;
            }
        }
        kept.push(frame);
    }
    kept
}

/// The view in the name of the SDK function that calls it: `shop::cart` for `<shop::cart as …::View>::SYNC::call`.
fn view(function: &str) -> Option<&str> {
    let (view, rest) = function.strip_prefix('<')?.split_once(" as amphi_sdk::")?;
    rest.starts_with("view::View>").then_some(view)
}

/// The innermost functions, at most four, as a suffix for a sentence: ` (in shop::price ← shop::cart)`.
pub fn way(frames: &[Frame]) -> String {
    let names: Vec<&str> = frames
        .iter()
        .take(4)
        .map(|frame| frame.function.as_str())
        .collect();
    if names.is_empty() {
        return String::new();
    }
    format!(" (in {})", names.join(" ← "))
}

/// The demangled name of a function, cut to `NAME_MAX` bytes.
pub(crate) fn demangled(name: &str) -> String {
    let mut short = Shortened(String::new());
    let read = match name.len() {
        ..=MANGLED_MAX => write!(short, "{:#}", rustc_demangle::demangle(name)),
        _ => short.write_str(name),
    };
    if read.is_err() {
        short.0.push('…');
    }
    short.0
}

/// A text of at most `NAME_MAX` bytes. Writing more fails, and so ends the demangling of a name that would be longer.
struct Shortened(String);

impl Write for Shortened {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = NAME_MAX - self.0.len();
        if text.len() <= room {
            self.0.push_str(text);
            return Ok(());
        }
        self.0.push_str(&text[..text.floor_char_boundary(room)]);
        Err(fmt::Error)
    }
}

/// Whether a frame belongs to the standard library, to the SDK or to what the compiler adds. `whole`: the frame has the
/// full name of its function.
fn is_machinery(frame: &Frame, whole: bool) -> bool {
    let file = frame.file.as_deref().unwrap_or_default();
    let foreign = ["/rustc/", "/rust/deps/", "wasisdk://"];
    if foreign.iter().any(|place| file.starts_with(place))
        || file.contains("/guest-sdk/src/")
        || file.contains("/amphi-sdk-")
    {
        return true;
    }
    // A trait's function for a type, `<T as std::fmt::Display>::fmt`, belongs to the crate of the type.
    let path = frame.function.trim_start_matches(['<', '&']);
    let foreign = [
        "core::",
        "alloc::",
        "std::",
        "dlmalloc::",
        "__rustc::",
        "wit_bindgen",
        "amphi_sdk::",
    ];
    // The names of C functions, of exports and of functions that the compiler adds have no path.
    (whole && !path.contains("::")) || foreign.iter().any(|prefix| path.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame with the full name of its function, but without file and line.
    fn whole(function: &str) -> (Frame, bool) {
        let function = function.to_owned();
        let frame = Frame {
            function,
            ..Frame::default()
        };
        (frame, true)
    }

    /// A frame of a function that the compiler has inlined into the function of the next frame.
    fn inlined(function: &str, file: &str) -> (Frame, bool) {
        let (frame, _) = whole(function);
        let file = Some(file.to_owned());
        (Frame { file, ..frame }, false)
    }

    fn names(frames: &[(Frame, bool)]) -> Vec<String> {
        let own = own(frames.to_vec());
        own.into_iter().map(|frame| frame.function).collect()
    }

    #[test]
    fn r17_the_guests_own_functions_are_left() {
        let frames = [
            whole("abort"),
            whole("std::process::abort"),
            whole("__rust_start_panic"),
            whole("core::option::unwrap_failed"),
            inlined("unwrap<i32>", "/rustc/598/library/core/src/option.rs"),
            inlined("price", "/app/src/lib.rs"),
            whole("<shop::Cart as core::fmt::Display>::fmt"),
            whole("<&shop::Cart as std::fmt::Debug>::fmt"),
            whole("alloc::fmt::format"),
            inlined("{closure#0}", "/app/src/lib.rs"),
            inlined("cart", "/app/src/lib.rs"),
            whole("<shop::cart as amphi_sdk::view::View>::SYNC::call"),
            inlined("call<shop::cart>", "/app/guest-sdk/src/view.rs"),
            whole("amphi_sdk::view::call"),
            whole("handle"),
        ];
        let expected = [
            "price",
            "<shop::Cart as core::fmt::Display>::fmt",
            "<&shop::Cart as std::fmt::Debug>::fmt",
            "{closure#0}",
            "shop::cart",
        ];
        assert_eq!(names(&frames), expected);
    }

    #[test]
    fn where_there_is_nothing_else_the_machinery_is_left() {
        let c = [whole("price"), whole("cart"), whole("handle")];
        assert_eq!(names(&c), ["price", "cart", "handle"]);
        assert_eq!(names(&[]), [""; 0]);
    }

    #[test]
    fn names_of_any_length_are_cut() {
        let plain = "ü".repeat(1_000_000);
        let cut = demangled(&plain);
        assert!(cut.len() <= NAME_MAX + '…'.len_utf8() && cut.ends_with('…'));
        assert_eq!(demangled("_RNvC4shop4cart"), "shop::cart");
        // Each type is a pair, and both members are the type before it: the name of the last type would have 2^40
        // parts.
        let mut doubling = "_RINvC4shop4cartTmm".to_owned();
        for _ in 0..40 {
            doubling.push_str("TBf_Bf_E");
        }
        doubling.push_str("EE");
        let deep = format!("_RINvC4shop4cart{}mE", "R".repeat(4_000));
        for name in [doubling, deep] {
            let since = std::time::Instant::now();
            assert!(demangled(&name).len() <= NAME_MAX + 3);
            assert!(since.elapsed().as_secs() < 1, "{:?}", since.elapsed());
        }
    }

    #[test]
    fn endless_recursion_does_not_fill_the_page() {
        let frames = vec![whole("shop::again"); 1000];
        let frames = own(frames);
        assert_eq!(frames.len(), FRAMES_MAX);
        let four = " (in shop::again ← shop::again ← shop::again ← shop::again)";
        assert_eq!(way(&frames), four);
        assert_eq!(way(&[]), "");
    }
}
