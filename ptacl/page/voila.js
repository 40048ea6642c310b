// Plotly is read while Python loads; the widget finds it.
window.__ptaclPlotly = fetch(plotlyAt).then(answer => answer.ok ? answer.text() : Promise.reject()).then(source => {
  const before = window.Plotly;
  new Function(source).call(window);
  const plotly = window.Plotly;
  if (before) window.Plotly = before;
  return plotly;
});
window.__ptaclPlotly.catch(() => {}); // then the kernel sends it
// What voila says while it loads: words for each step, and the seconds, until the maps are drawn.
(() => {
  const steps = ["Loading PyTorch and the explorer", "Reading the patients and computing their maps", "Drawing"];
  const text = document.getElementById("loading_text"), cells = document.getElementById("rendered_cells"), began = Date.now();
  document.title = "ptacl explorer"; cells.setAttribute("role", "main"); document.getElementById("loading").setAttribute("role", "status");
  let step = 0;
  const say = () => { text.textContent = `${steps[step]}… ${Math.round((Date.now() - began) / 1000)} s`; }, clock = setInterval(say, 1000);
  let lost = 0; // answers that failed to come
  const ask = setInterval(() => fetch(plotlyAt, { method: "HEAD" }).then(() => { lost = 0; }, () => {
    if (++lost > 2) { clearInterval(clock); clearInterval(ask); text.textContent = "The command has ended; its terminal says why."; } }), 3000);
  say();
  window.update_loading_text = window.voila_process = i => { step = Math.min(i, 1); say(); };  // i cells are done
  const done = () => { clearInterval(clock); clearInterval(ask); watch.disconnect(); document.getElementById("loading")?.remove(); };
  const watch = new MutationObserver(() => { if (cells.querySelector(".px[data-ready='1'], [role='alert']:not(:empty), .jp-mod-error, [data-mime-type*='stderr']")) done(); });
  window.display_cells = window.voila_finish = () => { step = 2; say(); cells.style.display = ""; watch.observe(cells, { subtree: true, childList: true, attributes: true, attributeFilter: ["data-ready"] }); };
})();
