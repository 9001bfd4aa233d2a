//! Kubernetes quantities as numbers, so that `1Gi` and `1024Mi` are the same amount. Numbers are in units of 1e-9, the
//! finest that the notation knows (apimachinery, `resource.Quantity`).

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

const NANO: i128 = 1_000_000_000;

/// An amount that can be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Amount(i128);

impl Amount {
    /// A number of bytes (or of whole units of anything).
    #[must_use]
    pub fn from_units(units: i64) -> Self {
        Self(i128::from(units) * NANO)
    }

    /// Reads a quantity; `None` if it is none, or so large that no resource has it.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let end = text.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-'))).unwrap_or(text.len());
        let (number, suffix) = text.split_at(end);
        let (numerator, denominator) = scale(suffix)?;
        let (negative, digits) = match number.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, number.strip_prefix('+').unwrap_or(number)),
        };
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        let plain = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
        if whole.len() + fraction.len() == 0 || fraction.len() > 18 || !plain(whole) || !plain(fraction) {
            return None;
        }
        let mantissa: i128 = format!("{whole}{fraction}").parse().ok()?;
        let tens = 10_i128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
        let amount = mantissa.checked_mul(numerator)? / denominator.checked_mul(tens)?;
        Some(Self(if negative { -amount } else { amount }))
    }

    /// The amount of a quantity object.
    #[must_use]
    pub fn of(quantity: &Quantity) -> Option<Self> {
        Self::parse(&quantity.0)
    }
}

impl std::ops::Add for Amount {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl std::ops::Sub for Amount {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

/// As a person would write it, rounded down: with the largest suffix that leaves at least two digits.
impl std::fmt::Display for Amount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let units = self.0.max(0) / NANO;
        let large = [("Ti", 40), ("Gi", 30), ("Mi", 20), ("Ki", 10)];
        match large.into_iter().find(|(_, power)| units >= 10 << power) {
            Some((suffix, power)) => write!(f, "{}{suffix}", units >> power),
            None if self.0 % NANO == 0 || units >= 10 => write!(f, "{units}"),
            None => write!(f, "{}m", self.0.max(0) / 1_000_000),
        }
    }
}

/// What a suffix multiplies by, as numerator and denominator of units of 1e-9.
fn scale(suffix: &str) -> Option<(i128, i128)> {
    let power =
        |base: i128, exponent: u32| base.checked_pow(exponent).and_then(|n| n.checked_mul(NANO)).map(|n| (n, 1));
    match suffix {
        "n" => Some((1, 1)),
        "u" => Some((1_000, 1)),
        "m" => Some((1_000_000, 1)),
        "" => power(10, 0),
        "k" => power(10, 3),
        "M" => power(10, 6),
        "G" => power(10, 9),
        "T" => power(10, 12),
        "P" => power(10, 15),
        "E" => power(10, 18),
        "Ki" => power(1024, 1),
        "Mi" => power(1024, 2),
        "Gi" => power(1024, 3),
        "Ti" => power(1024, 4),
        "Pi" => power(1024, 5),
        "Ei" => power(1024, 6),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            match u32::try_from(exponent) {
                Ok(up) => power(10, up),
                Err(_) => Some((NANO, 10_i128.checked_pow(exponent.unsigned_abs())?)),
            }
        }
    }
}

/// Whether two quantities are the same amount. What cannot be read equals only itself.
#[must_use]
pub fn same(one: &Quantity, other: &Quantity) -> bool {
    one.0 == other.0 || matches!((Amount::of(one), Amount::of(other)), (Some(a), Some(b)) if a == b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_amounts_in_different_notations_are_equal() {
        for (one, other) in [
            ("1Gi", "1024Mi"),
            ("1", "1000m"),
            ("0.5", "500m"),
            ("1e3", "1k"),
            ("1.5Gi", "1536Mi"),
            ("2E3", "2000"),
            ("5e-1", "500m"),
        ] {
            assert_eq!(Amount::parse(one).unwrap(), Amount::parse(other).unwrap(), "{one} {other}");
        }
        assert_eq!(Amount::parse("1Ki"), Some(Amount::from_units(1024)));
    }

    #[test]
    fn amounts_are_ordered() {
        for (less, more) in [("999Mi", "1Gi"), ("1G", "1Gi"), ("-1", "0"), ("100m", "1"), ("1Pi", "1Ei")] {
            assert!(Amount::parse(less).unwrap() < Amount::parse(more).unwrap(), "{less} {more}");
        }
    }

    #[test]
    fn what_is_no_quantity_has_no_amount() {
        for text in ["", "Gi", "1 Gi", "1Xi", "--1", "1.2.3", "1e", ".", "1e99", "ten"] {
            assert_eq!(Amount::parse(text), None, "{text}");
        }
    }

    #[test]
    fn amounts_are_shown_rounded_down() {
        for (text, shown) in [
            ("0", "0"),
            ("1500m", "1500m"),
            ("2", "2"),
            ("561Mi", "561Mi"),
            ("2Gi", "2048Mi"),
            ("20Gi", "20Gi"),
            ("-1", "0"),
        ] {
            assert_eq!(Amount::parse(text).unwrap().to_string(), shown, "{text}");
        }
    }
}
