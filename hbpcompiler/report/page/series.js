// Instruments of lines: dots with their moving average, or bands of groups; a robust range with arrows beyond it.
"use strict";

// What an axis shows: the union of the visible curves' robust ranges, with room at both ends; logarithmic where all is
// positive and spread over more than a factor of 10. A single value of a second axis lies lower than that of the first.
hbp.range = (curves, options, references) => {
  const known = curves.filter(curve => curve.range);
  if (!known.length) return null;
  let low = Math.min(...known.map(curve => curve.range[0]), ...references);
  let high = Math.max(...known.map(curve => curve.range[1]), ...references);
  const log = Boolean(options.log) && known.every(curve => curve.positive) && low > 0 && high > 10 * low;
  if (log) [low, high] = [Math.log10(low), Math.log10(high)];
  const room = high > low ? 0.07 * (high - low) : log ? 0.5 : Math.abs(high) * 0.1 || 1;
  const bottom = low - (options.second && high === low ? 0.4 : 1) * room, top = high + room;
  return {log, low: bottom, high: top, inside: value => {
    const at = log ? Math.log10(value) : value;
    return at < bottom ? -1 : at > top ? 1 : 0;
  }};
};

hbp.styles = {
  main: {width: 2, opacity: 1}, second: {width: 1.5, opacity: 0.75}, third: {width: 1.2, opacity: 0.5},
  stairs: {width: 2, opacity: 1}, edge: {width: 1.3, opacity: 0.85, dash: "5px,4px"},
};

hbp.seriesTraces = (curve, line, run, axis, range) => {
  const colour = hbp.runColour(run), style = hbp.styles[line.role] || hbp.styles.main;
  const name = hbp.text(hbp.data.runs[run].name, 28);
  const common = {yaxis: axis, type: "scatter", legendgroup: String(run), showlegend: false};
  const stroke = {color: hbp.faded(colour, style.opacity), width: style.width, dash: style.dash || hbp.runDash(run)};
  const label = `${hbp.text(line.label)}<extra>${name}</extra>`;
  const traces = [];
  if (!curve.steps.length) return traces;
  if (line.role === "edge" || line.role === "stairs") {
    const height = curve.median || curve.values;
    const alone = line.role === "edge" ? {symbol: "line-ew", size: 40, line: {color: colour, width: 2}} : {color: colour, size: 9};
    return [{...common, x: curve.steps, y: height, mode: height.length > 1 ? "lines" : "markers", line: {...stroke, shape: "hv"},
             marker: alone, hovertemplate: `%{y:.4~g} ${label}`}];
  }
  if (curve.median) {
    const band = (low, high, opacity) => {
      traces.push({...common, x: curve.steps, y: low, mode: "lines", line: {width: 0}, hoverinfo: "skip"});
      traces.push({...common, x: curve.steps, y: high, mode: "lines", line: {width: 0}, fill: "tonexty",
                   fillcolor: hbp.faded(colour, opacity), hoverinfo: "skip"});
    };
    if (line.role === "main") {
      band(curve.low, curve.high, 0.13);
      band(curve.quarter, curve.threeQuarters, 0.26);
    }
    const words = curve.steps.map((_, at) =>
      `steps ${curve.from[at]} to ${curve.to[at]}, ${hbp.number(curve.low[at])} to ${hbp.number(curve.high[at])}`);
    traces.push({...common, x: curve.steps, y: curve.median, text: words, mode: "lines", line: stroke, drawn: true,
                 hovertemplate: `%{y:.4~g} ${hbp.text(line.label)}, median<br>%{text}<extra>${name}</extra>`});
    hbp.beyond(traces, common, curve.steps, curve.low, curve.high, range, colour, label);
  } else {
    traces.push({...common, x: curve.steps, y: curve.smooth, mode: "lines", line: stroke, hoverinfo: "skip"});
    traces.push({...common, x: curve.steps, y: curve.values, mode: "markers",
                 marker: {color: hbp.faded(colour, curve.steps.length < 4 ? 1 : line.role === "main" ? 0.5 : 0.3),
                          size: curve.steps.length > 150 ? 3.5 : curve.steps.length < 4 ? 9 : 5},
                 hovertemplate: `%{y:.4~g} ${label}`});
    hbp.beyond(traces, common, curve.steps, curve.values, curve.values, range, colour, label);
  }
  return traces;
};

