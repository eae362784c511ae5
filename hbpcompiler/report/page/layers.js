// Layers against steps: one heatmap at a time, a row of which leads to its curve for every run, and its histogram.
"use strict";
hbp.layerState = {layer: 0, group: 0};

// A row-major array [L, G] of numbers out of base64, once.
hbp.unpacked = new WeakMap();
hbp.numbers = packed => {
  if (!hbp.unpacked.has(packed)) {
    const unpack = text => {
      const bytes = Uint8Array.from(atob(text), character => character.charCodeAt(0));
      return packed.code === "d" ? new Float64Array(bytes.buffer) : new Float32Array(bytes.buffer);
    };
    const median = unpack(packed.median);
    hbp.unpacked.set(packed, {median, low: packed.low ? unpack(packed.low) : median, high: packed.high ? unpack(packed.high) : median});
  }
  return hbp.unpacked.get(packed);
};

hbp.quantile = (sorted, share) => sorted[Math.min(sorted.length - 1, Math.max(0, Math.round(share * (sorted.length - 1))))];

// How values become colours: log10 of positive ones, and for those with signs a symmetric logarithm.
hbp.colouring = values => {
  const finite = Array.from(values).filter(Number.isFinite), sizes = finite.map(Math.abs).filter(size => size > 0).sort((a, b) => a - b);
  if (!sizes.length) return {scale: hbp.scale(), low: 0, high: 1, at: () => 0, value: at => at};
  if (finite.every(value => value >= 0)) {
    let [low, high] = [Math.log10(hbp.quantile(sizes, 0.01)), Math.log10(hbp.quantile(sizes, 0.99))];
    if (high - low < 0.1) [low, high] = [low - 0.5, high + 0.5];
    return {scale: hbp.scale(), low, high, at: value => Math.max(low, value > 0 ? Math.log10(value) : low), value: at => 10 ** at};
  }
  const unit = hbp.quantile(sizes, 0.1), high = Math.asinh(hbp.quantile(sizes, 0.99) / unit);
  return {scale: hbp.diverging(), low: -high, high, at: value => Math.asinh(value / unit), value: at => unit * Math.sinh(at)};
};

hbp.layerChoice = () => {
  const quantity = hbp.data.layers[document.getElementById("layer-quantity").value];
  const run = Number(document.getElementById("layer-run").value);
  return {quantity, run, packed: quantity.runs[run]};
};

hbp.layerMap = () => {
  const {run, packed} = hbp.layerChoice(), map = document.getElementById("layer-map");
  if (!packed) return {traces: [], layout: hbp.layout({xaxis: {visible: false}, yaxis: {visible: false},
    annotations: [{text: "not tracked in this run", showarrow: false, x: 0.5, y: 0.5, xref: "paper", yref: "paper"}]})};
  const rows = packed.layers.length, groups = packed.steps.length, values = hbp.numbers(packed).median;
  const colouring = hbp.colouring(values), z = [], broken = [];
  let anyBroken = false;
  for (let row = 0; row < rows; row++) {
    const line = Array.from(values.subarray(row * groups, (row + 1) * groups));
    z.push(line.map(value => Number.isFinite(value) ? colouring.at(value) : null));
    broken.push(line.map(value => Number.isFinite(value) ? null : 1));
    anyBroken = anyBroken || line.some(value => !Number.isFinite(value));
  }
  map.style.height = Math.min(640, Math.max(170, 70 + 16 * rows)) + "px";
  const phone = map.clientWidth < 500, every = Math.ceil(rows / (Math.min(570, 16 * rows) / 15));
  const tickvals = packed.layers.map((_, at) => at).filter(at => at % every === 0);
  const ticks = [0, 0.25, 0.5, 0.75, 1].map(share => colouring.low + share * (colouring.high - colouring.low));
  const x = packed.steps.map((_, at) => at), marks = hbp.stepTicks(packed.steps, phone ? 4 : 8);
  const common = {type: "heatmap", x, xgap: 0, hoverongaps: false};
  const traces = [{...common, z, colorscale: colouring.scale, zmin: colouring.low, zmax: colouring.high, hoverinfo: "none",
    colorbar: {thickness: 9, len: 1, outlinewidth: 0, tickvals: ticks, ticktext: ticks.map(at => hbp.number(Number(colouring.value(at).toPrecision(2)))),
               tickfont: {color: hbp.colour("quiet"), size: 10}}}];
  if (anyBroken) traces.push({...common, z: broken, colorscale: [[0, hbp.colour("broken")], [1, hbp.colour("broken")]], showscale: false, hoverinfo: "none"});
  const at = hbp.layerState.layer;
  return {traces, layout: hbp.layout({
    xaxis: hbp.axis({title: hbp.title("step"), ...marks, showgrid: false, zeroline: false, range: [-0.5, groups - 0.5]}),
    yaxis: hbp.axis({range: [rows - 0.5, -0.5], tickvals, ticktext: tickvals.map(at => hbp.text(packed.layers[at], phone ? 14 : 30)), showgrid: false, zeroline: false}),
    shapes: [{type: "rect", xref: "paper", x0: 0, x1: 1, y0: at - 0.5, y1: at + 0.5, line: {color: hbp.runColour(run), width: 2}}]})};
};

