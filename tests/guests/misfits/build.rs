//! Generates the bindings of the SDK from `guest-sdk/wit`. The test `tests/integration/bindings.rs` compares them with
//! the bindings that are checked in. The generator is compiled for this package, because the misfits need it anyway.

use std::fs;
use std::path::Path;

use wit_bindgen_core::wit_parser::{Resolve, WorldId, WorldItem};
use wit_bindgen_core::{Files, WorldGenerator as _};
use wit_bindgen_rust::{Opts, WithOption};

fn main() {
    let guests = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let wit = guests.join("../../guest-sdk/wit");
    println!("cargo:rerun-if-changed={}", wit.display());
    println!("cargo:rerun-if-changed=build.rs");
    let generated = guests.join("target/amphi/bindings");
    fs::create_dir_all(&generated).expect("the folder can be made");
    for world in ["imports", "sync-views", "async-views"] {
        let file = generated.join(format!("{}.rs", world.replace('-', "_")));
        fs::write(file, generate(&wit, world)).expect("the file can be written");
    }
}

fn generate(wit: &Path, world: &str) -> String {
    let mut resolve = Resolve::default();
    let (package, _) = resolve.push_path(wit).expect("the WIT is valid");
    let world = resolve
        .select_world(&[package], Some(world))
        .expect("the WIT has this world");
    let mut options = Opts {
        format: true,
        runtime_path: Some("::amphi_sdk::__private::wit_bindgen::rt".into()),
        pub_export_macro: true,
        ..Opts::default()
    };
    match resolve.worlds[world].name.as_str() {
        "imports" => {
            options.generate_all = true;
            options.generate_unused_types = true;
            options.additional_derive_attributes = vec!["Clone".into(), "PartialEq".into()];
        }
        name => {
            let mode = name.trim_end_matches("-views");
            options.export_macro_name = Some(format!("export_{mode}"));
            options.default_bindings_module = Some(format!(
                "::amphi_sdk::__private::bindings::{}",
                name.replace('-', "_")
            ));
            options.with = from_imports(&resolve, world);
        }
    }
    let mut files = Files::default();
    options
        .build()
        .generate(&mut resolve, world, &mut files)
        .expect("wit-bindgen takes this world");
    let (_, code) = files.iter().next().expect("wit-bindgen makes one file");
    String::from_utf8(code.to_vec()).expect("source code is UTF-8")
}

/// Every interface that the world imports, each with the module of the world `imports` that has the interface's code.
fn from_imports(resolve: &Resolve, world: WorldId) -> Vec<(String, WithOption)> {
    let imports = resolve.worlds[world].imports.values();
    imports
        .filter_map(|item| match item {
            WorldItem::Interface { id, .. } => Some(*id),
            _ => None,
        })
        .map(|interface| {
            let name = resolve.interfaces[interface].name.as_deref();
            let module = name.expect("the interfaces have names").replace('-', "_");
            let path = format!("crate::bindings::amphi::view::{module}");
            let id = resolve
                .id_of(interface)
                .expect("a named interface has an id");
            (id, WithOption::Path(path))
        })
        .collect()
}
