//! Converts a `numeric` from its binary form to text. The binary form has digits in base 10,000, most significant
//! first.

/// The number as the server prints it. None: the bytes are not a `numeric`.
pub(super) fn text(raw: &[u8]) -> Option<String> {
    let word = |index: usize| {
        let bytes = raw.get(index * 2..index * 2 + 2)?;
        Some(i16::from_be_bytes([bytes[0], bytes[1]]))
    };
    let (count, weight, sign, scale) = (word(0)?, word(1)?, word(2)? as u16, word(3)?);
    let negative = match sign {
        0x0000 => false,
        0x4000 => true,
        0xC000 => return Some("NaN".to_owned()),
        0xD000 => return Some("Infinity".to_owned()),
        0xF000 => return Some("-Infinity".to_owned()),
        _ => return None,
    };
    let digits: Vec<i16> = (0..usize::try_from(count).ok()?)
        .map(|index| word(4 + index).filter(|digit| (0..10_000).contains(digit)))
        .collect::<Option<_>>()?;
    // The digit whose place value is 10,000^power.
    let digit = |power: i32| {
        usize::try_from(i32::from(weight) - power)
            .ok()
            .and_then(|index| digits.get(index))
            .copied()
            .unwrap_or(0)
    };
    let mut text = String::new();
    if negative {
        text.push('-');
    }
    match weight {
        ..0 => text.push('0'),
        _ => {
            text.push_str(&digit(weight.into()).to_string());
            for power in (0..i32::from(weight)).rev() {
                four(digit(power), &mut text);
            }
        }
    }
    let scale = usize::try_from(scale).ok()?;
    if scale > 0 {
        text.push('.');
        let start = text.len();
        let mut power = -1;
        while text.len() - start < scale {
            four(digit(power), &mut text);
            power -= 1;
        }
        text.truncate(start + scale);
    }
    Some(text)
}

/// Adds the four decimal digits of one digit in base 10,000. `format!` would be too slow, because a number may have
/// tens of thousands of digits.
fn four(digit: i16, text: &mut String) {
    for place in [1000, 100, 10, 1] {
        let digit = u8::try_from(digit / place % 10).unwrap_or(0);
        text.push(char::from(b'0' + digit));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(words: &[i32]) -> Vec<u8> {
        (words.iter())
            .flat_map(|word| (*word as u16).to_be_bytes())
            .collect()
    }

    #[test]
    fn numbers_are_printed_as_the_server_prints_them() {
        for (words, printed) in [
            (&[0, 0, 0, 0][..], "0"),
            (&[0, 0, 0, 2], "0.00"),
            (&[1, 0, 0, 0, 7], "7"),
            (&[2, 1, 0, 0, 1, 1], "10001"),
            (&[1, 2, 0, 0, 5], "500000000"),
            (&[2, 0, 0x4000, 2, 12, 3400], "-12.34"),
            (&[1, -1, 0, 4, 7], "0.0007"),
            (&[1, -2, 0, 8, 1], "0.00000001"),
            (&[2, -1, 0, 6, 1234, 5600], "0.123456"),
            (&[0, 0, 0xC000, 0], "NaN"),
            (&[0, 0, 0xF000, 0], "-Infinity"),
        ] {
            assert_eq!(text(&raw(words)).as_deref(), Some(printed));
        }
        assert_eq!(text(&raw(&[1, 0, 0])), None);
        assert_eq!(text(&raw(&[2, 0, 0, 0, 1])), None);
        assert_eq!(text(&raw(&[1, 0, 0, 0, 10_000])), None);
    }
}
