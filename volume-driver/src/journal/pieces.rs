//! Which objects lead from one transaction of a journal to another: transactions one by one, and merged ones in their place.
//! Pure.
//!
//! Merged transactions have fixed ranges: 16 numbers, from a multiple of 16 on; 16 times as many; and 16 times as many
//! again. So whoever merges, makes the same ones, one lies within another or beside it, and the fewest that cover a range
//! are found by always taking the longest.

use std::collections::BTreeSet;

/// Numbers in a merged transaction of each level, the shortest first.
pub const LEVELS: [u64; 3] = [16, 256, 4096];

/// A transaction whose number is a multiple of this stays when it is merged, until the boundary has passed it; and so does
/// everything from the newest of these on. So whoever looks for the end of the log finds it, whatever a listing shows: from
/// one milestone to the next, and from the last one number by number.
pub const MILESTONE: u64 = 256;

/// Transactions `first` to `last` as one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Piece {
    /// The first.
    pub first: u64,
    /// The last.
    pub last: u64,
}

impl Piece {
    /// A transaction by itself.
    #[must_use]
    pub fn single(sequence: u64) -> Self {
        Self { first: sequence, last: sequence }
    }

    /// Whether it is a transaction by itself.
    #[must_use]
    pub fn is_single(self) -> bool {
        self.first == self.last
    }

    /// Whether it does what `other` does, and more.
    #[must_use]
    pub fn contains(self, other: Self) -> bool {
        self != other && self.first <= other.first && other.last <= self.last
    }

    /// The merged transactions of a level that lie between `from`, which is not in any, and `to`, oldest first.
    pub fn of_level(level: u64, from: u64, to: u64) -> impl Iterator<Item = Self> {
        (from.div_ceil(level)..to / level)
            .map(move |number| Self { first: number * level + 1, last: (number + 1) * level })
    }
}

/// The fewest pieces that lead from the state after `from` to that after `to`, if every transaction is there by itself:
/// the longest merged one wherever one begins that does not lead too far.
#[must_use]
pub fn cover(merged: &BTreeSet<Piece>, from: u64, to: u64) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut at = from;
    while at < to {
        let first = at + 1;
        let candidates = merged.range(Piece { first, last: 0 }..=Piece { first, last: to });
        let piece = candidates.last().copied().unwrap_or(Piece::single(first));
        at = piece.last;
        pieces.push(piece);
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_fixed_and_complete() {
        let of = |from, to| Piece::of_level(64, from, to).map(|p| (p.first, p.last)).collect::<Vec<_>>();
        assert_eq!(of(0, 63), []);
        assert_eq!(of(0, 64), [(1, 64)]);
        assert_eq!(of(0, 200), [(1, 64), (65, 128), (129, 192)]);
        assert_eq!(of(64, 200), [(65, 128), (129, 192)]);
        assert_eq!(of(65, 200), [(129, 192)]);
    }

    #[test]
    fn the_longest_is_taken_that_does_not_lead_too_far() {
        let merged: BTreeSet<Piece> =
            [(1, 64), (65, 128), (1, 128), (129, 192)].map(|(first, last)| Piece { first, last }).into();
        let covered = |from, to| cover(&merged, from, to).iter().map(|p| (p.first, p.last)).collect::<Vec<_>>();
        assert_eq!(covered(0, 192), [(1, 128), (129, 192)]);
        assert_eq!(covered(0, 127)[..2], [(1, 64), (65, 65)]);
        assert_eq!(covered(126, 193), [(127, 127), (128, 128), (129, 192), (193, 193)]);
        assert_eq!(covered(5, 5), []);
    }

    #[test]
    fn a_cover_is_without_gaps() {
        for number in 0..400u64 {
            let (from, mask) = (number * 7919 % 3000, number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let to = from + number * 104_729 % 3000;
            let merged: BTreeSet<Piece> = LEVELS
                .iter()
                .flat_map(|level| Piece::of_level(*level, 0, 6000))
                .enumerate()
                .filter(|(number, _)| mask >> (number % 64) & 1 == 1)
                .map(|(_, piece)| piece)
                .collect();
            let mut at = from;
            for piece in cover(&merged, from, to) {
                assert_eq!(piece.first, at + 1);
                assert!(piece.is_single() || merged.contains(&piece));
                at = piece.last;
            }
            assert_eq!(at, to);
        }
    }
}
