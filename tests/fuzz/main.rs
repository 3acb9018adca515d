//! Fuzzing of everything that reads bytes of clients, guests or database servers.
//!
//! Each target is a test. Under `cargo test`, each target runs for a second. This command runs one target alone, for
//! five minutes:
//!
//! ```text
//! FUZZ_SECONDS=300 cargo test -p amphi-tests --test fuzz -- statement
//! ```
//!
//! Only the stable toolchain is needed. Inputs are valid texts with random changes ([`script`]), since purely random
//! bytes are rejected early. The functions under test are small enough to do without guidance by coverage. The last
//! input of a target is in `target/tmp/fuzz-NAME`, even if it ended the process. (The fuzzing crate bolero cannot be
//! used: it needs another version of a crate that wasmtime needs.)

mod frames;
mod script;
mod server;

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::panic::catch_unwind;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fastrand::Rng;

/// How long an input may take, on a busy machine. A reader whose time is not linear in the length takes longer for 64
/// KiB.
const LIMIT: Duration = Duration::from_secs(2);
/// The stack of a target. It is smaller than those of event loops and sync workers, so that recursion over the input is
/// noticed.
const STACK_BYTES: usize = 512 << 10;
/// All scripts are shorter than this, in bytes.
const SCRIPT_MAX: usize = 200;

/// How long each target runs.
fn time() -> Duration {
    let wanted = std::env::var("FUZZ_SECONDS").ok();
    let seconds = wanted.and_then(|text| text.parse().ok());
    Duration::from_secs_f64(seconds.unwrap_or(1.0))
}

/// Random scripts until the time is over.
fn scripts(mut random: Rng) -> impl Iterator<Item = Vec<u8>> {
    let since = Instant::now();
    std::iter::from_fn(move || {
        let length = random.usize(..SCRIPT_MAX);
        (since.elapsed() < time()).then(|| {
            std::iter::repeat_with(|| random.u8(..))
                .take(length)
                .collect()
        })
    })
}

/// A seed from the clock.
fn seed() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(1, |since| since.as_micros() as u64)
}

fn fuzz(name: &str, reader: fn(&[u8]), seeds: &'static [&'static str]) {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{name}"));
    let last = File::create(&file).expect("there is room for an input");
    let work = move || {
        let mut count = 0;
        for script in scripts(Rng::with_seed(seed())) {
            for input in [script::changed(seeds, &script), script] {
                last.set_len(0)
                    .and_then(|()| last.write_all_at(&input, 0))
                    .expect("the file is ours");
                let since = Instant::now();
                let read = catch_unwind(|| reader(&input));
                let took = since.elapsed();
                assert!(
                    read.is_ok() && took < LIMIT,
                    "it took {took:?} or panicked: {:?}",
                    String::from_utf8_lossy(&input)
                );
                count += 1;
            }
        }
        println!("{count} inputs");
    };
    let thread = std::thread::Builder::new()
        .stack_size(STACK_BYTES)
        .spawn(work);
    let ended = thread.expect("a thread can be made").join();
    assert!(ended.is_ok(), "the input is in {}", file.display());
}

macro_rules! targets {
    ($($name:ident: $reader:path, $seeds:expr;)*) => {$(
        #[test]
        fn $name() {
            fuzz(stringify!($name), $reader, &$seeds);
        }
    )*};
}

