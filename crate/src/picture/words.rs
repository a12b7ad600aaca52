//! Words: texts of users and models made fit to be shown, and numbers in few signs.

pub(crate) use crate::progress::count;

/// Text in which control characters, which XML has no word for, and marks that turn the direction
/// of text around have become visible signs; not escaped.
pub(crate) fn tame(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => out.push('⏎'),
            '\t' => out.push('⇥'),
            '\r' => out.push('␍'),
            '\u{0}'..='\u{1f}' => out.push(char::from_u32(0x2400 + c as u32).unwrap_or('\u{fffd}')),
            '\u{7f}'..='\u{9f}' | '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}' => {
                out.push_str(&format!("⟨U+{:04X}⟩", c as u32));
            }
            c => out.push(c),
        }
    }
    out
}

/// A token with its spaces made visible, cut after `most` characters; not escaped.
pub(crate) fn visible(token: &str, most: usize) -> String {
    shorten(token, most).replace(' ', "·")
}

/// A text cut after `most` characters, with a sign that it was; not escaped.
pub(crate) fn shorten(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_string(),
    }
}

/// A tick's value: 500 k, 1.5 M where numbers are large.
pub(crate) fn tick(value: f64, largest: f64) -> String {
    if !(1e4..1e9).contains(&largest) || value < 0.0 {
        return number(value, 6);
    }
    let (scale, unit) = if largest < 1e6 { (1e3, "k") } else { (1e6, "M") };
    if value == 0.0 { "0".to_string() } else { format!("{} {unit}", number(value / scale, 4)) }
}

/// Seconds as `mm:ss` or `h:mm:ss`.
pub(crate) fn duration(seconds: f64) -> String {
    if !seconds.is_finite() {
        return "?".to_string();
    }
    let all = seconds.max(0.0).round() as u64;
    let (hours, minutes, rest) = (all / 3600, all / 60 % 60, all % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{rest:02}") } else { format!("{minutes:02}:{rest:02}") }
}

/// A number in as few signs as it needs, at most `digits` of them significant.
pub(crate) fn number(value: f64, digits: usize) -> String {
    if value == 0.0 || !value.is_finite() {
        return if value == 0.0 { "0".to_string() } else { value.to_string() };
    }
    let digits = digits.max(1);
    let power = value.abs().log10().floor() as i32;
    if !(-4..6).contains(&power) {
        let text = format!("{value:.*e}", digits - 1);
        return match text.split_once('e') {
            Some((mantissa, power)) if mantissa.contains('.') => format!("{}e{power}", mantissa.trim_end_matches('0').trim_end_matches('.')),
            _ => text,
        };
    }
    let text = format!("{value:.*}", (digits as i32 - 1 - power).max(0) as usize);
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_string() } else { text }
}
