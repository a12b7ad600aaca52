//! Pages of a mapped file: those that hold given parts of it, and no others.
//!
//! The system maps some 16 pages around each that is touched, so that scattered rows would bring in two
//! to four times their size. Here the pages between them are given back a few hundred at a time, in one
//! call; where the system has no such call, one by one. Cost for 34,000 rows of 680 MB that the system
//! has cached: 0.08 s on two cores.

use std::ops::Range;

/// No page of a machine that has [`advise`] is smaller.
const PAGE: usize = 1 << 12;

/// Touches the pages that hold `ranges`, which ascend and do not overlap, of a file's mapped values, and
/// gives back those between them.
pub(super) fn bring(values: &[f32], ranges: impl Iterator<Item = Range<usize>>) {
    // SAFETY: any f32 is four initialised bytes, and u8 has no alignment.
    let bytes: &[u8] = unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), std::mem::size_of_val(values)) };
    let ranges: Vec<Range<usize>> = ranges.map(|range| 4 * range.start..4 * range.end).collect();
    advise(bytes, &ranges, Advice::WillNeed);
    let mut between = Vec::with_capacity(ranges.len());
    let mut done = ranges.first().map_or(0, |first| first.start);
    for range in ranges {
        between.push(done..range.start);
        done = range.end;
        let last = range.end.saturating_sub(1);
        for at in range.step_by(PAGE).chain([last]) {
            // A read that the compiler may not leave out.
            if let Some(byte) = bytes.get(at) {
                std::hint::black_box(*byte);
            }
        }
    }
    advise(bytes, &between, Advice::DontNeed);
}

#[derive(Clone, Copy, PartialEq)]
enum Advice {
    WillNeed,
    DontNeed,
}

/// Tells the system what becomes of parts of a mapped file: of whole pages inside them that are not
/// needed, of all pages that they touch which will be. A refusal changes nothing.
#[cfg(target_os = "linux")]
fn advise(bytes: &[u8], parts: &[Range<usize>], advice: Advice) {
    /// This process, for calls that take a descriptor of one.
    const SELF: libc::c_long = -10_000;
    /// As many as one call takes.
    const MOST: usize = 1024;
    // SAFETY: asks for a number.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(PAGE);
    let first = bytes.as_ptr().addr();
    let place = |part: &Range<usize>| {
        let (start, end) = (first + part.start, first + part.end);
        let (start, end) = if advice == Advice::DontNeed { (start.next_multiple_of(page), end / page * page) } else { (start / page * page, end) };
        (start < end).then(|| libc::iovec { iov_base: start as *mut libc::c_void, iov_len: end - start })
    };
    let places: Vec<libc::iovec> = parts.iter().filter_map(place).collect();
    let word = if advice == Advice::DontNeed { libc::MADV_DONTNEED } else { libc::MADV_WILLNEED };
    for places in places.chunks(MOST) {
        // SAFETY: whole pages within a private, read-only map of a file, which are read again from the file if
        // they are touched; those before a part that will be needed hold the file's header. Advice only.
        let done = unsafe { libc::syscall(libc::SYS_process_madvise, SELF, places.as_ptr(), places.len(), word, 0) };
        if done < 0 && advice == Advice::DontNeed {
            // SAFETY: as above.
            places.iter().for_each(|place| unsafe {
                libc::madvise(place.iov_base, place.iov_len, word);
            });
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn advise(_: &[u8], _: &[Range<usize>], _: Advice) {}
