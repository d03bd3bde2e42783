// Called by runs.js, if it exists: model -> mlflow, log, json -> address.
function actionzooRuns(runs) {
  for (const link of document.querySelectorAll("a[data-model]")) {
    const address = (runs[link.dataset.model] || {})[link.dataset.kind];
    if (address) {
      link.href = address;
      link.hidden = false;
    }
  }
}

// A link to a model opens its section.
function openTarget() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target instanceof HTMLDetailsElement) {
    target.open = true;
    target.scrollIntoView();
  }
}
addEventListener("hashchange", openTarget);
openTarget();

// Clicking a column's head sorts by it, by number where it holds numbers; long tables get a search field.
function sortBy(table, head) {
  const descending = head.getAttribute("aria-sort") === "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const text = (row) => row.cells[head.cellIndex].textContent;
  const rows = [...table.tBodies[0].rows].sort((a, b) => {
    const difference = parseFloat(text(a)) - parseFloat(text(b));
    return Number.isNaN(difference) ? text(a).localeCompare(text(b)) : difference;
  });
  table.tBodies[0].append(...(descending ? rows.reverse() : rows));
}
for (const table of document.querySelectorAll("table.sortable")) {
  for (const head of table.tHead.rows[0].cells) {
    if (!head.textContent) continue;
    const button = document.createElement("button");
    button.textContent = head.textContent;
    button.addEventListener("click", () => sortBy(table, head));
    head.replaceChildren(button);
  }
  if (table.tBodies[0].rows.length > 12) {
    const field = document.createElement("input");
    field.type = "search";
    field.placeholder = "class …";
    field.setAttribute("aria-label", "show only rows with these words");
    field.addEventListener("input", () => {
      const words = field.value.toLowerCase();
      for (const row of table.tBodies[0].rows) row.hidden = !row.textContent.toLowerCase().includes(words);
    });
    table.before(field);
  }
}
