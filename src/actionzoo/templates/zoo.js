// Called by runs.js, if it is there: row -> mlflow, log, json -> address.
function actionzooRuns(runs) {
  for (const link of document.querySelectorAll("a[data-row]")) {
    const address = (runs[link.dataset.row] || {})[link.dataset.kind];
    if (address) {
      link.href = address;
      link.hidden = false;
    }
  }
}

// A link to a row opens it.
function openTarget() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target instanceof HTMLDetailsElement) {
    target.open = true;
    target.scrollIntoView();
  }
}
addEventListener("hashchange", openTarget);
openTarget();
