//! Latencies for JavaScript, in nanoseconds.

use napi_derive::napi;
use retrovf_histogram::{Bucket, Snapshot};

#[napi(object)]
pub struct NativeHistogram {
    pub count: f64,
    pub sum: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub max: f64,
    pub buckets: Vec<NativeBucket>,
}

#[napi(object)]
pub struct NativeBucket {
    pub ns: f64,
    pub count: f64,
}

// Counts and nanoseconds stay far below 2^53.
impl From<Snapshot> for NativeHistogram {
    fn from(snapshot: Snapshot) -> Self {
        let bucket = |bucket: &Bucket| NativeBucket {
            ns: bucket.ns as f64,
            count: bucket.count as f64,
        };
        Self {
            count: snapshot.count as f64,
            sum: snapshot.sum as f64,
            p50: snapshot.p50 as f64,
            p90: snapshot.p90 as f64,
            p99: snapshot.p99 as f64,
            max: snapshot.max as f64,
            buckets: snapshot.buckets.iter().map(bucket).collect(),
        }
    }
}
