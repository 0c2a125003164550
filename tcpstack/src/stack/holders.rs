//! Who holds memory for octets behind holes, by size, so that the largest holder is known without
//! looking at all.
//!
//! A list for each power of two of chunks, once for peers that have proven nothing and once for the
//! others. A connection is in one list at most; its entry remembers in which.

/// Sizes told apart: 2^16 chunks are more than the greatest window takes.
const SIZES: u8 = 18;
/// No connection, or the end of a list.
const NONE: u32 = u32::MAX;

/// The list of a connection: 0 is none, then the unproven by size, then the proven by size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place(u8);

impl Place {
    /// Where a connection belongs that holds so many chunks.
    pub(super) fn of(chunks: usize, unproven: bool) -> Self {
        if chunks == 0 {
            return Self(0);
        }
        let size = (chunks.ilog2() as u8 + 1).min(SIZES - 1);
        Self(if unproven { size } else { SIZES + size })
    }

    /// Its size, whoever it is.
    fn size(self) -> u8 {
        self.0 % SIZES
    }
}

#[derive(Clone, Copy)]
struct Links {
    before: u32,
    behind: u32,
}

/// The lists.
pub(super) struct Holders {
    first: [u32; 2 * SIZES as usize],
    links: Box<[Links]>,
}

impl Holders {
    pub(super) fn new(connections_max: u32) -> Self {
        let links = vec![Links { before: NONE, behind: NONE }; connections_max as usize];
        Self { first: [NONE; 2 * SIZES as usize], links: links.into_boxed_slice() }
    }

    /// Takes a connection from one list to another.
    pub(super) fn shift(&mut self, index: u32, from: Place, to: Place) {
        if from.0 > 0 {
            let Links { before, behind } = self.links[index as usize];
            match before {
                NONE => self.first[usize::from(from.0)] = behind,
                _ => self.links[before as usize].behind = behind,
            }
            if behind != NONE {
                self.links[behind as usize].before = before;
            }
        }
        if to.0 > 0 {
            let behind = std::mem::replace(&mut self.first[usize::from(to.0)], index);
            self.links[index as usize] = Links { before: NONE, behind };
            if behind != NONE {
                self.links[behind as usize].before = index;
            }
        }
    }

    /// Who gives way to a connection in `place` that needs more: the largest of the unproven; if
    /// there is none, the largest of all. A proven one gives way only to a proven one, and nobody to
    /// who holds half as much or more: two would only take it from each other.
    pub(super) fn victim_for(&self, place: Place, unproven: bool) -> Option<u32> {
        let largest = |from: u8| {
            let sizes = (1..SIZES).rev().map(|size| Place(from + size));
            sizes.into_iter().find(|place| self.first[usize::from(place.0)] != NONE)
        };
        let victim = match (largest(0), unproven) {
            (Some(stranger), false) => Some(stranger),
            (Some(other), true) => Some(other).filter(|other| other.size() > place.size()),
            (None, false) => largest(SIZES).filter(|other| other.size() > place.size()),
            (None, true) => None,
        };
        victim.map(|place| self.first[usize::from(place.0)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOWHERE: Place = Place(0);

    #[test]
    fn the_largest_stranger_gives_way_first() {
        let mut holders = Holders::new(8);
        let proven = Place::of(200, false);
        holders.shift(1, NOWHERE, proven);
        holders.shift(2, NOWHERE, Place::of(1, true));
        holders.shift(3, NOWHERE, Place::of(5, true));
        assert_eq!(holders.victim_for(Place::of(100, false), false), Some(3));
        assert_eq!(holders.victim_for(Place::of(1, true), true), Some(3));
        assert_eq!(holders.victim_for(Place::of(4, true), true), None, "about as large");
        holders.shift(3, Place::of(5, true), NOWHERE);
        holders.shift(2, Place::of(1, true), NOWHERE);
        assert_eq!(holders.victim_for(NOWHERE, true), None, "strangers take nothing from others");
        assert_eq!(holders.victim_for(NOWHERE, false), Some(1));
        assert_eq!(holders.victim_for(Place::of(128, false), false), None);
    }

    #[test]
    fn a_list_is_left_from_anywhere() {
        let mut holders = Holders::new(4);
        let place = Place::of(2, false);
        for leaving in 0..4 {
            (0..4).for_each(|index| holders.shift(index, NOWHERE, place));
            holders.shift(leaving, place, NOWHERE);
            let left = std::iter::from_fn(|| {
                let index = holders.victim_for(NOWHERE, false)?;
                holders.shift(index, place, NOWHERE);
                Some(index)
            });
            let expected: Vec<u32> = (0..4).rev().filter(|index| *index != leaving).collect();
            assert_eq!(left.collect::<Vec<_>>(), expected);
        }
    }
}
