// The linked view: figures that plotly draws, a film, and a cursor that walks through all of them.
// It runs in the explorer's widget and in the page that the explorer exports.

// The frame of the page. What a pointing finger would tell is also said in words, for those who listen.
const HTML = `<div data-lm-suppress-shortcuts="true"><div class="px-head"><h1 class="px-title" aria-live="polite"></h1>
  <span class="px-busy" role="status" hidden>computing…</span><div class="px-set" hidden><span class="px-state" aria-live="polite"></span><button class="px-reset" title="everything as it was at the start">Reset</button></div></div>
<div class="px-alert" role="alert"></div><ul class="px-doubts" aria-label="What to doubt"></ul><ul class="px-notes" aria-label="What is shown"></ul>
<div class="px-plane" hidden></div>
<div class="px-panels" id="px-maps" tabindex="0" role="group" >
 <section class="px-top" aria-label="Maps and film"><div class="px-maps" tabindex="0" role="group" aria-label="Maps, side by side"></div>
  <div class="px-film"><canvas width="336" height="336" role="img"></canvas></div>
  <div class="px-scale"><span class="px-lo"></span><i></i><span class="px-hi"></span><b></b></div>
  <div class="px-row"><button class="px-play" aria-label="play">▶ play</button><span class="px-frame"></span></div></section>
 <section class="px-below" aria-label="Record and cycle">
  <div class="px-left"><div class="px-carried" hidden><span class="px-why"></span> <span class="px-cscale"><span class="px-least"></span><i></i><span class="px-most"></span> cosine</span> <span class="px-first"></span></div>
   <div class="px-ecg"></div></div>
  <div class="px-right"><div class="px-cycle"></div><div class="px-systole"></div><div class="px-told" aria-live="polite"></div></div></section></div>
<div class="px-help">A dot marks <span class="px-dot"></span>; every second segment of a beat is shaded. Orange is the chosen segment, red the chosen frame. Point at a cell, click to keep it. Keys: arrows, space to play, <span class="px-others">N and P for the next and the previous patient, </span>Home for the first moment. <span class="px-scores"></span></div></div>`;
const bytes = x => typeof x === "string" ? Uint8Array.from(atob(x), c => c.charCodeAt(0)) : new Uint8Array(x.buffer, x.byteOffset, x.byteLength);
const whole = words => words.replaceAll(" ", "\u00a0"); // on one line
const floats = x => new Float32Array(bytes(x).slice().buffer);
const number = (x, digits) => x.toFixed(digits).replace("-", "−").replace(/^−(?=[0.]+$)/, ""); // nothing rounds to −0
const signed = x => (Math.abs(x) >= 0.005 && x > 0 ? "+" : "") + number(x, 2);
// What carries a cell has colours that mean nothing else on the page: purple where the cosine falls without it, green where it rises.
const FALLS = [118, 42, 131], RISES = [27, 120, 55], LEADS = ["I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6"];
const tint = (v, most, strength) => { const [r, g, b] = v > 0 ? FALLS : RISES; return `rgba(${r},${g},${b},${(strength * Math.min(1, Math.abs(v) / (most || 1))).toFixed(3)})`; };

function systoleOf(words, i) { // on one line where there is room, hyphens and all, behind its mark
  const span = document.createElement("span");
  span.append(Object.assign(document.createElement("i"), { textContent: "┆◆■●"[i], className: "px-m" + i }), whole(words));
  return span;
}
const NO_SYSTOLE = "A film that stands still has no end-systole.";

