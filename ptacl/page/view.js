// The linked view: figures that plotly draws, a film, and a cursor that walks through all of them.
// It runs in the explorer's widget and in the page that the explorer exports.

// The frame of the page. What a pointing finger would tell is also said in words, for those who listen.
const HTML = `<div data-lm-suppress-shortcuts="true"><div class="px-title" aria-live="polite"></div><div class="px-alert" role="alert"></div>
<div class="px-panels" tabindex="0" role="group" aria-label="Alignment maps. Arrow keys choose segment and frame, space plays, N and P open the next and the previous patient.">
 <section class="px-left"><div class="px-maps"></div>
  <div class="px-scale"><span class="px-lo"></span><i></i><span class="px-hi"></span><b></b></div><div class="px-carried"></div>
  <div class="px-ecg"></div></section>
 <section class="px-right"><div class="px-film"><canvas width="336" height="336" role="img"></canvas>
   <div class="px-row"><button class="px-play" aria-label="play">▶ play</button><span class="px-frame"></span></div></div>
  <div class="px-cycle"></div><div class="px-systole"></div><div class="px-told" aria-live="polite"></div></section></div>
<div class="px-help">A dot marks the frame most similar to each segment; every second segment of a beat is shaded. Orange is the chosen segment, red the chosen frame. Point at a cell, click to keep it. Keys: arrows, space to play, N and P for the next and the previous patient, Home for the first moment.</div></div>`;
const bytes = x => typeof x === "string" ? Uint8Array.from(atob(x), c => c.charCodeAt(0)) : new Uint8Array(x.buffer, x.byteOffset, x.byteLength);
const whole = words => words.replaceAll(" ", "\u00a0"); // on one line
const floats = x => new Float32Array(bytes(x).slice().buffer);
const ORANGE = [230, 120, 0], BLUE = [20, 90, 200];
const tint = (v, most, strength) => { const [r, g, b] = v > 0 ? ORANGE : BLUE; return `rgba(${r},${g},${b},${strength * Math.min(1, Math.abs(v) / (most || 1))})`; };

// One frame of the film; over it the places that carry the chosen cell: orange where the cosine falls without them, blue where it rises.
function drawFilm(canvas, v, frame, weights) {
  const n = v.size, image = new ImageData(n, n), from = frame * n * n;
  for (let i = 0; i < n * n; i++) { const g = v.pixels[from + i]; image.data.set([g, g, g, 255], 4 * i); }
  const small = new OffscreenCanvas(n, n), c = canvas.getContext("2d");
  small.getContext("2d").putImageData(image, 0, 0);
  c.drawImage(small, 0, 0, canvas.width, canvas.height);
  if (!weights) return;
  const side = Math.round(Math.sqrt(weights.length)), w = v.patch * canvas.width / n, most = Math.max(...weights.map(Math.abs));
  weights.forEach((x, i) => { c.fillStyle = tint(x, most, 0.6); c.fillRect((i % side) * w, Math.floor(i / side) * w, w, w); });
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
  const span = i => ({ type: "rect", x0: i / v.T, x1: (i + 1) / v.T, y0: 0, y1: 1, yref: "y domain", line: { width: 0 }, layer: "below" });
  return { cell, light, cycle: [{ ...span(t), fillcolor: "#ff2d00", opacity: 0.25 }, { ...span(k), fillcolor: "#ff9d00", opacity: 0.3 }] };
}
function leadShapes(weights, first, count, row) { // bands behind the leads that carry the chosen cell
  const most = Math.max(...weights.map(Math.abs));
  return weights.slice(first, first + count).map((x, i) => ({ type: "rect", xref: "paper", x0: 0, x1: 1, y0: -row * i - row / 2, y1: -row * i + row / 2,
    fillcolor: tint(x, most, 0.45), line: { width: 0 }, layer: "below" }));
}

