// The live page: applies the updates of a running test to the page of a report.
"use strict";

/** Time in which a second click on the button confirms a stop. */
const CONFIRM_MILLISECONDS = 4000;

function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
}

class LivePage {
  constructor() {
    this.page = null;
    this.isOver = false;
    this.isDragging = false;
    this.isStopping = false;
    // The column by which the viewer sorted the table of a part.
    this.sorting = {};
    const at = (id) => document.getElementById(id);
    at("freeze").addEventListener("change", () => this.draw());
    at("stop")?.addEventListener("click", (event) => this.stop(event.target));
    at("charts").addEventListener("pointerdown", () => { this.isDragging = true; });
    addEventListener("pointerup", () => { this.isDragging = false; });
    // A screen reader must not read numbers that change each second.
    at("selected").setAttribute("aria-live", "off");
    this.say("Waiting for the first numbers.");
  }

  say(text) {
    const state = document.getElementById("state");
    if (state.textContent !== text) state.textContent = text;
  }

  connect() {
    const source = new EventSource("events");
    source.addEventListener("message", (event) => {
      this.update(JSON.parse(event.data));
      if (this.isOver) source.close();
    });
    source.addEventListener("error", () => {
      if (!this.isOver) this.say("The connection is lost. Trying again.");
    });
  }

  update(update) {
    document.title = update.title;
    for (const [name, html] of Object.entries(update.parts)) this.replacePart(name, html);
    const streams = { gaps: new NumberStream(bytesOf(update.gaps)), counts: new NumberStream(bytesOf(update.counts)) };
    unpackSeries(update.series, streams);
    this.addPoints(update);
    this.isOver = update.isOver;
    const button = document.getElementById("stop");
    if (button && this.isOver) button.hidden = true;
    if (this.isOver || !this.isStopping) this.say(this.isOver ? "The test is over. This page keeps its result until you close it." : "The test runs. New numbers come each second.");
    this.draw();
  }

  replacePart(name, html) {
    const part = document.getElementById(`part-${name}`);
    if (part.dataset.html === html) return;
    part.dataset.html = html;
    const focused = part.contains(document.activeElement) ? [...part.querySelectorAll("button")].indexOf(document.activeElement) : -1;
    part.innerHTML = html;
    part.querySelectorAll("table.sortable").forEach((table) => {
      makeSortable(table);
      const buttons = [...table.querySelectorAll("thead button")];
      const sorted = this.sorting[name];
      if (sorted) for (let click = 0; click < sorted.clicks; click += 1) buttons[sorted.column]?.click();
      buttons.forEach((button, column) => button.addEventListener("click", () => {
        const before = this.sorting[name];
        const isAgain = before && before.column === column;
        this.sorting[name] = { column, clicks: isAgain ? (before.clicks % 2) + 1 : 1 };
      }));
    });
    if (focused >= 0) part.querySelectorAll("button")[focused]?.focus();
  }

  addPoints({ result, series, first }) {
    if (!this.page) {
      if (series.points.length === 0) return;
      this.page = new Page({ result, series, overview: null });
      window.loadtestPage = this.page;
      document.getElementById("charts").hidden = false;
      this.page.connectControls();
      this.page.fillMetrics();
      return;
    }
    const { page } = this;
    const wasWhole = page.span[0] === 0 && page.span[1] === page.duration;
    page.result = result;
    page.series.stepSeconds = series.stepSeconds;
    page.series.points.length = first;
    page.series.points.push(...series.points);
    page.extend();
    if (wasWhole) page.span = [0, page.duration];
  }

  draw() {
    const isFrozen = document.getElementById("freeze").checked;
    if (!this.page || this.isDragging || (isFrozen && !this.isOver)) return;
    this.page.draw();
  }

  async stop(button) {
    if (button.dataset.asked !== "yes") {
      button.dataset.asked = "yes";
      button.textContent = "Click again to stop";
      setTimeout(() => {
        button.dataset.asked = "";
        button.textContent = "Stop the test";
      }, CONFIRM_MILLISECONDS);
      return;
    }
    button.disabled = true;
    const response = await fetch("stop", { method: "POST", headers: { "x-stop-token": button.dataset.token } }).catch((error) => error);
    if (response.ok) {
      button.hidden = true;
      this.isStopping = true;
      this.say("The test is being stopped.");
    } else {
      button.disabled = false;
      this.say(`The test can't be stopped: ${response.message || (await response.text())}`);
    }
  }
}

new LivePage().connect();
