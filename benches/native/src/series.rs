//! Rounds of samples of several contenders, and what is said of them.

use std::time::{Duration, Instant};

use serde_json::{json, Value};

use crate::Result;

/// How much to measure.
pub(crate) struct Plan {
    pub(crate) rounds: usize,
    /// Samples before each block that do not count.
    pub(crate) warm_up: usize,
    pub(crate) samples: usize,
}

/// Something whose time is taken.
pub(crate) trait Contender {
    /// Its name in the report.
    fn name(&self) -> &str;
    /// Does it once, and says how long that took.
    fn sample(&mut self) -> Result<Duration>;
    /// CPU time that its side of the work has used so far, if that can be told apart.
    fn server_cpu(&self) -> Option<Duration> {
        None
    }
    /// Uses no CPU until its next sample.
    fn rest(&mut self) {}
}

/// A contender that exists only while it is measured: one that spins would take the CPU of the others.
pub(crate) struct Resting<C, F> {
    name: &'static str,
    make: F,
    contender: Option<C>,
}

impl<C: Contender, F: Fn() -> Result<C>> Resting<C, F> {
    /// `make` makes it, for each block anew.
    pub(crate) fn new(name: &'static str, make: F) -> Self {
        Self {
            name,
            make,
            contender: None,
        }
    }
}

impl<C: Contender, F: Fn() -> Result<C>> Contender for Resting<C, F> {
    fn name(&self) -> &str {
        self.name
    }

    fn sample(&mut self) -> Result<Duration> {
        match &mut self.contender {
            Some(contender) => contender.sample(),
            none => none.insert((self.make)()?).sample(),
        }
    }

    fn rest(&mut self) {
        self.contender = None;
    }
}

/// Percentiles that are reported, in hundredths of a percent.
const PERCENTILES: [(&str, usize); 5] = [
    ("p50", 5_000),
    ("p90", 9_000),
    ("p99", 9_900),
    ("p999", 9_990),
    ("p9999", 9_999),
];
/// Points of the distribution over all rounds, for a plot.
const POINTS: usize = 200;

/// Measures the contenders in turn and describes the path.
pub(crate) fn measure(
    path: &str,
    about: &str,
    plan: &Plan,
    contenders: &mut [Box<dyn Contender + '_>],
) -> Result<Value> {
    let mut rounds: Vec<Vec<Value>> = contenders.iter().map(|_| Vec::new()).collect();
    let mut all: Vec<Vec<u64>> = contenders.iter().map(|_| Vec::new()).collect();
    for round in 0..plan.rounds {
        // Each goes first as often as the others.
        for turn in 0..contenders.len() {
            let at = (round + turn) % contenders.len();
            let Some(contender) = contenders.get_mut(at) else {
                continue;
            };
            let (mut samples, cpu, elapsed) = block(&mut **contender, plan)?;
            samples.sort_unstable();
            let mut described = describe(&samples);
            if let Some(cpu) = cpu {
                described["server_cpu_ns"] = json!(cpu.as_nanos() as u64 / samples.len() as u64);
            }
            described["mean_ns"] = json!(elapsed.as_nanos() as u64 / samples.len() as u64);
            rounds[at].push(described);
            all[at].extend(samples);
        }
        eprintln!("{path}: round {} of {}", round + 1, plan.rounds);
    }
    let contenders: Vec<Value> = contenders
        .iter()
        .zip(rounds)
        .zip(&mut all)
        .map(|((contender, rounds), all)| {
            all.sort_unstable();
            json!({ "name": contender.name(), "rounds": rounds, "cdf": distribution(all) })
        })
        .collect();
    Ok(json!({ "path": path, "about": about, "unit": "ns", "contenders": contenders }))
}

type Block = (Vec<u64>, Option<Duration>, Duration);

fn block(contender: &mut dyn Contender, plan: &Plan) -> Result<Block> {
    for _ in 0..plan.warm_up {
        contender.sample()?;
    }
    let mut samples = Vec::with_capacity(plan.samples);
    let before = contender.server_cpu();
    let start = Instant::now();
    for _ in 0..plan.samples {
        samples.push(contender.sample()?.as_nanos() as u64);
    }
    let elapsed = start.elapsed();
    let cpu = contender
        .server_cpu()
        .zip(before)
        .map(|(after, before)| after.saturating_sub(before));
    contender.rest();
    Ok((samples, cpu, elapsed))
}

fn describe(sorted: &[u64]) -> Value {
    let mut value = json!({ "count": sorted.len(), "max": sorted.last() });
    for (name, hundredths) in PERCENTILES {
        value[name] = json!(percentile(sorted, hundredths));
    }
    value
}

/// The smallest sample that so many hundredths of a percent do not exceed.
fn percentile(sorted: &[u64], hundredths: usize) -> Option<u64> {
    let rank = (sorted.len() * hundredths).div_ceil(10_000);
    sorted.get(rank.saturating_sub(1)).copied()
}

/// Values at even steps of the distribution, and at its far end.
fn distribution(sorted: &[u64]) -> Vec<Value> {
    let even = (1..=POINTS).map(|i| i * 9_900 / POINTS);
    let tail = [9_925, 9_950, 9_975, 9_990, 9_995, 9_999];
    even.chain(tail)
        .map(|hundredths| json!([percentile(sorted, hundredths), hundredths as f64 / 100.0]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples_by_nearest_rank() {
        let sorted: Vec<u64> = (1..=1000).collect();
        assert_eq!(percentile(&sorted, 5_000), Some(500));
        assert_eq!(percentile(&sorted, 9_999), Some(1000));
        assert_eq!(percentile(&[7], 5_000), Some(7));
        assert_eq!(percentile(&[], 5_000), None);
    }

    struct Steps(u64);

    impl Contender for Steps {
        fn name(&self) -> &str {
            "steps"
        }
        fn sample(&mut self) -> Result<Duration> {
            self.0 += 1;
            Ok(Duration::from_nanos(self.0))
        }
    }

    #[test]
    fn warm_up_does_not_count_and_rounds_are_kept_apart() {
        let plan = Plan {
            rounds: 2,
            warm_up: 10,
            samples: 5,
        };
        let value = measure("path", "", &plan, &mut [Box::new(Steps(0))]).unwrap();
        let rounds = &value["contenders"][0]["rounds"];
        assert_eq!(
            (&rounds[0]["p50"], &rounds[1]["p50"]),
            (&json!(13), &json!(28))
        );
        assert_eq!(rounds[0]["max"], 15);
    }
}