// Names of lines, beside those of one run, each at another place: above its line, or below where another one lies close
// above; of a single step beside its dots. So many are named before them.
hbp.lineNames = (data, lines, axis, range, before) => lines.map(({line, at}, index) => {
  const share = [0.88, 0.55, 0.25][(before + index) % 3], scale = value => range.log ? Math.log10(value) : value;
  const height = curve => scale((curve.median || curve.smooth)[Math.round(share * (curve.steps.length - 1))]);
  const curve = data.lines[at], own = height(curve);
  const below = lines.some(other => other.at !== at && height(data.lines[other.at]) > own && height(data.lines[other.at]) - own < 0.2 * (range.high - range.low));
  const place = curve.steps.length > 1 ? {yshift: below ? -13 : 13} : {xanchor: "left", xshift: 8, yshift: below ? -6 : 0};
  return {x: curve.steps[Math.round(share * (curve.steps.length - 1))], y: own, xref: "x", yref: axis, text: hbp.text(line.label), showarrow: false,
          ...place, borderpad: 1, bgcolor: hbp.faded(hbp.colour("card"), 0.8), font: {size: 11, color: hbp.colour("ink")}};
});

// Triangles at the edge of the range, for values beyond it: in each stretch of the axis for the one that is farthest out.
hbp.stretches = 40;
hbp.beyond = (traces, common, steps, low, high, range, colour, label) => {
  const edge = end => range.log ? 10 ** end : end;
  for (const [values, side, end, symbol] of [[low, -1, range.low, "triangle-down"], [high, 1, range.high, "triangle-up"]]) {
    const farthest = new Map(), width = (steps[steps.length - 1] - steps[0]) / hbp.stretches || 1;
    steps.forEach((step, index) => {
      const stretch = Math.floor((step - steps[0]) / width), other = farthest.get(stretch);
      if (range.inside(values[index]) !== side) return;
      if (other === undefined || side * values[index] > side * values[other]) farthest.set(stretch, index);
    });
    const at = [...farthest.values()];
    if (!at.length) continue;
    traces.push({...common, x: at.map(index => steps[index]), y: at.map(() => edge(end)), mode: "markers",
                 text: at.map(index => hbp.number(values[index])), cliponaxis: false,
                 marker: {symbol, size: 8, color: colour}, hovertemplate: `%{text} ${label}`});
  }
};

// Crosses at the bottom, for values that are not finite.
hbp.broken = (curve, run, axis, label, range) => curve.notFinite ? [{
  x: curve.notFinite.steps, y: curve.notFinite.steps.map(() => range ? (range.log ? 10 ** range.low : range.low) : 0),
  yaxis: axis, type: "scatter", mode: "markers", cliponaxis: false, showlegend: false,
  marker: {symbol: "x", size: 8, color: hbp.colour("broken")},
  hovertemplate: `${hbp.text(label)}: not finite<extra>${hbp.text(hbp.data.runs[run].name, 28)}</extra>`}] : [];

