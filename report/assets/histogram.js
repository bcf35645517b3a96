// Histograms of a result: native histograms of schema 8, as HistogramData in core/src/result.
"use strict";

const BUCKETS_PER_DOUBLING = 256;

/** A distribution of durations in seconds. Distributions of intervals add up exactly. */
class Histogram {
  constructor() {
    this.buckets = new Map();
    this.zero = 0;
    this.count = 0;
    this.sum = 0;
  }

  /** Adds the samples of another histogram. */
  add(other) {
    for (const [bucket, count] of other.buckets) {
      this.buckets.set(bucket, (this.buckets.get(bucket) || 0) + count);
    }
    this.zero += other.zero;
    this.count += other.count;
    this.sum += other.sum;
    this.sorted = null;
    return this;
  }

  /** The nearest-rank quantile at p, a fraction of one; null without samples. */
  quantile(p) {
    if (this.count === 0) return null;
    const rank = Math.min(Math.max(Math.ceil(p * this.count * (1 - 1e-12)), 1), this.count);
    let seen = this.zero;
    if (rank <= seen) return 0;
    for (const [bucket, count] of this.entries()) {
      seen += count;
      if (rank <= seen) return bucketMiddle(bucket);
    }
    return null;
  }

  mean() {
    return this.count === 0 ? null : this.sum / this.count;
  }

  entries() {
    if (!this.sorted) this.sorted = [...this.buckets].sort((a, b) => a[0] - b[0]);
    return this.sorted;
  }
}

/** Numbers in LEB128, as report/src/html/pack.rs writes them. */
class NumberStream {
  constructor(bytes) {
    this.bytes = bytes;
    this.at = 0;
  }

  next() {
    let number = 0;
    for (let factor = 1; ; factor *= 128) {
      const byte = this.bytes[this.at];
      this.at += 1;
      if (byte === undefined) throw new Error("the data is cut off");
      number += (byte & 0x7f) * factor;
      if (byte < 0x80) return number;
    }
  }
}

/** Replaces the packed histograms of a series by histograms. */
function unpackSeries(series, streams) {
  for (const point of series.points) {
    // The streams have the order of the names. Object.values begins with names that are numbers.
    for (const name of Object.keys(point.tasks).sort()) {
      const task = point.tasks[name];
      for (const [metric, packed] of Object.entries(task.latencies || {})) {
        task.latencies[metric] = unpackHistogram(packed, streams);
      }
    }
  }
}

function unpackHistogram(packed, streams) {
  const histogram = new Histogram();
  histogram.zero = packed.zero;
  histogram.count = packed.count;
  histogram.sum = packed.sum;
  let bucket = 0;
  for (let i = 0; i < packed.buckets; i += 1) {
    const distance = streams.gaps.next();
    // The first distance is in zigzag form: 0, −1, 1, −2, …
    if (i === 0) bucket = distance % 2 === 0 ? distance / 2 : -(distance + 1) / 2;
    else bucket += distance;
    histogram.buckets.set(bucket, streams.counts.next());
  }
  return histogram;
}

/** The geometric middle of a bucket, in seconds. */
function bucketMiddle(bucket) {
  return 2 ** ((bucket - 0.5) / BUCKETS_PER_DOUBLING);
}

/** The points of a series that lie in a span of seconds, ends included. */
function pointsWithin(series, from, to) {
  return series.points.filter((point) => point.start >= from - 1e-6 && point.end <= to + 1e-6);
}

/** The sum of points: counts and histograms of one task, or of all tasks when `task` is "". */
function sumPoints(points, task) {
  const sum = {
    seconds: 0, requests: 0, failures: 0, timeouts: 0, interrupted: 0, dropped: 0, successesInLoad: 0,
    tokensInLoad: 0, receivedBytes: 0, sentBytes: 0, errors: {}, latencies: {},
  };
  for (const point of points) {
    sum.seconds += point.end - point.start;
    for (const [name, numbers] of Object.entries(point.tasks)) {
      if (task !== "" && name !== task) continue;
      for (const key of Object.keys(sum)) {
        if (typeof sum[key] === "number" && key !== "seconds") sum[key] += numbers[key] || 0;
      }
      for (const [kind, count] of Object.entries(numbers.errors || {})) {
        sum.errors[kind] = (sum.errors[kind] || 0) + count;
      }
      for (const [metric, data] of Object.entries(numbers.latencies || {})) {
        (sum.latencies[metric] ||= new Histogram()).add(data);
      }
    }
  }
  return sum;
}

/** Failed requests and dropped arrivals as a share, as `errorRate` in core counts them. */
function errorRateOf(sum) {
  const tooLarge = sum.errors.size_limit || 0;
  const judged = sum.requests + sum.dropped - tooLarge;
  return judged > 0 ? (sum.failures + sum.dropped - tooLarge) / judged : 0;
}

/** Numbers with four significant digits and a unit, as in the status. */
function formatSeconds(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds === 0) return "0s";
  if (seconds >= 60) {
    const tenths = Math.round(seconds * 10);
    const parts = [[Math.floor(tenths / 36000), "h"], [Math.floor(tenths / 600) % 60, "m"], [(tenths % 600) / 10, "s"]];
    return parts.filter(([number]) => number > 0).map(([number, unit]) => `${number}${unit}`).join("");
  }
  for (const [factor, unit] of [[1e9, "ns"], [1e6, "µs"], [1e3, "ms"]]) {
    const value = Number((seconds * factor).toPrecision(4));
    if (value < 1000) return `${value}${unit}`;
  }
  return `${Number(seconds.toPrecision(4))}s`;
}

function formatRate(value) {
  return `${Number(value.toPrecision(4))}/s`;
}

function formatPercent(fraction) {
  return `${Number((fraction * 100).toPrecision(4))}%`;
}
