// The charts of a report. Each function draws one chart into an element and returns nothing that the
// page has to keep, except those that return a uPlot.
"use strict";

/**
 * The range of a logarithmic axis around positive values: from a whole number of units of the lower
 * decade to 1.3 times the highest. uPlot never ends if a logarithmic axis begins just below a power
 * of ten.
 */
function logRange(low, high) {
  const start = low / 1.3;
  const unit = 10 ** Math.floor(Math.log10(start));
  return [Math.max(Math.floor(start / unit), 1) * unit, high * 1.3];
}

/** A logarithmic axis has no place for zero. */
function positiveOrNull(value) {
  return value > 0 ? value : null;
}

function cssColor(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function withAlpha(name, alpha) {
  return `rgba(${cssColor(name)}, ${alpha})`;
}

const PERCENTILE_LINES = [
  ["p50", 0.5, "--green"], ["p95", 0.95, "--amber"], ["p99", 0.99, "--red"],
];
const ERROR_COLORS = ["--red", "--amber", "--purple", "--blue", "--muted"];

/** Options that all charts over time share: the cursor, and the span that a drag selects. */
function timeOptions(width, height, page, axes) {
  const stroke = cssColor("--muted");
  const grid = { stroke: cssColor("--line"), width: 1 };
  return {
    width, height,
    cursor: { sync: { key: "time" }, drag: { x: true, y: false, setScale: false }, points: { show: false } },
    scales: { x: { time: false, range: [0, Math.max(page.duration, 1e-3)] }, ...axes.scales },
    axes: [
      { stroke, grid, values: (_, ticks) => ticks.map((tick) => `${tick}s`) },
      { stroke, grid, size: 70, ...axes.left },
    ],
    hooks: {
      setSelect: [(plot) => {
        if (plot.select.width < 3) return;
        page.select(plot.posToVal(plot.select.left, "x"), plot.posToVal(plot.select.left + plot.select.width, "x"));
      }],
      draw: [(plot) => drawEvents(plot, page.result.events)],
    },
  };
}

function drawEvents(plot, events) {
  const { ctx, bbox } = plot;
  ctx.save();
  ctx.strokeStyle = cssColor("--purple");
  ctx.setLineDash([4, 4]);
  for (const event of events) {
    if (event.kind === "Started" || event.kind === "LoadEnded") continue;
    const x = Math.round(plot.valToPos(event.seconds, "x", true));
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
  }
  ctx.restore();
}

/** Points of a chart over time stand at the end of their interval. */
function timesOf(points) {
  return points.map((point) => point.end);
}

function drawRates(element, page) {
  const points = page.points;
  const sums = points.map((point) => sumPoints([point], page.task));
  const perSecond = (pick) => sums.map((sum) => (sum.seconds > 0 ? pick(sum) / sum.seconds : null));
  const series = [
    { label: "seconds", value: (_, value) => (value === null ? "–" : `${value.toFixed(1)}s`) },
    { label: "successes/s", stroke: cssColor("--green"), width: 2, value: (_, v) => (v === null ? "–" : formatRate(v)) },
    { label: "failures/s", stroke: cssColor("--red"), width: 2, value: (_, v) => (v === null ? "–" : formatRate(v)) },
  ];
  const data = [timesOf(points), perSecond((sum) => sum.successesInLoad), perSecond((sum) => sum.failures)];
  if (points.some((point) => point.plannedRate !== undefined) && page.task === "") {
    series.push({ label: "planned/s", stroke: cssColor("--muted"), width: 2, dash: [6, 4], value: (_, v) => (v === null ? "–" : formatRate(v)) });
    data.push(points.map((point) => point.plannedRate ?? null));
  }
  const options = timeOptions(element.clientWidth, 200, page, { scales: { y: { range: (_, min, max) => [0, (max || 1) * 1.1] } } });
  return new uPlot({ ...options, series }, data, element);
}

function drawUsers(element, page) {
  const points = page.points;
  const series = [
    { label: "seconds", value: (_, value) => (value === null ? "–" : `${value.toFixed(1)}s`) },
    { label: "users", stroke: cssColor("--blue"), width: 2 },
  ];
  const data = [timesOf(points), points.map((point) => point.users)];
  if (points.some((point) => point.plannedUsers !== undefined)) {
    series.push({ label: "planned users", stroke: cssColor("--muted"), width: 2, dash: [6, 4] });
    data.push(points.map((point) => point.plannedUsers ?? null));
  }
  const options = timeOptions(element.clientWidth, 140, page, { scales: { y: { range: (_, min, max) => [0, (max || 1) * 1.1] } } });
  return new uPlot({ ...options, series }, data, element);
}

/** Latency over time: a heat map of all samples, with lines of percentiles and of thresholds. */
function drawLatency(element, page) {
  const points = page.points;
  const histograms = points.map((point) => sumPoints([point], page.task).latencies[page.metric] || new Histogram());
  let low = Infinity;
  let high = 0;
  for (const histogram of histograms) {
    const entries = histogram.entries();
    if (entries.length === 0) continue;
    low = Math.min(low, bucketMiddle(entries[0][0]));
    high = Math.max(high, bucketMiddle(entries[entries.length - 1][0]));
  }
  const bounds = page.boundsOf(page.task, page.metric).filter((bound) => bound.value > 0);
  for (const bound of bounds) {
    low = Math.min(low, bound.value);
    high = Math.max(high, bound.value);
  }
  if (!(high > 0)) [low, high] = [0.001, 1];
  const series = [{ label: "seconds", value: (_, value) => (value === null ? "–" : `${value.toFixed(1)}s`) }];
  const data = [timesOf(points)];
  for (const [label, p, color] of PERCENTILE_LINES) {
    series.push({ label, stroke: cssColor(color), width: 2, value: (_, value) => formatSeconds(value) });
    data.push(histograms.map((histogram) => positiveOrNull(histogram.quantile(p))));
  }
  const options = timeOptions(element.clientWidth, 260, page, {
    scales: { y: { distr: 3, range: logRange(low, high) } },
    left: { values: (_, ticks) => ticks.map((tick) => (tick === null ? null : formatSeconds(tick))) },
  });
  options.hooks.drawClear = [(plot) => drawHeat(plot, points, histograms)];
  options.hooks.draw.push((plot) => drawBounds(plot, bounds));
  return new uPlot({ ...options, series }, data, element);
}

function drawHeat(plot, points, histograms) {
  // Rows of 1/8 of a doubling: 32 buckets each.
  const WIDTH = 32;
  const cells = histograms.map((histogram) => {
    const rows = new Map();
    for (const [bucket, count] of histogram.entries()) {
      const row = Math.floor((bucket - 1) / WIDTH);
      rows.set(row, (rows.get(row) || 0) + count);
    }
    return rows;
  });
  const most = Math.max(1, ...cells.flatMap((rows) => [...rows.values()]));
  const { ctx } = plot;
  ctx.save();
  cells.forEach((rows, index) => {
    const left = plot.valToPos(points[index].start, "x", true);
    const right = plot.valToPos(points[index].end, "x", true);
    for (const [row, count] of rows) {
      const bottom = plot.valToPos(2 ** ((row * WIDTH) / BUCKETS_PER_DOUBLING), "y", true);
      const top = plot.valToPos(2 ** (((row + 1) * WIDTH) / BUCKETS_PER_DOUBLING), "y", true);
      ctx.fillStyle = withAlpha("--heat", 0.08 + 0.62 * (Math.log1p(count) / Math.log1p(most)));
      ctx.fillRect(left, top, Math.max(right - left, 1), Math.max(bottom - top, 1));
    }
  });
  ctx.restore();
}

function drawBounds(plot, bounds) {
  const { ctx, bbox } = plot;
  ctx.save();
  ctx.setLineDash([8, 4]);
  ctx.font = `${12 * devicePixelRatio}px system-ui, sans-serif`;
  for (const bound of bounds) {
    const y = Math.round(plot.valToPos(bound.value, "y", true));
    ctx.strokeStyle = ctx.fillStyle = cssColor(bound.color);
    ctx.beginPath();
    ctx.moveTo(bbox.left, y);
    ctx.lineTo(bbox.left + bbox.width, y);
    ctx.stroke();
    ctx.fillText(bound.label, bbox.left + 6, y - 4);
  }
  ctx.restore();
}

function drawErrors(element, page) {
  const points = page.points;
  const sums = points.map((point) => sumPoints([point], page.task));
  const kinds = Object.entries(sumPoints(points, page.task).errors).sort((a, b) => b[1] - a[1]).map(([kind]) => kind);
  const shown = kinds.slice(0, 4);
  if (kinds.length > 4) shown.push("others");
  const countOf = (sum, kind) => (kind === "others"
    ? kinds.slice(4).reduce((total, other) => total + (sum.errors[other] || 0), 0)
    : sum.errors[kind] || 0);
  const series = [{ label: "seconds", value: (_, value) => (value === null ? "–" : `${value.toFixed(1)}s`) }];
  const data = [timesOf(points)];
  const bands = [];
  shown.forEach((kind, index) => {
    const color = cssColor(ERROR_COLORS[index]);
    const stacked = sums.map((sum) => shown.slice(index).reduce((total, other) => total + countOf(sum, other), 0));
    series.push({
      label: kind, stroke: color, fill: `${color}55`, width: 1, paths: uPlot.paths.stepped({ align: -1 }),
      value: (_, value, seriesIndex, i) => (i === null || i === undefined ? "–" : String(countOf(sums[i], kind))),
    });
    data.push(stacked);
    if (index > 0) bands.push({ series: [index, index + 1] });
  });
  const options = timeOptions(element.clientWidth, 140, page, { scales: { y: { range: (_, min, max) => [0, (max || 1) * 1.1] } } });
  return new uPlot({ ...options, series, bands }, data, element);
}

/** Percentiles by number of nines: response time and service time of the selected span. */
function drawPercentiles(element, sum) {
  const names = ["responseTime", "serviceTime"].filter((name) => sum.latencies[name]);
  const most = Math.max(0, ...names.map((name) => sum.latencies[name].count));
  const nines = most > 0 ? Math.max(1, Math.log10(most)) : 1;
  const xs = [];
  for (let x = 0; x <= nines + 1e-9; x += nines / 120) xs.push(x);
  const stroke = cssColor("--muted");
  const grid = { stroke: cssColor("--line"), width: 1 };
  const percent = (x) => `${Number((100 * (1 - 10 ** -x)).toPrecision(Math.max(2, Math.ceil(x) + 1)))}%`;
  const series = [{ label: "percentile", value: (_, x) => (x === null ? "–" : percent(x)) }];
  const data = [xs];
  names.forEach((name, index) => {
    series.push({ label: name, stroke: cssColor(index === 0 ? "--blue" : "--amber"), width: 2, dash: index === 0 ? undefined : [6, 4], value: (_, value) => formatSeconds(value) });
    data.push(xs.map((x) => positiveOrNull(sum.latencies[name].quantile(1 - 10 ** -x))));
  });
  return new uPlot({
    width: element.clientWidth, height: 240, series,
    cursor: { drag: { x: false, y: false }, points: { show: false } },
    scales: { x: { time: false }, y: { distr: 3 } },
    axes: [
      { stroke, grid, splits: () => (element.clientWidth < 400 ? [0, 1, 2, 3, 4, 5, 6] : [0, 0.30103, 1, 2, 3, 4, 5, 6]).filter((x) => x <= nines), values: (_, ticks) => ticks.map(percent) },
      { stroke, grid, size: 70, values: (_, ticks) => ticks.map((tick) => (tick === null ? null : formatSeconds(tick))) },
    ],
  }, data, element);
}

/** Load against latency: one dot for each interval of the series. */
function drawLoadAgainstLatency(element, page) {
  const dots = page.points
    .map((point) => {
      const sum = sumPoints([point], page.task);
      const latency = sum.latencies[page.metric];
      return latency && sum.seconds > 0 ? [sum.successesInLoad / sum.seconds, latency.quantile(0.95)] : null;
    })
    .filter((dot) => dot !== null && dot[1] > 0)
    .sort((a, b) => a[0] - b[0]);
  const stroke = cssColor("--muted");
  const grid = { stroke: cssColor("--line"), width: 1 };
  const options = {
    width: element.clientWidth, height: 240,
    cursor: { drag: { x: false, y: false } },
    scales: { x: { time: false }, y: { distr: 3 } },
    axes: [
      { stroke, grid, values: (_, ticks) => ticks.map((tick) => `${tick}/s`) },
      { stroke, grid, size: 70, values: (_, ticks) => ticks.map((tick) => (tick === null ? null : formatSeconds(tick))) },
    ],
    series: [
      { label: "successes/s", value: (_, value) => (value === null ? "–" : formatRate(value)) },
      { label: "p95", stroke: cssColor("--blue"), paths: () => null, points: { show: true, size: 7, fill: cssColor("--blue") }, value: (_, value) => formatSeconds(value) },
    ],
    hooks: { draw: [(plot) => drawBounds(plot, page.boundsOf(page.task, page.metric).filter((bound) => bound.value > 0))] },
  };
  return new uPlot(options, [dots.map((dot) => dot[0]), dots.map((dot) => dot[1])], element);
}
