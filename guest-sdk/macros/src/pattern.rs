//! Checks path patterns at compile time, so that the error points at the source.

/// Checks a pattern. The error says what is wrong with it.
pub(crate) fn check(pattern: &str) -> Result<(), String> {
    if !pattern.starts_with('/') {
        return Err(format!(
            "a path starts with `/`: write `\"/{pattern}\"`, which lies below the module's mount"
        ));
    }
    if let Some(bad) = pattern
        .chars()
        .find(|c| c.is_whitespace() || matches!(c, '?' | '#'))
    {
        return Err(format!(
            "a path cannot contain `{}`: the part after `?` is read with the `Query` extractor",
            bad.escape_default()
        ));
    }
    // Other frameworks write parameters in these ways. Without this check, such a segment would match only its own
    // text, so that requests for the view would get a 404.
    if let Some(foreign) = (pattern.split('/')).find(|segment| segment.starts_with([':', '*', '<']))
    {
        return Err(format!(
            "`{foreign}` is not a parameter: write `{{id}}` for one segment, and `{{*rest}}` for all remaining segments"
        ));
    }
    let mut names = Vec::new();
    let mut rest = pattern;
    while let Some(at) = rest.find(['{', '}']) {
        if rest[at..].starts_with('}') {
            return Err("this path has a `}` without a `{` before it".into());
        }
        let parameter = &rest[at + 1..];
        let Some(end) = parameter.find('}') else {
            return Err("this path has a `{` without a `}` after it".into());
        };
        let (name, after) = (&parameter[..end], &parameter[end + 1..]);
        let plain = name.strip_prefix('*').unwrap_or(name);
        if plain.len() < name.len() && !after.is_empty() {
            return Err(format!(
                "`{{{name}}}` takes all remaining segments, so nothing can follow it"
            ));
        }
        if !is_identifier(plain) {
            return Err(format!(
                "`{{{name}}}` is not a parameter: write a name of letters, digits and `_`, as in `{{id}}`"
            ));
        }
        if names.contains(&plain) {
            return Err(format!("the parameter `{plain}` occurs twice in this path"));
        }
        names.push(plain);
        rest = after;
    }
    Ok(())
}

fn is_identifier(name: &str) -> bool {
    !name.starts_with(|c: char| c.is_ascii_digit())
        && !name.is_empty()
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn good_patterns_pass() {
        for good in [
            "/",
            "/a",
            "/a/{id}",
            "/a/{id}/b/{other_id}",
            "/files/{*rest}",
            "/a-{b}.html",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
    }

    #[test]
    fn bad_patterns_are_named() {
        for (bad, part) in [
            ("", "starts with `/`"),
            ("entries", "\"/entries\""),
            ("/a?b", "`?`"),
            ("/a b", "` `"),
            ("/x/:id", "`:id` is not a parameter"),
            ("/x/<int:id>", "`<int:id>` is not a parameter"),
            ("/files/*rest", "`*rest` is not a parameter"),
            ("/{", "without a `}`"),
            ("/a}", "without a `{`"),
            ("/{}", "is not a parameter"),
            ("/{a{b}}", "is not a parameter"),
            ("/{1a}", "is not a parameter"),
            ("/{*rest}/a", "nothing can follow"),
            ("/{a}/{a}", "twice"),
        ] {
            let text = check(bad).expect_err(bad);
            assert!(text.contains(part), "{bad}: {text}");
        }
    }
}
