//! An allocator for a program that ends soon.
//!
//! musl's own asks the kernel for almost every page and gives it back at once: some eighty system calls in the life of a
//! program that lasts two milliseconds, and a page fault for each page that comes back. This one hands out pieces of a
//! few pages that belong to the program's image, and keeps what is freed for the next piece of that size.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::{Cell, UnsafeCell};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes that are there without asking; only what is touched of them takes memory.
const FIRST: usize = 256 << 10;
/// Bytes of each later region.
const REGION: usize = 1 << 20;
/// What is larger, or aligned more strictly than `UNIT`, comes from the system's allocator and goes back there.
const LARGEST: usize = 32 << 10;
/// Sizes are multiples of this, and addresses too.
const UNIT: usize = 16;
/// Four classes for each power of two.
const CLASSES: usize = 48;

/// The allocator. One program has one, as its `#[global_allocator]`.
#[repr(C)]
#[derive(Debug)]
pub struct Allocator {
    /// Some thread cuts its pieces from `first`, on whose first page this is too.
    taken: AtomicBool,
    first: UnsafeCell<First>,
}

thread_local! {
    // Each thread has its own, so that nothing has to be locked: a locked instruction for each piece was a tenth of the
    // time a start spends in the program. A piece belongs to the thread that frees it. What a thread has left when it ends
    // is not used again: the programs it is for have one. Only the address is here: musl has room for little more than
    // that in the program's image, and maps pages for what is larger.
    static STATE: Cell<*mut State> = const { Cell::new(null_mut()) };
}

#[repr(C, align(16))]
#[derive(Debug)]
struct First([u8; FIRST]);

/// At the beginning of a thread's first region.
#[derive(Debug)]
struct State {
    /// The rest of the region that new pieces are cut from.
    next: *mut u8,
    end: *mut u8,
    /// Freed pieces of each class; each holds the address of the one after it.
    free: [*mut u8; CLASSES],
}

const _: () = assert!(align_of::<First>() == UNIT && size_of::<State>().is_multiple_of(UNIT));

// SAFETY: `first` is touched only by the one thread that has set `taken`, through pieces that are handed out once.
unsafe impl Sync for Allocator {}

impl Allocator {
    /// With nothing handed out yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { taken: AtomicBool::new(false), first: UnsafeCell::new(First([0; FIRST])) }
    }

    /// Has the kernel provide the first `bytes` in one call, for a program that will use as much.
    pub fn expect(&self, bytes: usize) {
        crate::footprint::provide(self.first.get().expose_provenance(), bytes.min(FIRST));
    }

    /// The state of this thread, or nothing where there is no memory for it.
    fn state(&self) -> *mut State {
        let state = STATE.get();
        if state.is_null() { self.begin() } else { state }
    }

    #[cold]
    fn begin(&self) -> *mut State {
        let (region, length) = if self.taken.swap(true, Ordering::Relaxed) {
            (new_region(), REGION)
        } else {
            (self.first.get().cast::<u8>(), FIRST)
        };
        if region.is_null() {
            return null_mut();
        }
        let state = region.cast::<State>();
        // SAFETY: the region has `length` bytes, which nobody else uses, and begins at a multiple of UNIT.
        unsafe {
            let (next, end) = (region.add(size_of::<State>()), region.add(length));
            state.write(State { next, end, free: [null_mut(); CLASSES] });
        }
        STATE.set(state);
        state
    }
}

fn new_region() -> *mut u8 {
    // SAFETY: the layout has a size, and its alignment is a power of two.
    unsafe { System.alloc(Layout::from_size_align_unchecked(REGION, UNIT)) }
}

impl State {
    /// Cuts a new piece of `size` bytes, a multiple of [`UNIT`].
    fn cut(&mut self, size: usize) -> *mut u8 {
        if self.end.addr() - self.next.addr() < size {
            let region = new_region();
            if region.is_null() {
                return null_mut();
            }
            self.next = region;
            // SAFETY: the region has `REGION` bytes.
            self.end = unsafe { region.add(REGION) };
        }
        let piece = self.next;
        // SAFETY: at least `size` bytes are left before `end`.
        self.next = unsafe { piece.add(size) };
        piece
    }
}

impl Default for Allocator {
    fn default() -> Self {
        Self::new()
    }
}

/// The class of a size, and the size that pieces of this class have.
const fn class(size: usize) -> (usize, usize) {
    let units = size.div_ceil(UNIT);
    if units <= 4 {
        let units = if units == 0 { 1 } else { units };
        return (units - 1, units * UNIT);
    }
    // Of each power of two the quarter that is at least as large.
    let power = (units - 1).ilog2() as usize;
    let step = 1 << (power - 2);
    let quarter = (units - (1 << power)).div_ceil(step);
    (power * 4 - 4 + quarter - 1, ((1 << power) + quarter * step) * UNIT)
}

const fn is_ours(layout: Layout) -> bool {
    layout.size() <= LARGEST && layout.align() <= UNIT
}