// Figures come in the colours of paper. In a dark scheme text, lines and paper change; what carries a value keeps its colour.
const DARK = { "#222": "#e4e6ea", "#111": "#f2f3f5", "#888": "#a3a8b0", "#f6dcdc": "#2c2226", "#eaa9a9": "#553239", "#ffffffb0": "#14171bb0", "#440154": "#c79bff", "#26828e": "#4fb3c0", "#0072b2": "#56b4e9" };
const PLAIN = /#222\b|#111\b|#888\b|#f6dcdc|#eaa9a9|#ffffffb0|#440154|#26828e|#0072b2/g;
function recoloured(x, key) {
  if (typeof x === "string") return key === "colorscale" ? x : x.replace(PLAIN, c => DARK[c]);
  if (Array.isArray(x)) return key === "colorscale" ? x : x.map(y => recoloured(y));
  if (x && Object.getPrototypeOf(x) === Object.prototype) return Object.fromEntries(Object.entries(x).map(([k, y]) => [k, recoloured(y, k)]));
  return x;
}
const darkQuery = matchMedia("(prefers-color-scheme: dark)");
function isDark() { // JupyterLab has a theme of its own
  const theme = document.body.dataset.voila ? undefined : document.body.dataset.jpThemeLight;
  return theme === undefined ? darkQuery.matches : theme === "false";
}
function themed(fig, dark) {
  const f = dark ? recoloured({ data: fig.data, layout: fig.layout }) : fig, clear = "rgba(0,0,0,0)", line = dark ? { linecolor: "#777", tickcolor: "#999" } : {};
  return { data: f.data, layout: { ...f.layout, paper_bgcolor: clear, plot_bgcolor: clear, xaxis: { ...f.layout.xaxis, ...line }, yaxis: { ...f.layout.yaxis, ...line } } };
}

