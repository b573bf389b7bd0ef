// SPDX-License-Identifier: GPL-2.0

//! The patterns that `--run-subtest` takes: comma-separated, the last that matches decides, `!`
//! negates; `*`, `?` and `[a-z]` as in a shell.

/// Whether a list of patterns selects a name.
pub fn matches(patterns: &str, name: &str) -> bool {
    let mut selected = false;
    for pattern in patterns.split(',') {
        let (value, pattern) = match pattern.strip_prefix('!') {
            Some(rest) => (false, rest),
            None => (true, pattern),
        };
        if glob(pattern.as_bytes(), name.as_bytes()) {
            selected = value;
        }
    }
    selected
}

fn glob(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern.split_first(), name.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) => (0..=name.len()).any(|skip| glob(rest, &name[skip..])),
        (Some((b'?', rest)), Some((_, name))) => glob(rest, name),
        (Some((b'[', rest)), Some((c, name))) => match rest.iter().position(|&c| c == b']') {
            Some(end) => in_set(&rest[..end], *c) && glob(&rest[end + 1..], name),
            None => false,
        },
        (Some((p, rest)), Some((c, name))) => p == c && glob(rest, name),
        _ => false,
    }
}

fn in_set(set: &[u8], c: u8) -> bool {
    let (negated, mut set) = match set.split_first() {
        Some((b'^' | b'!', rest)) => (true, rest),
        _ => (false, set),
    };
    let mut found = false;
    while let Some((&first, rest)) = set.split_first() {
        match rest {
            [b'-', last, rest @ ..] => {
                found |= (first..=*last).contains(&c);
                set = rest;
            }
            _ => {
                found |= first == c;
                set = rest;
            }
        }
    }
    found != negated
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn stars_match_any_run() {
        assert!(matches("*", "malloc-write"));
        assert!(matches("malloc-*", "malloc-write"));
        assert!(matches("*-write", "malloc-write"));
        assert!(matches("m*c-*e", "malloc-write"));
        assert!(!matches("malloc", "malloc-write"));
        assert!(!matches("*-read", "malloc-write"));
    }

    #[test]
    fn sets_and_single_characters() {
        assert!(matches("part-[0-9]?", "part-12"));
        assert!(!matches("part-[0-9]?", "part-x2"));
        assert!(matches("part-[^0-9]2", "part-x2"));
        assert!(!matches("part-[0-9", "part-1"));
    }

    #[test]
    fn the_last_match_decides() {
        assert!(matches("a,b", "b"));
        assert!(!matches("*,!b", "b"));
        assert!(matches("*,!b*,bc", "bc"));
        assert!(!matches("!b", "c"));
    }
}