// SAFETY: a piece is handed out to one owner at a time: cut from a region once, and again only after it was freed. Its
// size is that of its class, which is at least the layout's, and its address a multiple of UNIT: regions begin at one and
// all sizes are multiples. Whether a piece is ours follows from the layout alone, which is the same when it is freed.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !is_ours(layout) {
            // SAFETY: the caller's promise about the layout is passed on.
            return unsafe { System.alloc(layout) };
        }
        let (class, size) = class(layout.size());
        // SAFETY: no other thread has this state, and nothing below comes back here.
        let Some(state) = (unsafe { self.state().as_mut() }) else { return null_mut() };
        let piece = state.free[class];
        if piece.is_null() {
            return state.cut(size);
        }
        // SAFETY: a freed piece holds the address of the next one, see `dealloc`.
        state.free[class] = unsafe { piece.cast::<*mut u8>().read() };
        piece
    }

    unsafe fn dealloc(&self, piece: *mut u8, layout: Layout) {
        if !is_ours(layout) {
            // SAFETY: it came from there, as its layout says.
            return unsafe { System.dealloc(piece, layout) };
        }
        let (class, size) = class(layout.size());
        // SAFETY: as in `alloc`. Without a state there is nowhere to keep the piece.
        let Some(state) = (unsafe { self.state().as_mut() }) else { return };
        // SAFETY: the piece has `size` bytes, so its end is at most one past its region.
        if unsafe { piece.add(size) } == state.next {
            state.next = piece;
            return;
        }
        // SAFETY: nobody owns the piece any more, and it has room for an address at a multiple of UNIT.
        unsafe { piece.cast::<*mut u8>().write(state.free[class]) };
        state.free[class] = piece;
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if !is_ours(layout) {
            // SAFETY: the caller's promise about the layout is passed on.
            return unsafe { System.alloc_zeroed(layout) };
        }
        // SAFETY: as above; what is written was just handed out with at least this size.
        unsafe {
            let piece = self.alloc(layout);
            if !piece.is_null() {
                piece.write_bytes(0, layout.size());
            }
            piece
        }
    }

    unsafe fn realloc(&self, piece: *mut u8, layout: Layout, wanted: usize) -> *mut u8 {
        // SAFETY: the caller promises that the new size is not zero and, rounded up, no overflow.
        let new_layout = unsafe { Layout::from_size_align_unchecked(wanted, layout.align()) };
        match (is_ours(layout), is_ours(new_layout)) {
            // SAFETY: it came from there, and stays there.
            (false, false) => return unsafe { System.realloc(piece, layout, wanted) },
            (true, true) => {
                let ((_, before), (_, after)) = (class(layout.size()), class(wanted));
                // SAFETY: as in `alloc`.
                let Some(state) = (unsafe { self.state().as_mut() }) else { return null_mut() };
                // SAFETY: the piece has `before` bytes; it may grow where it is the last one and there is room.
                let is_last = unsafe { piece.add(before) } == state.next;
                if is_last && state.end.addr() - piece.addr() >= after {
                    // SAFETY: there is room for `after` bytes.
                    state.next = unsafe { piece.add(after) };
                    return piece;
                }
                if before == after {
                    return piece;
                }
            }
            _ => {}
        }
        // SAFETY: the two pieces are different ones, and both have the smaller of the sizes.
        unsafe {
            let moved = self.alloc(new_layout);
            if !moved.is_null() {
                moved.copy_from_nonoverlapping(piece, layout.size().min(wanted));
                self.dealloc(piece, layout);
            }
            moved
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_grow_with_the_size_and_hold_it() {
        let mut last = (0, UNIT);
        for size in 1..=LARGEST {
            let found = class(size);
            assert!(found.1 >= size && found.1.is_multiple_of(UNIT) && found.0 < CLASSES, "{size}: {found:?}");
            assert!(found == last || found.0 == last.0 + 1 && found.1 > last.1, "{size}: {last:?}, {found:?}");
            assert!(found.1 <= size + size / 4 + UNIT, "{size}: {found:?}");
            last = found;
        }
    }

    #[test]
    fn pieces_are_apart_and_keep_what_is_in_them() {
        let allocator = Box::leak(Box::new(Allocator::new()));
        let mut owned: Vec<(*mut u8, Layout, u8)> = Vec::new();
        let mut random = 1_usize;
        for round in 0..20_000_usize {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let (size, mark) = ((random >> 33) % 3000 + 1, u8::try_from(round % 251).unwrap());
            let layout = Layout::from_size_align(size, UNIT).unwrap();
            // SAFETY: layouts are passed back as they were, and only what was asked for is touched.
            unsafe {
                match random >> 61 {
                    0..=3 => {
                        let piece = allocator.alloc(layout);
                        assert!(!piece.is_null() && piece.addr().is_multiple_of(UNIT));
                        piece.write_bytes(mark, size);
                        owned.push((piece, layout, mark));
                    }
                    4 if !owned.is_empty() => {
                        let at = random % owned.len();
                        let (piece, before, mark) = owned[at];
                        let piece = allocator.realloc(piece, before, size);
                        let kept = std::slice::from_raw_parts(piece, before.size().min(size));
                        assert!(kept.iter().all(|byte| *byte == mark));
                        piece.write_bytes(mark, size);
                        owned[at] = (piece, layout, mark);
                    }
                    _ if !owned.is_empty() => {
                        let (piece, layout, mark) = owned.swap_remove(random % owned.len());
                        let kept = std::slice::from_raw_parts(piece, layout.size());
                        assert!(kept.iter().all(|byte| *byte == mark));
                        allocator.dealloc(piece, layout);
                    }
                    _ => {}
                }
            }
        }
    }

    #[test]
    fn what_is_freed_is_used_again() {
        let allocator = Box::leak(Box::new(Allocator::new()));
        let layout = Layout::from_size_align(100, 8).unwrap();
        // SAFETY: as in the test above.
        unsafe {
            let (first, second) = (allocator.alloc(layout), allocator.alloc(layout));
            allocator.dealloc(first, layout);
            assert_eq!(allocator.alloc(layout), first);
            allocator.dealloc(second, layout);
            assert_eq!(allocator.alloc(layout), second);
            assert!(allocator.alloc_zeroed(layout).read() == 0);
            let large = Layout::from_size_align(LARGEST + 1, 64).unwrap();
            let piece = allocator.alloc(large);
            allocator.dealloc(piece, large);
        }
    }
}
