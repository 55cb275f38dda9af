//! What went through the interfaces of a network namespace.

use std::path::PathBuf;

use crate::cri::inside;
use crate::error::{Doing, Result};

/// An interface's counters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::cri) struct Interface {
    pub(in crate::cri) name: String,
    pub(in crate::cri) received: Direction,
    pub(in crate::cri) sent: Direction,
}

/// One direction of an interface.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::cri) struct Direction {
    pub(in crate::cri) bytes: u64,
    pub(in crate::cri) packets: u64,
    pub(in crate::cri) errors: u64,
    pub(in crate::cri) dropped: u64,
}

/// The counters of each namespace's interfaces, in the order of the paths. One thread goes through all of them. Where a
/// namespace is gone, there is nothing.
///
/// # Errors
/// When no thread can be started.
pub(super) fn interfaces(namespaces: Vec<PathBuf>) -> Result<Vec<Vec<Interface>>> {
    if namespaces.is_empty() {
        return Ok(Vec::new());
    }
    let look = |path: &PathBuf| {
        inside::enter(&std::fs::File::open(path).ok()?).ok()?;
        std::fs::read_to_string("/proc/thread-self/net/dev").ok()
    };
    let all = || Ok(namespaces.iter().map(|path| parse(&look(path).unwrap_or_default())).collect());
    inside::thread(all).doing(|| "network statistics")
}

/// `/proc/net/dev`, without the loopback interface.
fn parse(text: &str) -> Vec<Interface> {
    let interface = |line: &str| {
        let (name, counters) = line.split_once(':')?;
        let counters: Vec<u64> = counters.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let direction = |at: usize| {
            let [bytes, packets, errors, dropped] = *counters.get(at..at + 4)?.first_chunk()?;
            Some(Direction { bytes, packets, errors, dropped })
        };
        Some(Interface { name: name.trim().to_owned(), received: direction(0)?, sent: direction(8)? })
    };
    text.lines().filter_map(interface).filter(|interface| interface.name != "lo").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_in_their_columns() {
        let text = "Inter-|   Receive    |  Transmit\n face |bytes packets|bytes packets\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n\
                    eth0: 10 2 3 4 0 0 0 0 20 5 6 7 0 0 0 0\n broken: 1\n";
        let eth0 = Interface {
            name: "eth0".into(),
            received: Direction { bytes: 10, packets: 2, errors: 3, dropped: 4 },
            sent: Direction { bytes: 20, packets: 5, errors: 6, dropped: 7 },
        };
        assert_eq!(parse(text), vec![eth0]);
    }
}
