//! The numbers of system calls on the architectures that a filter can be made for.

mod numbers;

pub use numbers::{N, NUMBERS};

/// The bit in the number of every call of x32, which shares its architecture with x86-64.
const X32_BIT: u32 = 0x4000_0000;
/// Columns of the table, by the architecture as the kernel shows it to filters.
const COLUMNS: [(u32, usize); 7] = [
    (0xc000_003e, 0),
    (0x4000_0003, 1),
    (0xc000_00b7, 3),
    (0x4000_0028, 4),
    (0xc000_00f3, 5),
    (0xc000_0015, 6),
    (0x8000_0016, 7),
];
/// Column of x32.
const X32: usize = 2;

/// What the call with this number is called on an architecture, as the kernel shows both to filters. None for one that the
/// table does not have.
pub fn name(architecture: u32, number: u32) -> Option<&'static str> {
    let (_, column) = *COLUMNS.iter().find(|(audit, _)| *audit == architecture)?;
    let (column, number) = match column == 0 && number & X32_BIT != 0 {
        true => (X32, number & !X32_BIT),
        false => (column, number),
    };
    NUMBERS.iter().find(|(_, numbers)| number != N && numbers[column] == number).map(|(name, _)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_names() {
        assert_eq!(name(0xc000_003e, 165), Some("mount"));
        assert_eq!(name(0x4000_0003, 21), Some("mount"));
        assert_eq!(name(0xc000_00b7, 40), Some("mount"));
        assert_eq!(name(0xc000_003e, X32_BIT | 165), Some("mount"));
        assert_eq!((name(0xc000_003e, 99_999), name(1, 165), name(0xc000_003e, N)), (None, None, None));
    }
}
