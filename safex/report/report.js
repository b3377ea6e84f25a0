"use strict";
(() => {
  const page = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const FONT = { family: "system-ui, -apple-system, 'Segoe UI', Roboto, Arial, sans-serif", size: 12 };
  // The buttons are named one by one: by default plotly.js offers one that sends the data to a server.
  const BUTTONS = [["toImage", "zoom2d", "pan2d", "resetScale2d"]];
  const CONFIG = { displaylogo: false, responsive: true, modeBarButtons: BUTTONS, plotlyServerURL: "" };
  const TOUCH = matchMedia("(pointer: coarse)").matches; // there a finger on a picture scrolls the page
  const ROWS_HEIGHT = 900, ROW_MIN = 10, ROW_MAX = 30, AROUND = 104; // pixels of the map
  const PANEL_BOTTOM = 46, LEGEND_LINE = 18, NARROW = 560;
  const PAPER_WIDTH = 690, PAPER_HEIGHT = 600; // pixels of an A4 page, less what text needs

  function element(tag, text, attributes) {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    for (const [name, value] of Object.entries(attributes || {})) made.setAttribute(name, value);
    return made;
  }

  function number(value, digits) {
    return value === null ? "–" : value.toFixed(digits).replace("-", "−");
  }

  // --- line figures

  function axis(given) {
    return { automargin: true, zeroline: false, ticks: "outside", ticklen: 3, showline: true, ...given };
  }

  function layout(given) {
    return {
      font: FONT, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", dragmode: TOUCH ? false : "zoom",
      hoverlabel: { bgcolor: "#2b2f36", bordercolor: "#2b2f36" },
      modebar: { bgcolor: "rgba(0,0,0,0)" }, ...given,
    };
  }

  /** How many lines plotly.js will need for the names: it gives all of them the width of the longest. */
  function legendLines(names, width) {
    const inLine = Math.max(1, Math.floor((width - 64) / (Math.max(0, ...names.map((name) => name.length)) * 6 + 50)));
    return Math.ceil(names.length / inLine);
  }

  function drawPanel(div, { data, layout: own, height }) {
    const title = { ...own.title, x: 0, xref: "paper", xanchor: "left", y: 0.98, yanchor: "top", font: { size: 13 } };
    const legend = { orientation: "h", x: 0, xanchor: "left", yref: "container", y: 0, yanchor: "bottom", font: { size: 11 } };
    const names = own.showlegend ? data.filter((trace) => trace.showlegend).map((trace) => trace.name) : [];
    const margin = { l: 52, r: 12, t: 32, b: PANEL_BOTTOM + legendLines(names, div.clientWidth) * LEGEND_LINE };
    div.style.height = `${height + margin.t + margin.b}px`;
    const axes = { xaxis: axis(own.xaxis), yaxis: axis(own.yaxis) };
    Plotly.newPlot(div, data, layout({ ...own, ...axes, title, legend, margin }), CONFIG);
  }

  function drawFigures() {
    for (const grid of document.querySelectorAll("[data-figure]")) {
      const panels = page.figures[grid.dataset.figure];
      [...grid.children].forEach((div, i) => drawPanel(div, panels[i]));
    }
  }

  // --- maps

  const shown = { map: 0, view: 0, phase: "prompt", expert: null };
  const sumsCache = new Map();
  const here = () => page.maps[shown.map];

  /** Selections of a set as numbers, [L * E]; unpacked when first asked for. */
  function sums(map, phase, set) {
    const key = [page.maps.indexOf(map), phase, set].join();
    if (!sumsCache.has(key)) sumsCache.set(key, unpack(map.sums[phase][set]));
    return sumsCache.get(key);
  }

  function unpack({ bytes, data }) {
    const raw = atob(data);
    const values = new Float64Array(raw.length / bytes);
    for (let i = 0; i < values.length; i++) {
      for (let b = bytes - 1; b >= 0; b--) values[i] = values[i] * 256 + raw.charCodeAt(i * bytes + b);
    }
    return values;
  }

  function activation(map, phase, name, cell) {
    const set = map.sets.indexOf(name);
    const tokens = map.tokens[phase][set];
    return tokens ? sums(map, phase, set)[cell] / tokens : null;
  }

  function viewValue(map, phase, view, cell) {
    const level = activation(map, phase, view.a, cell);
    if (view.b === null || level === null) return level;
    const other = activation(map, phase, view.b, cell);
    return other === null ? null : level - other;
  }

  function rowsOf(map, phase, view) {
    return map.layers.map((_, row) =>
      Float64Array.from({ length: map.experts }, (_, e) => viewValue(map, phase, view, row * map.experts + e)));
  }

  function heatmap(map, phase, view, [limit]) {
    const difference = view.b !== null;
    const title = difference ? "difference of activation" : "activation (share of tokens)";
    return {
      type: "heatmap", z: rowsOf(map, phase, view), hoverinfo: "none", zsmooth: false,
      zmin: difference ? -limit : 0, zmax: limit || 1, colorscale: difference ? page.diverging : "Cividis",
      colorbar: {
        orientation: "h", x: 1, xanchor: "right", y: 1, yanchor: "bottom", ypad: 4, xpad: 0, len: 260, lenmode: "pixels",
        thickness: 9, title: { text: title, side: "top", font: { size: 11 } }, tickfont: { size: 11 }, outlinewidth: 0, nticks: 5,
      },
    };
  }

  /** A mark is drawn twice: a light ring below a coloured one, so that it shows on any cell. */
  function markTraces(map, mark, size) {
    const base = {
      type: "scatter", mode: "markers", x: mark.experts.map((e) => e.expert), y: mark.experts.map((e) => e.row),
      hoverinfo: "skip", legendgroup: mark.name, name: escapeMarkup(`${mark.name} (${mark.experts.length})`),
    };
    const ring = (color, width) => ({ size, symbol: mark.symbol + "-open", color, line: { width, color } });
    return [
      { ...base, marker: ring("#ffffff", 4), showlegend: false },
      { ...base, marker: ring(mark.colour, 2), showlegend: true },
    ];
  }

  function escapeMarkup(text) {
    return text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  }

  function mapLayout(map, rowHeight, narrow) {
    const step = [1, 2, 4, 5, 8, 10, 20, 50].find((n) => map.layers.length / n <= 32) || 100;
    const rows = map.layers.map((_, i) => i).filter((i) => i % step === 0);
    return layout({
      height: Math.round(map.layers.length * rowHeight + AROUND + (narrow ? LEGEND_LINE : 0)), uirevision: shown.map,
      margin: { l: 48, r: 10, t: 58, b: AROUND - 58 + (narrow ? LEGEND_LINE : 0) },
      xaxis: axis({ title: { text: "expert" }, range: [-0.5, map.experts - 0.5], showgrid: false }),
      yaxis: axis({
        title: { text: "layer" }, range: [map.layers.length - 0.5, -0.5], showgrid: false,
        tickvals: rows, ticktext: rows.map((i) => String(map.layers[i])),
      }),
      legend: {
        orientation: "h", x: 0, xanchor: "left", font: { size: 12 },
        ...(narrow ? { yref: "container", y: 0, yanchor: "bottom" } : { y: 1, yanchor: "bottom" }),
      },
    });
  }

  function drawMap() {
    const map = here();
    const view = map.views[shown.view];
    const scale = map.scales[shown.phase][shown.view];
    const rowHeight = Math.min(ROW_MAX, Math.max(ROW_MIN, ROWS_HEIGHT / map.layers.length));
    const size = Math.max(8, Math.min(14, rowHeight - 4));
    const marks = map.marks.filter((m) => m.experts.length).flatMap((m) => markTraces(map, m, size));
    const traces = scale ? [heatmap(map, shown.phase, view, scale), ...marks] : [];
    const plot = $("map-plot");
    Plotly.react(plot, traces, mapLayout(map, rowHeight, plot.clientWidth < NARROW), CONFIG);
    $("map-reading").textContent = reading(map, view, scale);
    if (shown.expert) showDetail(...shown.expert);
  }

  function reading(map, view, scale) {
    if (!scale) return `No tokens of phase ${shown.phase} in this set.`;
    const [limit, clipped, highest] = scale;
    const colours = view.b === null
      ? `Yellow: selected often; dark blue: never. `
      : `Red: more in ${view.a}; blue: more in ${view.b}; near white: no difference. `;
    const range = clipped
      ? `Colours end at ${number(limit, 3)}; ${clipped} cell${clipped > 1 ? "s lie" : " lies"} beyond, `
        + `at most ${number(highest, 3)}.`
      : `Colours end at the largest value, ${number(limit, 3)}.`;
    return colours + range;
  }

  function marksOf(map, row, expert) {
    return map.marks.flatMap((mark) => mark.experts
      .filter((e) => e.row === row && e.expert === expert).map((e) => ({ ...e, name: mark.name, phase: mark.phase })));
  }

  function showTip({ points, event }) {
    const map = here();
    const { x: expert, y: row } = points[0];
    const view = map.views[shown.view];
    const cell = row * map.experts + expert;
    const tip = $("map-tip");
    const line = (name, value) => {
      const div = element("div");
      div.append(element("i", name), element("span", value));
      return div;
    };
    tip.replaceChildren(element("b", `${map.layers[row]}:${expert}`));
    if (view.b !== null) tip.append(line(view.label, number(viewValue(map, shown.phase, view, cell), 4)));
    for (const set of map.sets) tip.append(line(set, number(activation(map, shown.phase, set, cell), 4)));
    for (const mark of marksOf(map, row, expert)) {
      tip.append(line(`in ${mark.name}`, mark.frequency === null ? "" : `frequency ${number(mark.frequency, 3)}`));
    }
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = Math.max(4, Math.min(event.clientX + 14, innerWidth - box.width - 8)) + "px";
    tip.style.top = (event.clientY + box.height + 24 > innerHeight ? event.clientY - box.height - 12 : event.clientY + 16) + "px";
  }

  /** The table of one expert: each phase and set, with the interval where a group's file gives one. */
  function showDetail(row, expert) {
    const map = here();
    shown.expert = [row, expert];
    const marks = marksOf(map, row, expert);
    const table = element("table");
    const head = table.createTHead().insertRow();
    const titles = ["phase", "set", "selections", "tokens", "activation", "interval", "× equal use"];
    titles.forEach((title, i) => head.append(element("th", title, { scope: "col", class: i > 1 ? "number" : "" })));
    const body = table.createTBody();
    for (const phase of map.phases) for (const set of map.sets) detailRow(body, map, phase, set, row, expert, marks);
    const names = marks.map((m) => m.name + (m.frequency === null ? "" : `, frequency ${number(m.frequency, 3)}`));
    const scroll = element("div", undefined, { class: "scroll" });
    scroll.append(table);
    $("map-detail").replaceChildren(
      element("h3", `Expert ${map.layers[row]}:${expert}`),
      element("p", names.length ? `In ${names.join("; in ")}.` : "In no group.", { class: "reading" }), scroll);
  }

  function detailRow(body, map, phase, set, row, expert, marks) {
    const i = map.sets.indexOf(set);
    const cell = row * map.experts + expert;
    const share = activation(map, phase, set, cell);
    const known = marks.find((m) => m.phase === phase && m.intervals[set]);
    const ends = known ? known.intervals[set].map((end) => number(end, 4)).join(" to ") : "";
    const times = share === null ? "–" : number(share * map.experts / map.topK[row], 2);
    const line = body.insertRow();
    line.append(element("td", phase), element("td", set));
    const counts = [sums(map, phase, i)[cell], map.tokens[phase][i]].map((count) => count.toLocaleString("en"));
    const values = [...counts, number(share, 6), ends, times];
    for (const value of values) line.append(element("td", value, { class: "number" }));
    line.children[4].dataset.value = share === null ? "" : share;
  }

  const tabs = () => document.querySelectorAll("[data-map]");

  function showHint(text) {
    $("map-detail").replaceChildren(element("p", text, { class: "hint" }));
  }

  function fillSelects() {
    const map = here();
    const levels = element("optgroup", undefined, { label: "activation in" });
    const differences = element("optgroup", undefined, { label: "difference" });
    map.views.forEach((view, i) => (view.b === null ? levels : differences).append(element("option", view.label, { value: i })));
    $("map-view").replaceChildren(levels, ...(differences.children.length ? [differences] : []));
    $("map-phase").replaceChildren(...map.phases.map((phase) => element("option", phase, { value: phase })));
  }

  function openMap(number) {
    Object.assign(shown, { map: number, view: 0, expert: null });
    if (!here().phases.includes(shown.phase)) shown.phase = here().phases[0];
    fillSelects();
    $("map-view").value = shown.view;
    $("map-phase").value = shown.phase;
    showHint("Click a cell, or name an expert above, to keep its numbers here.");
    for (const tab of tabs()) tab.setAttribute("aria-selected", Number(tab.dataset.map) === number);
    drawMap();
  }

  function find(text) {
    const [, layer, expert] = (/^\s*(\d+)\s*:\s*(\d+)\s*$/.exec(text) || []).map(Number);
    const row = here().layers.indexOf(layer);
    if (row >= 0 && expert < here().experts) return showDetail(row, expert);
    showHint(`This profile has no expert ${text}; write layer:expert, as in ${here().layers[0]}:0.`);
  }

  function startMap() {
    const plot = $("map-plot");
    shown.phase = (page.maps[0].marks.find((mark) => mark.phase) || { phase: "prompt" }).phase;
    openMap(0);
    plot.on("plotly_hover", showTip);
    plot.on("plotly_unhover", () => { $("map-tip").hidden = true; });
    plot.on("plotly_click", ({ points }) => showDetail(points[0].y, points[0].x));
    $("map-view").addEventListener("change", (event) => { shown.view = Number(event.target.value); drawMap(); });
    $("map-phase").addEventListener("change", (event) => { shown.phase = event.target.value; drawMap(); });
    $("map-find").addEventListener("submit", (event) => {
      event.preventDefault();
      find(event.target.querySelector("input").value);
    });
    for (const tab of tabs()) tab.addEventListener("click", () => openMap(Number(tab.dataset.map)));
    document.addEventListener("click", ({ target }) => {
      if (!target.matches("td .expert")) return;
      find(target.dataset.expert);
      $("map-detail").scrollIntoView({ block: "center" });
    });
  }

  // --- tables

  const valueOf = (cell) => (cell.dataset.value === undefined ? cell.textContent.trim() : cell.dataset.value);

  function compare(a, b) {
    const [x, y] = [Number(a), Number(b)];
    return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b, "en", { numeric: true }) : x - y;
  }

  /** Sort by a column; what has no value stays last. */
  function sort(table, header) {
    const column = header.cellIndex;
    const sign = header.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    const missing = (value) => value === "" || value === "–";
    const keyed = [...table.tBodies[0].rows].map((row) => [valueOf(row.cells[column]), row]);
    keyed.sort(([a], [b]) => missing(a) - missing(b) || sign * compare(a, b));
    table.tBodies[0].append(...keyed.map(([, row]) => row));
    limit(table);
    for (const other of header.parentNode.cells) other.setAttribute("aria-sort", "none");
    header.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
  }

  function filter(table, text, count) {
    const words = text.toLowerCase().split(/\s+/).filter(Boolean);
    const rows = [...table.tBodies[0].rows];
    for (const row of rows) {
      const content = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => content.includes(word));
    }
    limit(table);
    count.textContent = words.length ? `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows` : "";
  }

  /** A browser takes seconds to lay out thousands of rows: only the first are shown until all are asked for. */
  function limit(table) {
    const shown = [...table.tBodies[0].rows].filter((row) => !row.hidden);
    shown.forEach((row, i) => row.classList.toggle("late", i >= page.firstRows && !("all" in table.dataset)));
  }

  function csv(table) {
    const quote = (text) => (/[",\n]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text);
    const columns = [...table.tHead.rows[0].cells];
    const wide = columns.map((column) => "intervals" in column.dataset);
    const ends = (title) => [`${title} low`, `${title} high`];
    const titles = columns.flatMap(({ textContent: title }, i) => [title, ...(wide[i] ? ends(title) : [])]);
    const rows = [...table.tBodies[0].rows].filter((row) => !row.hidden);
    const lines = rows.map((row) => [...row.cells].flatMap((cell, i) =>
      [cell.dataset.text || valueOf(cell), ...(wide[i] ? [cell.dataset.low || "", cell.dataset.high || ""] : [])]));
    const clean = (value) => quote(value.trim().replace(/^–$/, ""));
    return [titles, ...lines].map((line) => line.map(clean).join(",") + "\n").join("");
  }

  async function copy(text) {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const area = element("textarea");
      area.value = text;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
  }

  function startTable(figure) {
    const table = figure.querySelector("table");
    const count = figure.querySelector(".count");
    for (const header of table.tHead.rows[0].cells) header.firstChild.addEventListener("click", () => sort(table, header));
    figure.querySelector("input").addEventListener("input", (event) => filter(table, event.target.value, count));
    figure.querySelector(".copy").addEventListener("click", async () => {
      await copy(csv(table));
      count.textContent = "Copied.";
    });
    const all = figure.querySelector(".all");
    if (all) all.addEventListener("click", () => {
      table.dataset.all = "";
      all.remove();
      limit(table);
    });
  }

  // --- paper

  /** While the page is printed, pictures have the size that the paper gives them. */
  function fitPaper() {
    for (const plot of document.querySelectorAll(".js-plotly-plot")) {
      const grid = plot.closest(".grid");
      const columns = grid ? Number(getComputedStyle(grid).getPropertyValue("--columns")) : 1;
      const size = { width: Math.floor(PAPER_WIDTH / columns) - 12, height: Math.min(plot.clientHeight, PAPER_HEIGHT) };
      Plotly.relayout(plot, { ...size, autosize: false });
    }
  }

  function fitScreen() {
    for (const plot of document.querySelectorAll(".panel")) Plotly.relayout(plot, { width: null, height: null, autosize: true });
    if (page.maps.length) drawMap();
  }

  addEventListener("beforeprint", fitPaper);
  addEventListener("afterprint", fitScreen);

  if (page.maps.length) startMap();
  drawFigures();
  document.querySelectorAll("figure.tools").forEach(startTable);
  performance.mark("ready");
  document.documentElement.dataset.ready = "";
})();
