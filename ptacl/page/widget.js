// The explorer's own part of the page: the table of patients, and what ties the view to the kernel.

// Patients with their scores, worst first. A click on a head sorts, a click on a row opens the patient, ticked rows make up a selection.
function patientTable(root, model, open) {
  let by = null, up = true, order = [];
  const escaped = x => String(x).replace(/[&<>"']/g, c => `&#${c.charCodeAt(0)};`);
  const cut = x => x == null ? "–" : typeof x === "number" ? x.toFixed(2) : escaped(x);
  function fill() {
    const { columns, rows, sort } = model.get("table"), ticked = new Set(model.get("ticked"));
    if (!columns) return;
    if (by === null) { by = sort; up = true; }
    const key = r => r[by + 1], low = x => x == null || Number.isNaN(x);
    order = [...rows].sort((a, b) => low(key(a)) - low(key(b)) || (key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : a[0] - b[0]) * (up ? 1 : -1));
    const groups = model.get("table").groups.map(g => `<th colspan="2" scope="colgroup">${escaped(g)}</th>`).join("");
    const head = columns.map((c, j) => `<th scope="col" aria-sort="${j === by ? (up ? "ascending" : "descending") : "none"}"><button data-j="${j}">${escaped(c)}${j === by ? (up ? " ▲" : " ▼") : ""}</button></th>`);
    root.innerHTML = `<table><thead><tr><th colspan="2"></th>${groups}</tr><tr><th></th>${head.join("")}</tr></thead><tbody>${order.map(r => `<tr data-i="${r[0]}"><td><input type="checkbox" aria-label="select ${escaped(r[1])}" ${ticked.has(r[0]) ? "checked" : ""}></td>
      ${r.slice(1).map((x, j) => j ? `<td>${cut(x)}</td>` : `<td><button class="px-open">${escaped(x)}</button></td>`).join("")}</tr>`).join("")}</tbody></table>`;
    mark();
  }
  function mark() { root.querySelectorAll("tr.now").forEach(r => r.classList.remove("now")); const row = root.querySelector(`tr[data-i="${model.get("patient")}"]`);
    if (!row) return; row.classList.add("now"); const top = row.offsetTop - root.clientHeight / 2; if (row.offsetTop < root.scrollTop + 30 || row.offsetTop > root.scrollTop + root.clientHeight - 30) root.scrollTop = top; }
  root.addEventListener("click", e => {
    const head = e.target.closest("th button"), row = e.target.closest("tbody tr");
    if (head) { const j = +head.dataset.j; up = j === by ? !up : true; by = j; fill(); root.querySelector(`th button[data-j="${j}"]`).focus(); }
    else if (row && e.target.type === "checkbox") { const t = new Set(model.get("ticked")), i = +row.dataset.i; e.target.checked ? t.add(i) : t.delete(i); model.set("ticked", [...t]); model.save_changes(); }
    else if (row) open(+row.dataset.i);
  });
  return { fill, mark, step(d) { const at = order.findIndex(r => r[0] === model.get("patient")); open(order[(at + d + order.length) % order.length][0]); } };
}

// plotly comes once from the kernel: 5 MB have no place in the state of a widget.
const loadPlotly = model => window.__ptaclPlotly ||= new Promise(done => {
  const hear = (message, buffers) => {
    if (!message.plotly) return;
    model.off("msg:custom", hear);
    const before = window.Plotly;
    new Function(new TextDecoder().decode(buffers[0])).call(window);
    done(window.Plotly);
    if (before) window.Plotly = before;
  };
  model.on("msg:custom", hear); model.send({ ask: "plotly" });
});
function save(message, buffers) {
  if (!message.download) return;
  const link = Object.assign(document.createElement("a"), { download: message.download, href: URL.createObjectURL(new Blob([buffers[0]], { type: message.type })) });
  document.body.append(link); link.click(); link.remove(); setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
async function render({ model, el }) {
  el.innerHTML = `<div class="px-page"><div class="px-both"><div class="px-table" role="region" aria-label="patients and scores" tabindex="0"></div><div></div></div></div>`;
  const root = el.querySelector(".px-both").lastElementChild, Plotly = await loadPlotly(model);
  const table = patientTable(el.querySelector(".px-table"), model, i => { root.clicked = performance.now(); model.set("patient", i); model.save_changes(); });
  const view = linkedView(root, Plotly, { step: d => table.step(d), cell: (k, t) => { model.set("cell", [k, t]); model.save_changes(); } });
  let busy = false, again = false;
  async function refresh() {
    if (busy) { again = true; return; }
    busy = true;
    try { do { again = false; await view.show(model.get("view")); } while (again); } finally { busy = false; }
    if (root.clicked) requestAnimationFrame(() => setTimeout(() => { root.dataset.ms = performance.now() - root.clicked; root.clicked = 0; }));
  }
  model.on("change:view", refresh); model.on("change:table", table.fill); model.on("change:patient", table.mark); model.on("msg:custom", save);
  table.fill(); await refresh(); root.dataset.ready = "1";
  return () => view.off();
}
export default { render };