// `show` draws all figures of a view, `select` moves the cursor, `play` walks the cycle with segment and frame at one phase.
function linkedView(root, Plotly, on) {
  root.classList.add("px"); root.innerHTML = HTML;
  const $ = s => root.querySelector(s), quiet = { displayModeBar: false, responsive: false, doubleClick: false };
  let v = null, cell = [0, 0], kept = [0, 0], timer = null, frame = 0, queued = null;
  const draw = (div, fig, shapes, width, height) => Plotly.react(div, fig.data, { ...fig.layout, width, height, shapes }, quiet);
  const shapes = () => { // of all figures, with the cursor
    const c = cursorShapes(v, ...cell), base = f => f.layout.shapes || [], leads = carried("leads");
    return { maps: v.maps.map(f => [...base(f), c.cell]), cycle: [...base(v.cycle), ...c.cycle],
      ecg: v.ecg.map((f, i) => [...(leads ? leadShapes(leads, 6 * i, 6, v.row) : []), ...base(f), c.light]) };
  };
  const divs = (parent, n, make) => { while (parent.children.length > n) { Plotly.purge(parent.lastChild); parent.lastChild.remove(); }
    while (parent.children.length < n) { const d = document.createElement("div"); parent.append(d); make(d, parent.children.length - 1); } return [...parent.children]; };
  const at = e => [Math.round(e.points[0].y), Math.round(e.points[0].x)];
  async function layout() {
    if (!v) return;
    const wide = $(".px-maps").clientWidth, n = v.maps.length, across = Math.max(1, Math.min(n, Math.floor(wide / 165)));
    const one = Math.min(Math.floor(wide / across) - 6, 340);
    const maps = divs($(".px-maps"), n, () => 0), ecg = divs($(".px-ecg"), v.ecg.length, () => 0);
    const column = wide >= 620 ? Math.floor(wide / 2) - 4 : wide, side = $(".px-cycle").clientWidth;
    const tall = f => { const [x, y] = [f.layout.xaxis.range, f.layout.yaxis.range]; return (column - 8) * 0.4 * (y[1] - y[0]) / (x[1] - x[0]) + 38; };
    const s = shapes();
    await Promise.all([...v.maps.map((f, i) => draw(maps[i], f, s.maps[i], one, one + 12)),
      ...v.ecg.map((f, i) => draw(ecg[i], f, s.ecg[i], column, tall(f))), draw($(".px-cycle"), v.cycle, s.cycle, side, 210)]);
    maps.forEach(d => { if (d.linked) return; d.linked = true;
      d.on("plotly_hover", e => peek(...at(e))); d.on("plotly_unhover", () => timer || select(...kept)); d.on("plotly_click", e => keep(...at(e))); });
    $(".px-scale i").style.background = `linear-gradient(to right, ${v.scale.colours.join(",")})`;
    $(".px-lo").textContent = v.scale.vmin.toFixed(2); $(".px-hi").textContent = v.scale.vmax.toFixed(2); $(".px-scale b").textContent = v.scale.label;
    frameOf(...cell, 0); words();
  }
  const carried = what => v.carries && [...Array(v.carries[what].length / (v.T * v.T)).keys()].map(i => v.carries[what][(i * v.T + cell[0]) * v.T + cell[1]]);
  function select(k, t, sub = 0) {
    if (!v) return;
    frameOf(k, t, sub);
    if (!queued) queued = requestAnimationFrame(cursor);
  }
  function frameOf(k, t, sub) {
    cell = [k, t]; frame = Math.min(v.frames - 1, Math.floor(t * v.frames / v.T) + sub);
    drawFilm($("canvas"), v, frame, carried("places"));
    root.dataset.k = k; root.dataset.t = t; root.dataset.frame = frame;
  }
  function cursor() {
    queued = null;
    const s = shapes();
    $(".px-maps").querySelectorAll(":scope > div").forEach((d, i) => Plotly.relayout(d, { shapes: s.maps[i] }));
    $(".px-ecg").querySelectorAll(":scope > div").forEach((d, i) => Plotly.relayout(d, { shapes: s.ecg[i] }));
    Plotly.relayout($(".px-cycle"), { shapes: s.cycle });
    words();
  }
  function words() {
    const [k, t] = cell;
    const phase = i => `${(i / v.T).toFixed(2)}–${((i + 1) / v.T).toFixed(2)}`;
    $(".px-frame").textContent = `frame ${t}: phase ${phase(t)}`;
    $("canvas").setAttribute("aria-label", `cine, frame ${t} at phase ${phase(t)}`);
    $(".px-told").textContent = `segment ${k} (phase ${phase(k)}) × frame ${t} (phase ${phase(t)}): ` + v.names.map((n, i) => `${whole(n)}: ${v.values[i][k] == null ? "–" : v.values[i][k][t].toFixed(3)}`).join(", ");
  }
  function peek(k, t) { if (!timer) select(k, t); }
  function keep(k, t) { stop(); kept = [k, t]; select(k, t); on.cell?.(k, t); }
  function stop() { clearInterval(timer); timer = null; $(".px-play").textContent = "▶ play"; $(".px-play").setAttribute("aria-label", "play"); root.dataset.playing = ""; }
  function play() {
    if (timer) { stop(); kept = [...cell]; on.cell?.(...cell); return; }
    let f = frame; root.dataset.playing = "1";
    timer = setInterval(() => { f = (f + 1) % v.frames; const t = Math.floor(f * v.T / v.frames); select(t, t, f - Math.floor(t * v.frames / v.T)); }, 110);
    $(".px-play").textContent = "⏸ stop"; $(".px-play").setAttribute("aria-label", "stop");
  }
  const keys = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  $(".px-panels").addEventListener("keydown", e => {
    if (e.ctrlKey || e.metaKey || e.altKey || !v) return;
    const move = keys[e.key], into = x => (x + v.T) % v.T;
    if (move) keep(into(cell[0] + move[0]), into(cell[1] + move[1]));
    else if (e.key === " " && e.target.tagName !== "BUTTON") play();
    else if (e.key === "Home") keep(0, 0);
    else if ("nNpP".includes(e.key)) on.step?.(e.key.toLowerCase() === "n" ? 1 : -1);
    else return;
    e.preventDefault(); e.stopPropagation();
  });
  $(".px-play").addEventListener("click", play);
  const watch = new ResizeObserver(() => { const w = $(".px-panels").clientWidth; if (w && Math.abs(w - (root.drawn || 0)) > 8) { root.drawn = w; layout(); } });
  watch.observe($(".px-panels"));
  return { keep, stop, off() { stop(); watch.disconnect(); }, async show(view) {
    v = { ...view, pixels: bytes(view.film), carries: view.carries && { ...view.carries, leads: floats(view.carries.leads), places: floats(view.carries.places) } };
    $(".px-systole").replaceChildren("R-peak to end-systole: ", ...v.systole.flatMap((s, i) => [Object.assign(document.createElement("i"), { textContent: "┆◆■●"[i], className: "px-m" + i }), whole(s) + " "]));
    $(".px-title").textContent = v.title; $(".px-alert").textContent = v.alert || ""; $(".px-carried").textContent = v.carries ? v.carries.told : ""; root.dataset.patient = v.patient; root.drawn = $(".px-panels").clientWidth;
    await layout();
  } };
}
