// The explorer's own part of the page: the table of patients, and what ties the view to the kernel.

// Patients with their scores, worst first. A click on a head sorts, a click on a row opens the patient, ticked rows make up a selection.
// One row at a time is reached by Tab, the others by the arrows: 500 patients are no 1000 stops on the way to the maps.
function patientTable(root, model, open) {
  let by = null, up = true, order = [];
  const escaped = x => String(x).replace(/[&<>"']/g, c => `&#${c.charCodeAt(0)};`);
  const cut = x => x == null ? "–" : typeof x === "number" ? x.toFixed(2) : escaped(x);
  function fill() {
    const { columns, rows, sort } = model.get("table"), ticked = new Set(model.get("ticked"));
    if (!columns) return;
    if (by === null) { by = sort; up = true; }
    const key = r => r[by + 1], low = x => x == null || Number.isNaN(x), second = j => j && j % 2 === 0 ? " class='px-second'" : "";
    order = [...rows].sort((a, b) => low(key(a)) - low(key(b)) || (key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : a[0] - b[0]) * (up ? 1 : -1));
    const groups = model.get("table").groups.map(g => `<th class="px-group">${escaped(g)}</th><td class="px-second"></td>`).join("");
    const head = columns.map((c, j) => `<th scope="col"${second(j)} aria-sort="${j === by ? (up ? "ascending" : "descending") : "none"}"><button data-j="${j}">${escaped(c)}${j === by ? (up ? " ▲" : " ▼") : ""}</button></th>`);
    root.innerHTML = `<table><thead><tr><td colspan="2"></td>${groups}</tr><tr><td></td>${head.join("")}</tr></thead><tbody>${order.map(r => `<tr data-i="${r[0]}"><td><input type="checkbox" tabindex="-1" aria-label="select ${escaped(r[1])}" ${ticked.has(r[0]) ? "checked" : ""}></td>
      ${r.slice(1).map((x, j) => j ? `<td${second(j)}>${cut(x)}</td>` : `<td><button class="px-open" tabindex="-1">${escaped(x)}</button></td>`).join("")}</tr>`).join("")}</tbody></table>`;
    mark();
  }
  const reach = row => { root.querySelectorAll("tbody [tabindex='0']").forEach(x => x.tabIndex = -1); row?.querySelectorAll("input, button").forEach(x => x.tabIndex = 0); };
  function mark() { root.querySelectorAll("tr.now").forEach(r => { r.classList.remove("now"); r.querySelector("button").removeAttribute("aria-current"); }); const row = root.querySelector(`tr[data-i="${model.get("patient")}"]`);
    if (!row) return; row.classList.add("now"); row.querySelector("button").setAttribute("aria-current", "true"); reach(row); const top = row.offsetTop - root.clientHeight / 2; if (row.offsetTop < root.scrollTop + 40 || row.offsetTop > root.scrollTop + root.clientHeight - 40) root.scrollTop = top; }
  root.addEventListener("click", e => {
    const head = e.target.closest("th button"), row = e.target.closest("tbody tr");
    if (head) { const j = +head.dataset.j; up = j === by ? !up : true; by = j; fill(); root.querySelector(`th button[data-j="${j}"]`).focus(); }
    else if (row && e.target.type === "checkbox") { const t = new Set(model.get("ticked")), i = +row.dataset.i; e.target.checked ? t.add(i) : t.delete(i); model.set("ticked", [...t]); model.save_changes(); }
    else if (row) open(+row.dataset.i);
  });
  root.addEventListener("keydown", e => {
    const row = e.target.closest("tbody tr"), rows = row && [...row.parentElement.children];
    const to = row && { ArrowDown: row.nextElementSibling, ArrowUp: row.previousElementSibling, Home: rows[0], End: rows.at(-1) }[e.key];
    if (!to) return;
    reach(to); to.querySelector(e.target.type === "checkbox" ? "input" : "button").focus(); e.preventDefault(); e.stopPropagation();
  });
  return { fill, mark, step(d) { const at = order.findIndex(r => r[0] === model.get("patient")); open(order[(at + d + order.length) % order.length][0]); } };
}

// Sliders of ipywidgets have a label beside them and none of their own, and explain themselves as "null".
function nameControls(top) {
  top.querySelectorAll("[title='null'], [title='']").forEach(x => x.removeAttribute("title"));
  top.querySelectorAll(".widget-slider, .jupyter-widget-slider").forEach(s => {
    const words = s.querySelector(".widget-label")?.textContent, read = s.querySelector(".widget-readout");
    if (!words) return;
    s.querySelectorAll("[role='slider']").forEach(x => { if (x.getAttribute("aria-label") !== words) x.setAttribute("aria-label", words); if (read && x.getAttribute("aria-valuetext") !== read.textContent) x.setAttribute("aria-valuetext", read.textContent); });
    if (read && !read.hasAttribute("aria-label")) { read.setAttribute("aria-label", words); read.setAttribute("role", "textbox"); }
  });
  top.querySelectorAll(".widget-toggle-buttons, .jupyter-widget-toggle-buttons").forEach(g => g.querySelectorAll("button").forEach(b => { const on = String(b.classList.contains("mod-active")); if (b.getAttribute("aria-pressed") !== on) b.setAttribute("aria-pressed", on); }));
  top.querySelectorAll("button.widget-toggle-button, button.jupyter-widget-toggle-button").forEach(b => { const on = String(b.classList.contains("mod-active")); if (b.getAttribute("aria-pressed") !== on) b.setAttribute("aria-pressed", on); });
  top.querySelectorAll("button.widget-upload, button.jupyter-widget-upload").forEach(b => { const words = b.lastChild; if (words?.nodeType === 3 && / \(\d+\)$/.test(words.data)) words.data = words.data.replace(/ \(\d+\)$/, ""); }); // files are taken at once: none is waiting
}
function watchControls(el) { // once the explorer is on the page
  const top = el.closest(".px-explorer");
  if (!top) return requestAnimationFrame(() => watchControls(el));
  nameControls(top);
  new MutationObserver(() => nameControls(top)).observe(top, { subtree: true, childList: true, attributes: true, attributeFilter: ["class", "title", "aria-valuenow"] });
  top.addEventListener("click", e => { if (e.target.closest(".px-skip")) { e.preventDefault(); top.querySelector(".px-panels").focus(); top.querySelector(".px-panels").scrollIntoView(); } });
}

// plotly comes once from the kernel: 5 MB have no place in the state of a widget.
const fromKernel = model => new Promise(done => {
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
// A page of ours has read it already.
const loadPlotly = model => window.__ptaclPlotly = (window.__ptaclPlotly || Promise.reject()).catch(() => fromKernel(model));
function save(message, buffers) {
  if (!message.download) return;
  const link = Object.assign(document.createElement("a"), { download: message.download, href: URL.createObjectURL(new Blob([buffers[0]], { type: message.type })) });
  document.body.append(link); link.click(); link.remove(); setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
async function render({ model, el }) {
  el.innerHTML = `<div class="px-page"><div class="px-table" role="region" aria-label="patients and scores" tabindex="0"></div><div></div></div>`;
  watchControls(el);
  const root = el.querySelector(".px-page").lastElementChild, patients = el.querySelector(".px-table"), Plotly = await loadPlotly(model);
  const open = i => { root.clicked = performance.now(); model.set("patient", i); model.save_changes(); };
  const table = patientTable(patients, model, open);
  const view = linkedView(root, Plotly, { open, step: d => table.step(d), cell: (k, t) => { model.set("cell", [k, t]); model.save_changes(); },
    reset: () => { model.set("resets", model.get("resets") + 1); model.save_changes(); } });
  root.querySelector(".px-below").prepend(patients); // beside the ECG: the maps have the whole width
  let busy = false, again = false;
  async function refresh() {
    if (busy) { again = true; return; }
    busy = true;
    try { do { again = false; await view.show(model.get("view")); } while (again); } finally { busy = false; }
    if (root.clicked) requestAnimationFrame(() => setTimeout(() => { root.dataset.ms = performance.now() - root.clicked; root.clicked = 0; }));
  }
  const address = () => { if (model.get("addressed")) history.replaceState(null, "", location.pathname + (model.get("query") && "?" + model.get("query"))); };
  model.on("change:view", refresh); model.on("change:table", table.fill); model.on("change:patient", table.mark); model.on("msg:custom", save);
  model.on("change:busy", () => { root.querySelector(".px-busy").hidden = !model.get("busy"); });
  model.on("change:query", address); model.on("change:plane", () => view.plane(model.get("plane")));
  table.fill(); await refresh(); await view.plane(model.get("plane")); view.keep(...model.get("cell")); address(); root.dataset.ready = "1";
  return () => view.off();
}
export default { render };
