//! Latency histograms that any thread records into without a lock or an allocation, but for the first
//! value of a power of two: there are many devices, each with a histogram, and most of its buckets
//! would stay empty.
//!
//! Log-linear buckets: values below 32 have a bucket each, and every power of two above is cut into
//! 32 equal parts, so a reported value is at most 1/32 above the true one.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::OnceLock;
use std::time::Duration;

/// Bits of a value that choose the part of its power of two.
const PART_BITS: u32 = 5;
const PARTS: usize = 1 << PART_BITS;
/// Values of more bits count in the last bucket: 2^42 ns is 73 minutes.
const VALUE_BITS: u32 = 42;
const GROUPS: usize = (VALUE_BITS - PART_BITS + 1) as usize;

/// The buckets of a power of two.
type Group = Box<[AtomicU64; PARTS]>;

/// Counts values, in nanoseconds by convention.
#[derive(Debug)]
pub struct Histogram {
    groups: [OnceLock<Group>; GROUPS],
    sum: AtomicU64,
    max: AtomicU64,
}

/// What a [`Histogram`] held at one time. Percentiles are the upper ends of their buckets, but never
/// above `max`; all are 0 while `count` is 0.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Values recorded.
    pub count: u64,
    /// All of them added up, modulo 2^64.
    pub sum: u64,
    /// Half of the values are no larger.
    pub p50: u64,
    /// 90% of the values are no larger.
    pub p90: u64,
    /// 99% of the values are no larger.
    pub p99: u64,
    /// 99.9% of the values are no larger.
    pub p999: u64,
    /// The largest value, exactly.
    pub max: u64,
    /// The buckets that hold something, smallest first.
    pub buckets: Vec<Bucket>,
}

/// A bucket of a [`Snapshot`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bucket {
    /// The largest value that counts here.
    pub ns: u64,
    /// Values counted.
    pub count: u64,
}

impl Histogram {
    /// An empty histogram.
    pub fn new() -> Self {
        Self {
            groups: [const { OnceLock::new() }; GROUPS],
            sum: AtomicU64::new(0),
            max: AtomicU64::new(0),
        }
    }

    /// Counts a value.
    #[inline]
    pub fn record(&self, ns: u64) {
        // Relaxed: the counters order nothing, and a snapshot may be a value or two behind.
        let at = index(ns);
        let group = self.groups[at / PARTS].get_or_init(Group::default);
        group[at % PARTS].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(ns, Ordering::Relaxed);
        self.max.fetch_max(ns, Ordering::Relaxed);
    }

    /// Counts a duration, in nanoseconds.
    #[inline]
    pub fn record_duration(&self, duration: Duration) {
        self.record(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Reads the counters. Values recorded meanwhile may be missing.
    pub fn snapshot(&self) -> Snapshot {
        let groups = self.groups.iter().enumerate();
        let used = groups.filter_map(|(n, group)| Some((n * PARTS, group.get()?)));
        let buckets: Vec<Bucket> = used
            .flat_map(|(first, group)| (first..).zip(group.iter()))
            .map(|(at, count)| Bucket {
                ns: upper_end(at),
                count: count.load(Ordering::Relaxed),
            })
            .filter(|bucket| bucket.count > 0)
            .collect();
        let count = buckets.iter().map(|bucket| bucket.count).sum();
        // After the counters, and at least what they say: `record` counts before it raises `max`.
        let floor = buckets.last().map_or(0, |bucket| lower_end(bucket.ns));
        let max = self.max.load(Ordering::Relaxed).max(floor);
        let at = |permille| percentile(&buckets, count, permille).min(max);
        Snapshot {
            count,
            sum: self.sum.load(Ordering::Relaxed),
            p50: at(500),
            p90: at(900),
            p99: at(990),
            p999: at(999),
            max,
            buckets,
        }
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Self::new()
    }
}

/// The bucket of a value.
fn index(ns: u64) -> usize {
    if ns < PARTS as u64 {
        return ns as usize;
    }
    let ns = ns.min((1 << VALUE_BITS) - 1);
    let shift = ns.ilog2() - PART_BITS;
    (shift as usize) * PARTS + (ns >> shift) as usize
}

/// The largest value of a bucket.
fn upper_end(index: usize) -> u64 {
    if index < PARTS {
        return index as u64;
    }
    let shift = index / PARTS - 1;
    let first = (index % PARTS + PARTS) as u64;
    ((first + 1) << shift) - 1
}

/// The smallest value of the bucket that ends with `ns`.
fn lower_end(ns: u64) -> u64 {
    match index(ns) {
        0 => 0,
        at => upper_end(at - 1) + 1,
    }
}

fn percentile(buckets: &[Bucket], count: u64, permille: u64) -> u64 {
    let rank = u128::from(count) * u128::from(permille);
    let mut seen = 0;
    for bucket in buckets {
        seen += u128::from(bucket.count) * 1000;
        if seen >= rank {
            return bucket.ns;
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_empty_histogram_has_only_zeroes() {
        assert_eq!(Histogram::new().snapshot(), Snapshot::default());
    }

    #[test]
    fn percentiles_of_one_to_a_thousand_are_within_a_32nd() {
        let histogram = Histogram::new();
        (1..=1000).for_each(|ns| histogram.record(ns));
        let snapshot = histogram.snapshot();
        assert_eq!((snapshot.count, snapshot.max), (1000, 1000));
        assert_eq!(snapshot.sum, 500_500);
        for (got, want) in [
            (snapshot.p50, 500),
            (snapshot.p90, 900),
            (snapshot.p99, 990),
            (snapshot.p999, 999),
        ] {
            assert!((want..=want + want / 32).contains(&got), "{got} for {want}");
        }
    }

    #[test]
    fn the_largest_value_is_exact_and_bounds_the_percentiles() {
        let histogram = Histogram::new();
        histogram.record(1_000_003);
        let snapshot = histogram.snapshot();
        assert_eq!((snapshot.p50, snapshot.max), (1_000_003, 1_000_003));
        histogram.record(u64::MAX);
        assert_eq!(histogram.snapshot().max, u64::MAX);
    }

    #[test]
    fn buckets_are_allocated_with_the_first_value_of_their_power_of_two() {
        let histogram = Histogram::new();
        let allocated = || histogram.groups.iter().filter(|g| g.get().is_some());
        assert_eq!(allocated().count(), 0);
        for ns in [0, 31, 1 << 20, (1 << 21) - 1, u64::MAX] {
            histogram.record(ns);
        }
        assert_eq!(allocated().count(), 3);
        assert_eq!(histogram.snapshot().count, 5);
    }

    #[test]
    fn threads_lose_no_count() {
        let histogram = Histogram::new();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10_000).for_each(|ns| histogram.record(ns)));
            }
        });
        assert_eq!(histogram.snapshot().count, 40_000);
    }

    proptest! {
        #[test]
        fn a_bucket_holds_its_value_and_is_at_most_a_32nd_wide(ns in 0u64..1 << VALUE_BITS) {
            let end = upper_end(index(ns));
            prop_assert!(lower_end(ns) <= ns && ns <= end);
            prop_assert!(end - lower_end(ns) <= ns / PARTS as u64);
        }
    }
}