targets! {
    statement: amphi::fuzz::postgres::statement, [
        "explain explain select 1",
        "/* /* */ */ select a from b where c = 'd''e' -- f\n",
        "select $a$ $a$, e'\\'', U&\"\\0061\", array[1], 1.5e10",
        "with x as (insert into y values ($1)) select set_config('a', 'b', false)",
        "do $$ begin perform 1; end $$",
        "set local search_path = x; begin; commit",
    ];
    array_parameter: amphi::fuzz::postgres::array_parameter, [
        "\u{0}[1, null, [2]]",
        "\u{1}[[\"a\\\"\", \"{b}\"], [\"\\u00e4\", null]]",
        "\u{2}[{\"a\": [1, {\"b\": null}]}, true]",
        "\u{3}[\"00ff\"]",
        "\u{4}[1e10, \"2.5\", -0]",
    ];
    value: amphi::fuzz::postgres::value, [
        "\u{5}\u{0}\u{2}\u{0}\u{1}\u{0}\u{0}\u{0}\u{2}\u{4}\u{1}\u{10}\u{20}",
        "\u{10}\u{0}\u{0}\u{0}\u{1}\u{0}\u{0}\u{0}\u{0}\u{0}\u{0}\u{6}\u{24}\u{0}\u{0}\u{0}\u{1}\u{0}\u{0}\u{0}\u{1}\u{0}\u{0}\u{0}\u{2}\u{0}\u{0}",
        "\u{d}\u{0}\u{0}\u{0}\u{0}\u{0}\u{0}\u{0}\u{1}\u{0}\u{0}\u{0}\u{2}\u{0}\u{0}\u{0}\u{3}",
        "\u{f}\u{1}{\"a\": [1]}",
        "\u{0}\u{1}",
    ];
    accept: amphi::fuzz::accept, [
        "text/html;q=0.8, application/json;q=1.0;x=\"a,b\", */*;q=0",
        "gzip;q=0.001, br, zstd;q=1, identity;q=0",
    ];
    trace: amphi::fuzz::trace, [
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\ncongo=t61rcWkgMzE, rojo=00f067aa0ba902b7",
    ];
    proxies: amphi::fuzz::proxies, [
        "1.2.3.4, 10.0.0.1, [::1]:80",
        "for=\"[2001:db8::1]:4711\";proto=https;by=10.0.0.1, for=_hidden",
        "x-request-id: abc-1:2=/+",
        "10.0.0.0/8",
    ];
    target: amphi::fuzz::target, [
        "/a/%2F%c3%a9/x-{y}.txt/{*z}",
        "/%25%zz/../{{b}}/",
        "[2001:db8::1]:80",
        "a-b.example:65535",
    ];
    request_headers: amphi::fuzz::request_headers, [
        "cookie: a=b\ncookie: c=\"d\"\nx-latin: \u{e4}\naccept: */*",
    ];
    function_name: amphi::fuzz::function_name, [
        "_ZN4core3ptr85drop_in_place$LT$alloc..string..String$GT$17h0123456789abcdefE",
        "_RNvMs0_NtCs5l0EXMQXRMU_21rustc_demangle_fixture4test",
        "_RINvNtC3std3mem8align_ofNtNtC3std3mem12DiscriminantE",
    ];
    artifact_manifest: amphi::fuzz::artifact_manifest, [
        "{\"schemaVersion\":2,\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",\"artifactType\":\"application/vnd.amphi.app.v1\",\"config\":{\"mediaType\":\"application/vnd.amphi.config.v1+toml\",\"digest\":\"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\",\"size\":0},\"layers\":[{\"mediaType\":\"application/octet-stream\",\"digest\":\"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\",\"size\":0,\"annotations\":{\"org.opencontainers.image.title\":\"static/a\"}},{\"mediaType\":\"application/wasm\",\"digest\":\"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\",\"size\":0,\"annotations\":{\"org.opencontainers.image.title\":\"components/../a.wasm\"}}]}",
        "{\"org.opencontainers.image.title\":\"static/b/c\",\"layers\":[]}",
    ];
    artifact_config: amphi::fuzz::artifact_config, [
        "[app]\nname = \"a\"\n[server]\nheaders_max = 10\n[static]\ndir = \"static\"\n[databases.a]\nmigrations = \"migrations/a\"\n[modules.b]\npath = \"components\"\ndatabases = [\"a\"]\nhttp = [\"*\"]\n[needs.databases]\na = \"sqlite\"\n[needs.secrets.b]\nkey = \"generated\"\n[needs.directories.b]\n\"/x\" = \"write\"\n",
        "listen = [\"0.0.0.0:1\"]\nsecrets = { a = { file = \"/etc/passwd\" } }\n[middleware.m]\nuse = \"basic-auth\"\n",
    ];
    artifact_signature: amphi::fuzz::artifact_signature, [
        "untrusted comment: amphi\nRUQf6LRCGA9i559r3g7V1qNyJDApGip8MfqcadIgT9CuhV3EMhHoN1mGTkUidF/z7SrlQgXdy8ofjb7bNJJylDOocrCo8KLzZwo=\ntrusted comment: x\ny/rUw2y8/hOUYjZU71eHp/Wo1KZ40fGy2VJEDl34XMJM+TX48Ss/17u3IvIfbVR1FkZZSNCisQbuQY+bHwhEBg==\n",
        "untrusted comment: a\nRWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3\n",
    ];
    reference: amphi::fuzz::reference, [
        "oci://registry.example.com:5000/team/shop_1.2:1.0-rc@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "[::1]:80/a/b",
        "user:password@localhost/a?b#c",
    ];
}