// Where a step lies among the groups' steps, between two where it is between them.
hbp.place = (steps, wanted) => {
  const after = Math.max(steps.findIndex(step => step >= wanted), 0);
  return after && steps[after] > wanted ? after - (steps[after] - wanted) / (steps[after] - steps[after - 1]) : after;
};

hbp.stepTicks = (steps, many) => {
  const span = (steps[steps.length - 1] - steps[0]) / many, power = 10 ** Math.floor(Math.log10(Math.max(span, 1)));
  const every = [1, 2, 5, 10].map(digit => digit * power).find(width => width >= span) || 1, tickvals = [], ticktext = [];
  for (let wanted = Math.ceil(steps[0] / every) * every; wanted <= steps[steps.length - 1]; wanted += every) {
    tickvals.push(hbp.place(steps, wanted));
    ticktext.push(String(wanted));
  }
  return {tickvals, ticktext};
};

hbp.layerCurve = () => {
  const {quantity, packed} = hbp.layerChoice(), name = packed ? packed.layers[hbp.layerState.layer] : "";
  const runs = quantity.runs.map(other => {
    const row = other ? other.layers.indexOf(name) : -1;
    if (row < 0) return null;
    const numbers = hbp.numbers(other), part = which => Array.from(numbers[which].subarray(row * other.steps.length, (row + 1) * other.steps.length));
    return {lines: [hbp.curveOf(other, part("median"), part("low"), part("high"))]};
  });
  document.getElementById("layer-title").textContent = name ? `${name}: ${quantity.label}` : quantity.label;
  return hbp.series({runs, lines: [{label: quantity.label, axis: "left", role: "main"}], options: {log: true}});
};

// A row as the instruments' curves are.
hbp.curveOf = (packed, median, low, high) => {
  const kept = packed.steps.map((_, at) => at).filter(at => Number.isFinite(median[at]));
  const pick = values => kept.map(at => values[at]), ordered = values => pick(values).filter(Number.isFinite).sort((a, b) => a - b);
  const lows = ordered(low), highs = ordered(high), few = lows.length <= 20;
  const lost = packed.steps.filter((_, at) => !Number.isFinite(low[at]) || !Number.isFinite(high[at]));
  const ends = pick(low).concat(pick(high)).filter(Number.isFinite);
  const common = {steps: pick(packed.steps), count: packed.steps.length, positive: ends.length > 0 && ends.every(value => value > 0),
    range: lows.length ? [hbp.quantile(lows, few ? 0 : 0.02), hbp.quantile(highs, few ? 1 : 0.98)] : null,
    notFinite: lost.length ? {count: lost.length, first: lost[0], steps: lost} : null};
  if (!packed.low) return {...common, values: pick(median), smooth: pick(median)};
  const safe = values => pick(values).map((value, at) => Number.isFinite(value) ? value : pick(median)[at]);
  return {...common, from: pick(packed.from), to: pick(packed.to), median: pick(median), quarter: pick(median), threeQuarters: pick(median),
          low: safe(low), high: safe(high)};
};

