//! Mistakes in the configuration of middleware, and the messages about them.

use std::path::Path;

use proptest::prelude::*;

use crate::config::{Config, GuestMiddleware};
use crate::http::middleware::Builtin;
use crate::http::middleware::compression::Encoding;
use crate::http::middleware::cors::Origins;

const HASH: &str = "$2y$05$c4WoMPo3SXsafkva.HHa6uXQZWr7oboPiC2bT/r7q1BB8I2s0BRqC";

/// Parses the configuration of an app with the modules `auth` and `shop`. `app`: the list of the app's middleware.
/// `shop`: the list of the module `shop`. `more`: further tables.
fn parse(app: &str, shop: &str, more: &str) -> Result<Config, String> {
    let text = format!(
        "{more}\n[app]\nname = \"x\"\nmiddleware = {app}\n[modules.auth]\npath = \"auth.wasm\"\n[modules.shop]\npath = \"shop.wasm\"\nmiddleware = {shop}\n"
    );
    let file = Path::new("/app/amphi.toml");
    Config::parse(file, &text).map_err(|error| error.to_string())
}

#[track_caller]
fn assert_error(app: &str, more: &str, parts: &[&str]) {
    let error = parse(app, "[]", more).expect_err("it is wrong");
    for part in parts {
        assert!(error.contains(part), "no {part:?} in: {error}");
    }
}

fn users() -> String {
    format!("users = {{ ann = \"{HASH}\" }}")
}

#[test]
fn lists_name_what_is_built_in_and_then_functions_of_guests() {
    let config = parse(
        r#"["request-id", "security-headers", "pages", "team", "auth::login"]"#,
        r#"["api", "auth::token", "shop::log"]"#,
        &format!(
            r#"
            [middleware.pages]
            use = "compression"
            encodings = ["gzip", "br"]
            min_bytes = 10
            [middleware.api]
            use = "cors"
            origins = ["https://app.example.com", "http://127.0.0.1:8080"]
            credentials = true
            [middleware.team]
            use = "basic-auth"
            {}
            "#,
            users()
        ),
    )
    .expect("it is right");
    assert_eq!(config.builtins.len(), 4);
    assert!(matches!(&*config.builtins[0], Builtin::RequestId));
    let Builtin::Compression(compression) = &*config.builtins[2] else {
        panic!("{:?}", config.builtins[2]);
    };
    assert_eq!(compression.encodings, [Encoding::Gzip, Encoding::Br]);
    assert!(matches!(&*config.builtins[3], Builtin::BasicAuth(_)));
    let guest = |module: &str, function: &str| GuestMiddleware {
        module: module.to_owned(),
        function: function.to_owned(),
    };
    assert_eq!(config.middleware, [guest("auth", "login")]);
    let shop = &config.modules[1];
    assert_eq!(
        shop.middleware,
        [guest("auth", "token"), guest("shop", "log")]
    );
    let Builtin::Cors(cors) = &*shop.builtins[0] else {
        panic!("{:?}", shop.builtins[0]);
    };
    assert!(matches!(&cors.origins, Origins::These(origins) if origins.len() == 2));
}

#[test]
fn without_lists_there_is_no_middleware() {
    let config = parse("[]", "[]", "").expect("it is right");
    assert!(config.builtins.is_empty() && config.modules[1].builtins.is_empty());
}

#[test]
fn what_is_not_known_is_named_with_what_was_meant() {
    assert_error(
        r#"["reqest-id"]"#,
        "",
        &[":4:15: ", "`reqest-id`", "did you mean `request-id`?"],
    );
    assert_error(
        r#"["api"]"#,
        "",
        &["`api`", "security-headers", "`module::function`"],
    );
    assert_error(
        r#"["auht::login"]"#,
        "",
        &["module `auht`", "did you mean `auth`?", "auth, shop"],
    );
    assert_error(
        "[]",
        "[middleware.api]\nuse = \"corse\"\n",
        &[":2:7: ", "`corse`", "did you mean `cors`?"],
    );
    assert_error(
        "[]",
        "[middleware.api]\norigins = []\n",
        &["`[middleware.api]`", "write `use = \"…\"`"],
    );
    assert_error(
        "[]",
        "[middleware.cors]\norigns = [\"*\"]\norigins = [\"*\"]\n",
        &[":2:10: ", "`origns`", "did you mean `origins`?"],
    );
}

#[test]
fn what_is_built_in_is_around_the_guests() {
    assert_error(
        r#"["auth::login", "request-id"]"#,
        "",
        &[":4:30: ", "`request-id`", "before `auth::login`"],
    );
}

#[test]
fn what_needs_options_says_which() {
    for (name, needed) in [
        ("cors", "origins = "),
        ("basic-auth", "file = "),
        ("header-auth", "from = "),
    ] {
        let list = format!("[\"{name}\"]");
        assert_error(&list, "", &[":4:15: ", needed]);
    }
    let trusted = "[server]\ntrusted_proxies = [\"127.0.0.1\"]\n";
    let config = parse("[\"header-auth\"]", "[]", trusted).expect("it knows whom to trust");
    assert!(matches!(&*config.builtins[0], Builtin::HeaderAuth(auth) if auth.required));
}

