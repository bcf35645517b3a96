// The page of a report: reads the result that is embedded in the file, draws the charts, and computes
// the numbers of a selected span.
"use strict";

const SELECTION_PERCENTILES = [["p50", 0.5], ["p90", 0.9], ["p95", 0.95], ["p99", 0.99], ["p99.9", 0.999], ["max", 1]];
const BOUND_COLORS = [["target", "--green"], ["warning", "--amber"], ["critical", "--red"]];

/** The data in the file: {result, series, overview}, written by report/src/html/data.rs. */
async function readEmbeddedData() {
  const parts = document.getElementById("result").textContent.trim().split(" ");
  const [json, gaps, counts] = await Promise.all(parts.map(async (part) => {
    const bytes = Uint8Array.from(atob(part), (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }));
  const data = JSON.parse(new TextDecoder().decode(json));
  const streams = { gaps: new NumberStream(gaps), counts: new NumberStream(counts) };
  unpackSeries(data.series, streams);
  if (data.overview) unpackSeries(data.overview, streams);
  return data;
}

class Page {
  constructor({ result, series, overview }) {
    this.result = result;
    // Sums over these points are exact. The charts of a long run are drawn from its overview.
    this.series = series;
    this.points = (overview || series).points;
    this.duration = this.points.length > 0 ? this.points[this.points.length - 1].end : 0;
    this.task = "";
    this.metric = "responseTime";
    this.span = [0, this.duration];
    this.plots = [];
  }

  /** The bounds of the thresholds that judge a latency of a task, for lines in charts. */
  boundsOf(task, metric) {
    const rows = this.result.thresholds.filter((row) => row.metric === metric && (row.task || "") === task);
    return rows.flatMap((row) => BOUND_COLORS.filter(([name]) => row[name]).map(([name, color]) => ({
      value: row[name].value, color, label: `${row.statistic} ${name} ${row[name].comparison} ${formatSeconds(row[name].value)}`,
    })));
  }

  /** Selects the whole intervals that a span of seconds touches. */
  select(from, to) {
    const touched = this.series.points.filter((point) => point.end > from + 1e-6 && point.start < to - 1e-6);
    // Without a touched interval, the span and the fields stay as they were.
    if (touched.length > 0) this.span = [touched[0].start, touched[touched.length - 1].end];
    this.showSelection();
  }

  reset() {
    this.span = [0, this.duration];
    this.showSelection();
  }

  /** Names of the latencies that were measured on the chosen task. */
  metrics() {
    const sum = sumPoints(this.points, this.task);
    return Object.keys(sum.latencies).sort((a, b) => (a === "responseTime" ? -1 : b === "responseTime" ? 1 : a.localeCompare(b)));
  }

  /** Takes over points that were added to the series. */
  extend() {
    this.duration = this.points.length > 0 ? this.points[this.points.length - 1].end : 0;
    for (const id of ["from", "to"]) document.getElementById(id).max = this.duration;
    if (this.metrics().length !== document.getElementById("metric").options.length) this.fillMetrics();
  }

  draw() {
    const hovered = this.plots.findIndex((plot) => plot.over.matches(":hover"));
    const cursor = hovered >= 0 ? { left: this.plots[hovered].cursor.left, top: this.plots[hovered].cursor.top } : null;
    for (const plot of this.plots) plot.destroy();
    const at = (id) => document.getElementById(id);
    const hasErrors = Object.keys(sumPoints(this.points, this.task).errors).length > 0;
    at("errors-over-time").hidden = !hasErrors;
    this.plots = [drawRates(at("rates"), this), drawLatency(at("latency"), this), drawUsers(at("users"), this)];
    if (hasErrors) this.plots.push(drawErrors(at("errors-chart"), this));
    this.plots.push(drawLoadAgainstLatency(at("load-latency"), this));
    this.percentilePlot?.destroy();
    this.percentilePlot = null;
    this.showSelection();
    if (cursor) this.plots[hovered]?.setCursor(cursor);
  }

  showSelection() {
    const [from, to] = this.span;
    for (const [id, value] of [["from", from], ["to", to]]) {
      const field = document.getElementById(id);
      // Not while the viewer writes in it.
      if (field !== document.activeElement) field.value = value;
    }
    const points = pointsWithin(this.series, from, to);
    const isWhole = points.length === this.series.points.length;
    document.getElementById("selected").textContent = isWhole
      ? `Whole run: ${formatSeconds(to - from)}`
      : `${formatSeconds(from)} to ${formatSeconds(to)} of the run`;
    const body = document.querySelector("#selection tbody");
    body.replaceChildren();
    const names = this.task === "" ? ["", ...this.result.tasks.map((task) => task.name)] : [this.task];
    for (const name of names) {
      const sum = sumPoints(points, name);
      const latency = sum.latencies[this.metric];
      const cells = [
        name === "" ? "all tasks" : name,
        String(sum.requests),
        formatPercent(errorRateOf(sum)),
        sum.seconds > 0 ? formatRate(sum.successesInLoad / sum.seconds) : "–",
        formatSeconds(latency ? latency.mean() : null),
        ...SELECTION_PERCENTILES.map(([, p]) => formatSeconds(latency ? latency.quantile(p) : null)),
      ];
      const row = body.insertRow();
      row.dataset.task = name;
      cells.forEach((text) => { row.insertCell().textContent = text; });
    }
    this.percentilePlot?.destroy();
    this.percentilePlot = drawPercentiles(document.getElementById("percentiles"), sumPoints(points, this.task));
    for (const plot of this.plots.slice(0, -1)) {
      const left = plot.valToPos(from, "x");
      const width = isWhole ? 0 : plot.valToPos(to, "x") - left;
      plot.setSelect({ left, width, top: 0, height: width > 0 ? plot.over.clientHeight : 0 }, false);
    }
  }

  fillMetrics() {
    const select = document.getElementById("metric");
    const names = this.metrics();
    if (!names.includes(this.metric)) this.metric = names[0] || "responseTime";
    select.replaceChildren(...names.map((name) => new Option(name, name, false, name === this.metric)));
  }

  connectControls() {
    const at = (id) => document.getElementById(id);
    at("task").replaceChildren(new Option("all tasks", ""), ...this.result.tasks.map((task) => new Option(task.name, task.name)));
    at("task").addEventListener("change", (event) => {
      this.task = event.target.value;
      this.fillMetrics();
      this.draw();
    });
    at("metric").addEventListener("change", (event) => {
      this.metric = event.target.value;
      this.draw();
    });
    const apply = () => this.select(Number(at("from").value), Number(at("to").value));
    at("from").addEventListener("change", apply);
    at("to").addEventListener("change", apply);
    at("reset").addEventListener("click", () => this.reset());
    for (const id of ["from", "to"]) at(id).max = this.duration;
    let width = document.body.clientWidth;
    new ResizeObserver(() => {
      if (document.body.clientWidth === width) return;
      width = document.body.clientWidth;
      this.draw();
    }).observe(document.body);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }
}

/** Lets a click on the head of a column sort the table by it. */
function makeSortable(table) {
  table.querySelectorAll("thead th").forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const isDescending = head.getAttribute("aria-sort") === "ascending";
      table.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", isDescending ? "descending" : "ascending");
      const keyOf = (row) => {
        const cell = row.cells[column];
        return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
      };
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        const [x, y] = [keyOf(a), keyOf(b)];
        return typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y));
      });
      table.tBodies[0].append(...(isDescending ? rows.reverse() : rows));
    });
  });
}