// The title under the cycle says how long beats are: on lines of its own where one does not take all.
function fitting(fig, width) {
  const { xaxis, margin } = fig.layout, room = (width - margin.l - margin.r) / 6.9; // letters
  const breaks = (text, at) => text.split("<br>").some(line => line.length > room) ? text.replace(at, "$1<br>") : text;
  const text = breaks(breaks(xaxis.title.text, /( )(?=\()/), /(, )/), b = margin.b + 15 * (text.split("<br>").length - 1);
  return { ...fig, layout: { ...fig.layout, margin: { ...margin, b }, xaxis: { ...xaxis, title: { ...xaxis.title, text } } } };
}

// Titles of small maps: the score below the name, with as many lines in all of them, for maps of one size.
function titled(figs, width) {
  const seen = text => text.split("<br>").map(line => 6.6 * line.replace(/<.*?>/g, "").length), fits = text => Math.max(...seen(text)) <= width;
  const broken = text => [": ", ", "].reduce((t, at) => fits(t) ? t : t.replace(at, at + "<br>"), text);
  const titles = figs.map(f => broken(f.layout.title.text)), more = 15 * (Math.max(...titles.map(t => seen(t).length)) - 1);
  return more ? figs.map((f, i) => ({ ...f, layout: { ...f.layout, margin: { ...f.layout.margin, t: f.layout.margin.t + more },
    title: { ...f.layout.title, text: titles[i], yref: "paper", y: 1, yanchor: "bottom", pad: { b: 6 + 15 * (seen(titles[i]).length - 1) } } } })) : figs; // plotly anchors the first line
}

// One frame of the film; over it the places that carry the chosen cell, each with its number where there is room.
function drawFilm(canvas, v, frame, weights) {
  const n = v.size, image = new ImageData(n, n), from = frame * n * n;
  for (let i = 0; i < n * n; i++) { const g = v.pixels[from + i]; image.data.set([g, g, g, 255], 4 * i); }
  const small = new OffscreenCanvas(n, n), c = canvas.getContext("2d");
  small.getContext("2d").putImageData(image, 0, 0);
  c.drawImage(small, 0, 0, canvas.width, canvas.height);
  if (!weights) return;
  const side = Math.round(Math.sqrt(weights.length)), w = v.patch * canvas.width / n;
  c.font = `${Math.min(18, w / 4)}px system-ui, sans-serif`; c.textAlign = "center"; c.textBaseline = "middle";
  weights.forEach((x, i) => {
    const left = (i % side) * w, top = Math.floor(i / side) * w;
    c.fillStyle = tint(x, v.carries.most, 0.7); c.fillRect(left, top, w, w);
    if (w < 40 || Math.abs(x) < v.carries.most / 20) return;
    c.strokeStyle = "#000"; c.lineWidth = 3; c.strokeText(signed(x), left + w / 2, top + w / 2);
    c.fillStyle = "#fff"; c.fillText(signed(x), left + w / 2, top + w / 2);
  });
}

// The cursor: a square on every map, a light on segment k in all beats, two bands on the cycle. Only shapes change, nothing is drawn anew.
function cursorShapes(v, k, t) {
  const cell = { type: "rect", x0: t - 0.5, x1: t + 0.5, y0: k - 0.5, y1: k + 0.5, line: { color: "#ff2d00", width: 2.5 } };
  let path = "";
  for (const [a, b] of v.beats) {
    const x0 = a + (b - a) * k / v.T, x1 = a + (b - a) * (k + 1) / v.T;
    path += `M${x0},-99L${x1},-99L${x1},99L${x0},99Z`;
  }
  const light = { type: "path", path: path || "M0,0Z", fillcolor: "#ff9d00", opacity: 0.45, line: { width: 0 }, layer: "below" };
  const span = (i, n) => ({ type: "rect", x0: i / n, x1: (i + 1) / n, y0: 0, y1: 1, yref: "y domain", line: { width: 0 }, layer: "below" });
  return { cell, light, cycle: [{ ...span(t, v.columns), fillcolor: "#ff2d00", opacity: 0.25 }, { ...span(k, v.T), fillcolor: "#ff9d00", opacity: 0.3 }] };
}
function leadShapes(weights, most, first, count, row) { // bands behind the leads that carry the chosen cell
  return weights.slice(first, first + count).map((x, i) => ({ type: "rect", xref: "paper", x0: 0, x1: 1, y0: -row * i - row / 2, y1: -row * i + row / 2,
    fillcolor: tint(x, most, 0.6), line: { width: 0 }, layer: "below" }));
}
function leadNames(annotations, weights, first) { // with their numbers
  return weights ? annotations.map((a, i) => ({ ...a, text: `${a.text} ${signed(weights[first + i])}` })) : annotations;
}

// `show` draws all figures of a view, `select` moves the cursor, `play` walks the cycle with segment and frame at one phase.
function linkedView(root, Plotly, on) {
  root.classList.add("px"); root.innerHTML = HTML;
  const $ = s => root.querySelector(s), others = on.step ? ", N and P open the next and the previous patient" : ""; // a file holds one
  $(".px-others").hidden = !on.step; $(".px-panels").setAttribute("aria-label", `Alignment maps. Arrow keys choose segment and frame, space plays${others}.`);
  const quiet = { displayModeBar: false, responsive: false, doubleClick: false };
  let v = null, cell = [0, 0], kept = [0, 0], timer = null, frame = 0, queued = null, dark = isDark(), plane = null;
  const draw = (div, fig, shapes, width, height, annotations) => {
    const f = themed(fig, dark);
    return Plotly.react(div, f.data, { ...f.layout, width, height, shapes: dark ? recoloured(shapes) : shapes, ...(annotations ? { annotations: dark ? recoloured(annotations) : annotations } : {}) }, quiet);
  };
  const shapes = () => { // of all figures, with the cursor
    const c = cursorShapes(v, ...cell), base = f => f.layout.shapes || [], leads = carried("leads"), each = v.row && 12 / v.ecg.length;
    return { maps: v.maps.map(f => [...base(f), c.cell]), cycle: [...base(v.cycle), ...c.cycle],
      ecg: v.ecg.map((f, i) => [...(leads ? leadShapes(leads, v.carries.most, each * i, each, v.row) : []), ...base(f), c.light]),
      names: v.ecg.map((f, i) => leadNames(f.layout.annotations, leads, each * i)) };
  };
  const divs = (parent, n, make) => { while (parent.children.length > n) { Plotly.purge(parent.lastChild); parent.lastChild.remove(); }
    while (parent.children.length < n) { const d = document.createElement("div"); parent.append(d); make(d, parent.children.length - 1); } return [...parent.children]; };
  const at = e => [Math.round(e.points[0].y), Math.round(e.points[0].x)];
  const named = (div, words) => { div.setAttribute("role", "img"); div.setAttribute("aria-label", words); };
  function listen(d) { if (d.linked) return; d.linked = true;
    d.on("plotly_hover", e => peek(...at(e))); d.on("plotly_unhover", () => timer || select(...kept)); d.on("plotly_click", e => keep(...at(e))); }
  async function layout() {
    if (!v) return;
    const wide = $(".px-maps").clientWidth, n = v.maps.length, narrow = root.clientWidth < 640;
    const maps = divs($(".px-maps"), n, () => 0), ecg = divs($(".px-ecg"), v.ecg.length, () => 0);
    const room = $(".px-ecg").clientWidth, side = $(".px-cycle").clientWidth;
    const tall = (f, width) => { const [x, y] = [f.layout.xaxis.range, f.layout.yaxis.range]; return (width - 8) * 0.4 * (y[1] - y[0]) / (x[1] - x[0]) + 38; };
    const half = Math.floor(room / 2) - 4, two = 2 * Math.max(...v.ecg.map(f => tall(f, half))); // leads twice as large, where maps and all twelve stay on one screen
    const large = Math.min(Math.floor(wide / n) - 6, Math.max(250, innerHeight * 0.5), 400), left = innerHeight - 60 - two;
    const one = narrow ? Math.min(wide - (n > 1 ? 40 : 0), 330) : left >= 0.8 * large ? Math.min(large, left) : large;
    const columns = room >= 620 && (room > 1100 || one + 60 + two > innerHeight) ? 4 : 2, column = Math.floor(room / columns) - 4;
    const s = shapes();
    const drawn = titled(v.maps, one), high = one + 12 + drawn[0].layout.margin.t - v.maps[0].layout.margin.t;
    await Promise.all([...drawn.map((f, i) => draw(maps[i], f, s.maps[i], one, high)),
      ...v.ecg.map((f, i) => draw(ecg[i], f, column < 250 ? s.ecg[i].filter(x => x.line?.width !== 0.5) : s.ecg[i], column, tall(f, column), s.names[i])), draw($(".px-cycle"), fitting(v.cycle, side), s.cycle, side, 200), drawPlane()]);
    maps.forEach(listen);
    v.maps.forEach((f, i) => named(maps[i], `Map of ${v.names[i]}: ` + (v.values[i].some(row => row.includes(null)) ? "none" : (/^difference/.test(v.scale.label) ? "frames of the largest difference" : "most similar frames") + " of segments 0 to " + (v.T - 1) + ": " + v.values[i].map(row => Math.max(...row) > Math.min(...row) ? row.indexOf(Math.max(...row)) : "all alike").join(", "))));
    ecg.forEach((d, i) => named(d, `ECG, leads ${LEADS.slice(12 / v.ecg.length * i, 12 / v.ecg.length * (i + 1)).join(", ")}, ${v.beats.length} whole beats`));
    named($(".px-cycle"), "Volume of the left ventricle and lead II over the beat. " + (v.systole.join(", ") || NO_SYSTOLE));
    $(".px-scale i").style.background = `linear-gradient(to right, ${v.scale.colours.join(",")})`;
    $(".px-lo").textContent = number(v.scale.vmin, 2); $(".px-hi").textContent = number(v.scale.vmax, 2); $(".px-scale b").textContent = v.scale.label;
    $(".px-dot").textContent = /^difference/.test(v.scale.label) ? "the largest difference of each segment" : "the frame most similar to each segment";
    frameOf(...cell, 0); words();
  }
  async function drawPlane() {
    const div = $(".px-plane"); div.hidden = !plane;
    if (!plane) { Plotly.purge(div); div.linked = false; return; }
    await draw(div, plane, [], div.clientWidth, Math.min(420, Math.max(290, div.clientWidth * 0.36)));
    named(div, `All patients in one plane, ${plane.data[1].text.length} of them: ${plane.layout.xaxis.title.text}, ${plane.layout.yaxis.title.text}. The table opens them by keyboard.`);
    if (!div.linked) { div.linked = true; div.on("plotly_click", e => { const i = e.points[0].customdata; if (i != null) on.open?.(i); }); }
  }
  const carried = what => v.carries && [...Array(v.carries[what].length / (v.T * v.columns)).keys()].map(i => v.carries[what][(i * v.T + cell[0]) * v.columns + cell[1]]);
  function select(k, t, sub = 0) {
    if (!v) return;
    frameOf(k, t, sub);
    if (!queued) queued = requestAnimationFrame(cursor);
  }
  function frameOf(k, t, sub) {
    cell = [k, t]; frame = Math.min(v.frames - 1, Math.floor(t * v.frames / v.columns) + sub);
    drawFilm($("canvas"), v, frame, carried("places"));
    root.dataset.k = k; root.dataset.t = t; root.dataset.frame = frame;
  }
  function cursor() {
    queued = null;
    const s = shapes(), dye = x => dark ? recoloured(x) : x;
    $(".px-maps").querySelectorAll(":scope > div").forEach((d, i) => Plotly.relayout(d, { shapes: dye(s.maps[i]) }));
    $(".px-ecg").querySelectorAll(":scope > div").forEach((d, i) => Plotly.relayout(d, { shapes: dye(d.clientWidth < 250 ? s.ecg[i].filter(x => x.line?.width !== 0.5) : s.ecg[i]), ...(v.carries ? { annotations: dye(s.names[i]) } : {}) }));
    Plotly.relayout($(".px-cycle"), { shapes: dye(s.cycle) });
    words();
  }
  function words() {
    const [k, t] = cell;
    const phase = (i, n) => `${(i / n).toFixed(2)}–${((i + 1) / n).toFixed(2)}`, row = v.axes[0].startsWith("ECG") ? "segment" : v.axes[0];
    $(".px-frame").textContent = `frame ${t}: phase ${phase(t, v.columns)}`;
    $("canvas").setAttribute("aria-label", `${v.modality}, frame ${t} at phase ${phase(t, v.columns)}`);
    $(".px-told").textContent = `${row} ${k} (phase ${phase(k, v.T)}) × frame ${t} (phase ${phase(t, v.columns)}): ` + v.names.map((n, i) => whole(`${n}: ${v.values[i][k] == null || v.values[i][k][t] == null ? "–" : number(v.values[i][k][t], 3)}`)).join(", ");
    $(".px-carried").hidden = !v.carries;
    if (!v.carries) return;
    const most = v.carries.most, rank = (xs, name) => xs.map((x, i) => [x, name(i)]).sort((a, b) => Math.abs(b[0]) - Math.abs(a[0])).slice(0, 2).map(([x, n]) => whole(`${n} ${signed(x)}`));
    const places = carried("places"), side = Math.round(Math.sqrt(places.length));
    $(".px-why").textContent = v.carries.told + ": purple where it falls, green where it rises.";
    $(".px-least").textContent = signed(-most); $(".px-most").textContent = signed(most);
    $(".px-cscale i").style.background = `linear-gradient(to right, rgb(${RISES}), transparent, rgb(${FALLS}))`;
    $(".px-first").textContent = `Most for this cell: ${[...rank(carried("leads"), i => LEADS[i]), ...rank(places, i => `place in row ${Math.floor(i / side) + 1}, column ${i % side + 1}`)].join(", ")}.`;
  }
  function peek(k, t) { if (!timer) select(k, t); }
  function keep(k, t) { stop(); kept = [k, t]; select(k, t); on.cell?.(k, t); }
  function stop() { clearInterval(timer); timer = null; $(".px-play").textContent = "▶ play"; $(".px-play").setAttribute("aria-label", "play"); root.dataset.playing = ""; }
  function play() {
    if (timer) { stop(); kept = [...cell]; on.cell?.(...cell); return; }
    let f = frame; root.dataset.playing = "1";
    timer = setInterval(() => { f = (f + 1) % v.frames; const t = Math.floor(f * v.columns / v.frames); select(Math.floor(f * v.T / v.frames), t, f - Math.floor(t * v.frames / v.columns)); }, 110);
    $(".px-play").textContent = "⏸ stop"; $(".px-play").setAttribute("aria-label", "stop");
  }
  const keys = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  $(".px-panels").addEventListener("keydown", e => {
    if (e.ctrlKey || e.metaKey || e.altKey || !v || e.target.closest(".px-table")) return; // the table has keys of its own
    const move = keys[e.key], into = (x, n) => (x + n) % n;
    if (move) keep(into(cell[0] + move[0], v.T), into(cell[1] + move[1], v.columns));
    else if (e.key === " " && e.target.tagName !== "BUTTON") play();
    else if (e.key === "Home") keep(0, 0);
    else if ("nNpP".includes(e.key)) on.step?.(e.key.toLowerCase() === "n" ? 1 : -1);
    else return;
    e.preventDefault(); e.stopPropagation();
  });
  $(".px-play").addEventListener("click", play);
  $(".px-reset").addEventListener("click", () => { on.reset?.(); $(".px-panels").focus(); });
  const scheme = () => { const now = isDark(); root.classList.toggle("px-dark", now); root.parentElement?.closest(".px-page")?.classList.toggle("px-dark", now); if (now !== dark) { dark = now; layout(); } };
  darkQuery.addEventListener("change", scheme); scheme();
  const theme = new MutationObserver(scheme); theme.observe(document.body, { attributeFilter: ["data-jp-theme-light"] });
  const watch = new ResizeObserver(() => { const w = $(".px-panels").clientWidth; if (w && Math.abs(w - (root.drawn || 0)) > 8) { root.drawn = w; layout(); } });
  watch.observe($(".px-panels"));
  const list = (at, sentences) => $(at).replaceChildren(...(sentences || []).map(x => Object.assign(document.createElement("li"), { textContent: x })));
  return { keep, stop, off() { stop(); watch.disconnect(); theme.disconnect(); darkQuery.removeEventListener("change", scheme); },
    async plane(figure) { plane = figure?.data ? figure : null; await drawPlane(); },
    async show(view) {
    v = { ...view, pixels: bytes(view.film), carries: view.carries && { ...view.carries, leads: floats(view.carries.leads), places: floats(view.carries.places) } };
    $(".px-systole").replaceChildren(v.systole.length ? "R-peak to end-systole: " : NO_SYSTOLE, ...v.systole.flatMap((s, i) => [systoleOf(s, i), " "]));
    cell = [Math.min(cell[0], v.T - 1), Math.min(cell[1], v.columns - 1)]; kept = [Math.min(kept[0], v.T - 1), Math.min(kept[1], v.columns - 1)];
    $(".px-title").textContent = v.title; $(".px-alert").textContent = v.alert || ""; root.dataset.patient = v.patient; root.drawn = $(".px-panels").clientWidth;
    list(".px-doubts", v.doubts); list(".px-notes", v.notes); $(".px-scores").textContent = v.scores || "";
    $(".px-set").hidden = !v.state; $(".px-state").textContent = v.state || ""; $(".px-reset").hidden = !on.reset;
    await layout();
  } };
}