hbp.layerReadout = () => {
  const {quantity, packed} = hbp.layerChoice(), readout = document.getElementById("layer-readout");
  if (!packed) { readout.textContent = ""; return; }
  const {layer, group} = hbp.layerState, at = layer * packed.steps.length + group, numbers = hbp.numbers(packed);
  const steps = packed.from[group] === packed.to[group] ? `step ${packed.from[group]}` : `steps ${packed.from[group]} to ${packed.to[group]}`;
  const more = packed.low ? ` (${hbp.number(numbers.low[at])} to ${hbp.number(numbers.high[at])})` : "";
  readout.textContent = `${packed.layers[layer]}, ${steps}: ${quantity.label} ${hbp.number(numbers.median[at])}${more}`;
};

hbp.layerField = () => {
  const {run, packed} = hbp.layerChoice(), box = document.getElementById("layer-field-box");
  const fields = hbp.data.fields[run] || {}, name = packed ? packed.layers[hbp.layerState.layer] : null;
  box.hidden = !(name !== null && Object.hasOwn(fields, name));
  if (!box.hidden) hbp.put("layer-field", hbp.oneField(fields[name], run));
};

hbp.chooseLayer = (layer, group) => {
  const {packed} = hbp.layerChoice();
  if (!packed) return;
  hbp.layerState.layer = Math.max(0, Math.min(packed.layers.length - 1, layer));
  hbp.layerState.group = Math.max(0, Math.min(packed.steps.length - 1, group));
  document.getElementById("layer-name").value = hbp.layerState.layer;
  const at = hbp.layerState.layer;
  Plotly.relayout("layer-map", {"shapes[0].y0": at - 0.5, "shapes[0].y1": at + 0.5});
  hbp.layerReadout();
  hbp.layerField();
  hbp.put("layer-curve", hbp.layerCurve());
};

hbp.drawLayers = () => {
  const {packed} = hbp.layerChoice(), names = document.getElementById("layer-name");
  names.replaceChildren(...(packed ? packed.layers : []).map((name, at) => new Option(name, at)));
  hbp.layerState.layer = Math.min(hbp.layerState.layer, packed ? packed.layers.length - 1 : 0);
  hbp.layerState.group = packed ? packed.steps.length - 1 : 0;
  names.value = hbp.layerState.layer;
  hbp.put("layer-map", hbp.layerMap());
  hbp.layerReadout();
  hbp.layerField();
  hbp.put("layer-curve", hbp.layerCurve());
};

hbp.startLayers = () => {
  const map = document.getElementById("layer-map");
  hbp.drawLayers();
  for (const id of ["layer-quantity", "layer-run"]) document.getElementById(id).addEventListener("change", hbp.drawLayers);
  document.getElementById("layer-name").addEventListener("change", event => hbp.chooseLayer(Number(event.target.value), hbp.layerState.group));
  map.on("plotly_click", event => hbp.chooseLayer(Math.round(event.points[0].y), Math.round(event.points[0].x)));
  map.on("plotly_hover", event => {
    const before = {...hbp.layerState};
    [hbp.layerState.layer, hbp.layerState.group] = [Math.round(event.points[0].y), Math.round(event.points[0].x)];
    hbp.layerReadout();
    Object.assign(hbp.layerState, before);
  });
  map.addEventListener("keydown", event => {
    const move = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], PageUp: [-10, 0], PageDown: [10, 0]}[event.key];
    if (!move) return;
    event.preventDefault();
    hbp.chooseLayer(hbp.layerState.layer + move[0], hbp.layerState.group + move[1]);
  });
};
