// Shows the page of a report.
"use strict";

async function showPage() {
  document.querySelectorAll("table.sortable").forEach(makeSortable);
  const page = new Page(await readEmbeddedData());
  document.getElementById("charts").hidden = false;
  page.connectControls();
  page.fillMetrics();
  page.draw();
  window.loadtestPage = page;
}

showPage().catch((error) => {
  document.getElementById("chart-problem").textContent = `The charts can't be drawn: ${error.message}`;
});