hbp.series = chart => {
  const shown = hbp.shown(chart).map(({data, run}) => ({run, data: {...data, lines: data.lines.map(curve => hbp.clocked(curve, run))}}));
  const traces = [], annotations = [], layout = {};
  const sides = {left: "yaxis", right: "yaxis2"};
  const known = side => chart.lines.some((line, at) => line.axis === side && line.role !== "edge" && shown.some(({data}) => data.lines[at].count));
  const both = known("left") && known("right");
  let anything = false;
  for (const side of ["left", "right"]) {
    const lines = chart.lines.map((line, at) => ({line, at})).filter(({line}) => line.axis === side);
    const curves = lines.flatMap(({line, at}) => shown.filter(() => line.role !== "edge")
      .map(({data}) => data.lines[at])).filter(curve => curve.count);
    const edges = lines.flatMap(({line, at}) => shown.filter(() => line.role === "edge").map(({data}) => data.lines[at]))
      .filter(curve => curve.range);
    if (!curves.length) continue;
    const range = hbp.range(curves, {...chart.options, second: anything}, hbp.near(curves, edges));
    const axis = side === "left" || !anything ? "y" : "y2";
    for (const {data, run} of shown) for (const {line, at} of lines) {
      if (range) traces.push(...hbp.seriesTraces(data.lines[at], line, run, axis, range));
      traces.push(...hbp.broken(data.lines[at], run, axis, line.label, range));
    }
    const several = chart.lines.some(line => line.axis === "right");
    const beside = lines.filter(({line, at}) => line.role !== "edge" && shown.length && shown[0].data.lines[at].steps.length);
    if (range && (beside.length > 1 || both)) annotations.push(...hbp.lineNames(shown[0].data, beside, axis, range, annotations.length));
    layout[axis === "y" ? sides.left : sides.right] = hbp.axis({
      type: range && range.log ? "log" : "linear", range: range ? [range.low, range.high] : [-1, 1],
      title: hbp.title(several ? hbp.text(lines[0].line.label) : ""), ...(range && range.log ? hbp.decades(range) : {tickmode: "auto", nticks: 6}),
      ...(axis === "y2" ? {overlaying: "y", side: "right", showgrid: false} : {}),
    });
    anything = true;
  }
  const at = chart.options.at;
  const shapes = at === undefined ? [] : [{type: "line", xref: "paper", x0: 0, x1: 1, y0: at, y1: at, layer: "below",
    line: {color: hbp.colour("quiet"), width: 1, dash: "4px,3px"}}];
  const xs = shown.flatMap(({data}) => data.lines.flatMap(
    curve => [...curve.steps.slice(0, 1), ...curve.steps.slice(-1), ...(curve.notFinite ? curve.notFinite.steps : [])]));
  const [first, last] = [Math.min(...xs), Math.max(...xs)], room = (last - first) * 0.02 || 0.5;
  layout.xaxis = hbp.axis({title: hbp.title(hbp.clock.unit), range: [first - room, last + room], nticks: 7, exponentformat: "none",
                           ...(first === last ? {tickvals: [first], ticktext: [hbp.number(first)]} : {})});
  return {traces, layout: hbp.layout({...layout, shapes, annotations, hovermode: "x"})};
};

// Edges of stability that are not so far off that they would squeeze the curves; others are left to the words.
hbp.near = (curves, edges) => {
  const high = Math.max(...curves.filter(curve => curve.range).map(curve => curve.range[1]));
  return edges.flatMap(edge => edge.range).filter(value => value < 10 * high);
};

// Ticks of a logarithmic axis: whole powers of ten, or 1, 2, 5 where there are few.
hbp.decades = range => {
  const span = range.high - range.low;
  return span > 2.5 ? {tickmode: "linear", tick0: 0, dtick: Math.ceil(span / 5)} : {tickmode: "array", ...hbp.ticks(range)};
};

hbp.ticks = range => {
  const tickvals = [];
  for (let power = Math.floor(range.low); power <= range.high; power++) {
    for (const digit of range.high - range.low > 1.3 ? [1, 3] : [1, 2, 3, 5]) {
      const value = digit * 10 ** power, at = Math.log10(value);
      if (at >= range.low && at <= range.high) tickvals.push(Number(value.toPrecision(3)));
    }
  }
  return {tickvals, ticktext: tickvals.map(hbp.number)};
};