#[test]
fn options_that_make_no_sense_are_refused() {
    for (table, options, sentence) in [
        ("cors", "origins = \"*\"", "`origins` is a list of texts"),
        (
            "cors",
            "origins = [\"app.example.com\"]",
            "is not an origin",
        ),
        (
            "cors",
            "origins = [\"https://a.example/\"]",
            "is not an origin",
        ),
        (
            "cors",
            "origins = [\"*\"]\ncredentials = true",
            "browsers allow no cookies",
        ),
        (
            "cors",
            "origins = [\"https://a.example\"]\ncredentials = true\nheaders = [\"*\"]",
            "`headers` is \"*\"",
        ),
        ("cors", "origins = [\"*\"]\nmethods = [\"A B\"]", "`A B`"),
        (
            "cors",
            "origins = [\"*\"]\nmax_age_s = 100000",
            "the most is 86400",
        ),
        (
            "compression",
            "encodings = [\"gz\"]",
            "`gz` is not a value of `encodings` (did you mean `br`?)",
        ),
        ("compression", "encodings = []", "`encodings` is empty"),
        ("compression", "min_bytes = -1", "a number from 0"),
        (
            "security-headers",
            "framing = \"no\"",
            "it takes deny, same-origin, allow",
        ),
        ("security-headers", "csp = \"a\\nb\"", "one line"),
        (
            "security-headers",
            "hsts_max_age_s = 99999999999",
            "the most is",
        ),
        (
            "request-id",
            "length = 3",
            "`length` is no option of `request-id`",
        ),
        ("basic-auth", "users = {}", "lets nobody in"),
        (
            "basic-auth",
            "users = { ann = \"secret\" }",
            "the user `ann` is no hash",
        ),
        ("basic-auth", "users = { ann = 3 }", "is not a text"),
        (
            "basic-auth",
            "file = \"missing\"",
            "/app/missing cannot be read",
        ),
        ("header-auth", "from = [\"proxy\"]", "`proxy` is neither"),
        (
            "header-auth",
            "from = [\"127.0.0.1\"]\nheader = \"a b\"",
            "name of a header",
        ),
    ] {
        let table = format!("[middleware.{table}]\n{options}\n");
        assert_error("[]", &table, &[sentence]);
    }
    assert_error(
        "[]",
        &format!("[middleware.basic-auth]\nchecks_max = 0\n{}\n", users()),
        &[":2:14: ", "the least is 1"],
    );
}

#[test]
fn the_users_file_is_read_at_the_start() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(folder.path().join("users"), format!("ann:{HASH}\nbob:x\n")).expect("writing");
    std::fs::create_dir(folder.path().join("public")).expect("making a folder");
    let file = folder.path().join("amphi.toml");
    let text = "[app]\nname = \"x\"\n[static]\ndir = \"public\"\n[middleware.basic-auth]\nfile = \"users\"\n";
    let error = Config::parse(&file, text)
        .expect_err("bob has no hash")
        .to_string();
    assert!(
        error.contains("users:2 is wrong: what follows `bob:`"),
        "{error}"
    );
    std::fs::write(folder.path().join("users"), format!("ann:{HASH}\n")).expect("writing");
    Config::parse(&file, text).expect("it is right");
}

#[test]
fn trusted_proxies_are_networks() {
    let server = |keys: &str| parse("[]", "[]", &format!("[server]\n{keys}\n"));
    let config =
        server("trusted_proxies = [\"127.0.0.1\", \"10.0.0.0/8\"]\nclient_address = \"forwarded\"")
            .expect("it is right");
    assert!(config.proxies.trust([10, 1, 2, 3].into()));
    assert!(!config.proxies.trust([11, 1, 2, 3].into()));
    let error = server("trusted_proxies = [\"localhost\"]").expect_err("it is wrong");
    assert!(error.contains(":2:20: `localhost`"), "{error}");
    let error = server("client_address = \"x-real-ip\"").expect_err("it is wrong");
    assert!(error.contains(":2:18: `x-real-ip`"), "{error}");
}

proptest! {
    #[test]
    fn any_table_is_read_or_refused_with_its_place(
        kind in prop::sample::select(super::NAMES.to_vec()),
        key in "[a-z_]{1,12}|origins|users|from|encodings",
        value in prop::sample::select(vec!["1", "-1", "\"*\"", "[]", "[\"*\"]", "true", "{}", "{ a = 1 }", "1.5"]),
    ) {
        let more = format!("[middleware.x]\nuse = \"{kind}\"\n{key} = {value}\n");
        if let Err(error) = parse("[\"x\"]", "[]", &more) {
            prop_assert!(error.starts_with("/app/amphi.toml:"), "{}", error);
        }
    }
}
