// Instruments that are pictures: the parabola of alpha, noise as areas, histograms of one and two axes.
"use strict";

hbp.alpha = chart => {
  const shown = hbp.shown(chart), traces = [], grid = [];
  for (let at = -1.6; at <= 1.6001; at += 0.05) grid.push(at);
  const highest = Math.max(...shown.flatMap(({data}) => [...data.all, ...data.recent]), 1e-9);
  const scaled = density => density.map(value => 2.5 * value / highest);
  const common = {type: "scatter", mode: "lines", showlegend: false};
  for (const {data, run} of shown) {
    const name = hbp.text(hbp.data.runs[run].name, 28), colour = hbp.runColour(run);
    traces.push({...common, x: data.grid, y: scaled(data.all), fill: "tozeroy", line: {color: hbp.faded(hbp.colour("other"), 0.8), width: 1},
                 fillcolor: hbp.faded(hbp.colour("other"), 0.18), hovertemplate: `all ${data.count} steps<extra>${name}</extra>`});
    traces.push({...common, x: data.grid, y: scaled(data.recent), fill: "tozeroy", fillcolor: hbp.faded(colour, 0.18),
                 line: {color: colour, width: 1.6, dash: hbp.runDash(run)},
                 hovertemplate: `last ${data.recentCount} steps<extra>${name}</extra>`});
  }
  traces.push({...common, x: grid, y: grid.map(at => at * at), line: {color: hbp.colour("quiet"), width: 1.5}, hoverinfo: "skip"});
  for (const {data, run} of shown) {
    const name = hbp.text(hbp.data.runs[run].name, 28), colour = hbp.runColour(run);
    const at = Math.max(-1.6, Math.min(1.6, data.recentMedian));
    traces.push({...common, mode: "markers", x: [at], y: [at * at], marker: {color: colour, size: 13, line: {color: hbp.colour("card"), width: 2}},
                 text: [hbp.number(data.recentMedian)], hovertemplate: `median of the last ${data.recentCount}: %{text}<extra>${name}</extra>`});
    for (const [count, x, symbol, words] of [[data.below, -1.95, "triangle-left", "below -2"], [data.above, 1.95, "triangle-right", "above 2"]]) {
      if (count) traces.push({...common, mode: "markers", x: [x], y: [0.25 + 0.3 * run], marker: {symbol, size: 11, color: colour},
                              hovertemplate: `${count} of ${data.count} steps are ${words}<extra>${name}</extra>`});
    }
  }
  return {traces, layout: hbp.layout({
    xaxis: hbp.axis({range: [-2.05, 2.05], tickvals: [-1, 0, 1], ticktext: ["-1<br>did not move", "0<br>lowest point", "1<br>same height"], zeroline: true}),
    yaxis: hbp.axis({range: [0, 2.7], showticklabels: false, showgrid: false, automargin: false}), margin: {l: 12, r: 12, t: 8, b: 30}})};
};

hbp.tests = chart => {
  const shown = hbp.shown(chart), traces = [];
  const largest = Math.max(1, ...shown.map(({data}) => data.norm)) * 1.15;
  const turn = Array.from({length: 91}, (_, at) => 2 * Math.PI * at / 90);
  const ring = (radius, options) => ({type: "scatter", mode: "lines", showlegend: false, x: turn.map(at => radius * Math.cos(at)),
                                      y: turn.map(at => radius * Math.sin(at)), ...options});
  const wide = 40 * largest;
  const box = (x, y, options) => ({type: "scatter", mode: "lines", showlegend: false, x: [-x, x, x, -x, -x], y: [-y, -y, y, y, -y], fill: "toself", ...options});
  for (const {data, run} of shown) {
    const name = hbp.text(hbp.data.runs[run].name, 28), colour = hbp.runColour(run);
    const look = (opacity, words) => ({fill: "toself", fillcolor: hbp.faded(colour, opacity), line: {color: hbp.faded(colour, 0.9), width: 1.3, dash: hbp.runDash(run)},
                                       hoverinfo: "text", hoveron: "fills", text: `${name}: ${words}`});
    traces.push(box(wide, data.inner, look(0.13, `inner test ${hbp.number(data.inner)}`)));
    traces.push(box(data.orthogonal, wide, look(0.13, `orthogonal test ${hbp.number(data.orthogonal)}`)));
    traces.push(ring(data.norm, look(0.22, `norm test ${hbp.number(data.norm)}`)));
  }
  traces.push(ring(1, {line: {color: hbp.colour("ink"), width: 1.4, dash: "5px,4px"}, hoverinfo: "text", text: "the gradient's length"}));
  traces.push({type: "scatter", mode: "lines+markers", showlegend: false, x: [0, 0], y: [0, 1], line: {color: hbp.colour("ink"), width: 2},
               marker: {symbol: ["circle", "triangle-up"], size: [4, 10], color: hbp.colour("ink")}, hoverinfo: "text", text: "the gradient"});
  return {traces, layout: hbp.layout({
    xaxis: hbp.axis({range: [-largest, largest], scaleanchor: "y", constrain: "domain", title: hbp.title("across the gradient"), zeroline: false, nticks: 6}),
    yaxis: hbp.axis({range: [-largest, largest], constrain: "domain", title: hbp.title("along"), zeroline: false, nticks: 6})})};
};

hbp.isEven = edges => {
  const width = (edges[edges.length - 1] - edges[0]) / (edges.length - 1);
  return edges.every((edge, at) => Math.abs(edge - edges[0] - at * width) < 0.01 * width);
};

// Where values lie on an axis of bins: as they are if all bins are equally wide, else by sign and magnitude, for which
// what is next to zero (a hundredth of the counts) gets the middle. Histograms are [edges, counts]; about so many ticks
// on either side of zero.
hbp.places = (histograms, many = 3) => {
  if (histograms.every(([edges]) => hbp.isEven(edges))) return {at: value => value, axis: {nticks: 2 * many + 1}};
  const unit = Math.min(...histograms.map(([edges, counts]) => hbp.smallest(edges, counts)));
  const at = value => Math.abs(value) <= unit ? value / unit : Math.sign(value) * (1 + Math.log10(Math.abs(value) / unit));
  const most = Math.max(...histograms.flatMap(([edges]) => [Math.abs(edges[0]), Math.abs(edges[edges.length - 1])]));
  const first = Math.ceil(Math.log10(unit)), last = Math.floor(Math.log10(most)), tickvals = [0], ticktext = ["0"];
  for (let power = last; power >= first; power -= Math.max(1, Math.ceil((last - first + 1) / many))) {
    for (const sign of [-1, 1]) {
      tickvals.push(sign * at(10 ** power));
      ticktext.push((sign < 0 ? "-" : "") + (power > -3 && power < 4 ? String(Number((10 ** power).toPrecision(1))) : `1e${power}`));
    }
  }
  return {at, axis: {tickmode: "array", tickvals, ticktext}};
};

// The magnitude below which a hundredth of the counts lies, those in the bin of zero left out.
hbp.smallest = (edges, counts) => {
  const bins = counts.map((count, at) => ({count, size: Math.max(Math.abs(edges[at]), Math.abs(edges[at + 1])),
    zero: edges[at] <= 0 && edges[at + 1] >= 0})).filter(({zero, count}) => !zero && count > 0).sort((a, b) => a.size - b.size);
  const total = bins.reduce((sum, {count}) => sum + count, 0);
  let below = 0;
  for (const {count, size} of bins) {
    below += count;
    if (below > 0.01 * total) return size / 2;
  }
  return Math.min(...edges.map(Math.abs).filter(edge => edge > 0));
};

hbp.bars = chart => {
  const shown = hbp.shown(chart), traces = [];
  const places = hbp.places(shown.flatMap(({data}) => [data.first, data.last]).map(bars => [bars.edges, bars.counts]));
  for (const {data, run} of shown) {
    const name = hbp.text(hbp.data.runs[run].name, 28), colour = hbp.runColour(run);
    const outline = (bars, options) => {
      const x = bars.edges.map(places.at);
      traces.push({type: "scatter", mode: "lines", showlegend: false, x: [...x], y: [...bars.counts.map(count => Math.max(count, 0.5)), 0.5],
        line: {shape: "hv", color: colour, ...options.line}, fill: options.fill, fillcolor: hbp.faded(colour, 0.22),
        text: [...bars.counts.map((count, at) => `${count} entries from ${hbp.number(bars.edges[at])} to ${hbp.number(bars.edges[at + 1])}`), ""],
        hovertemplate: `%{text}, step ${bars.step}<extra>${name}</extra>`});
    };
    if (data.first.step !== data.last.step) outline(data.first, {line: {width: 1, color: hbp.faded(colour, 0.65), dash: "2px,2px"}});
    outline(data.last, {line: {width: 1.6, dash: hbp.runDash(run)}, fill: "tozeroy"});
  }
  const most = Math.max(1, ...shown.flatMap(({data}) => [...data.first.counts, ...data.last.counts]));
  return {traces, layout: hbp.layout({
    xaxis: hbp.axis({title: hbp.title("entry"), ...places.axis, zeroline: false}),
    yaxis: hbp.axis({type: "log", range: [-0.3, Math.log10(most) + 0.2], title: hbp.title("count"), dtick: Math.max(1, Math.ceil(Math.log10(most) / 5))})})};
};

hbp.oneField = (data, run, many = 3) => {
  const [rows, columns] = data.edges, sums = [data.counts.map(row => row.reduce((sum, count) => sum + count, 0)),
    columns.slice(1).map((_, at) => data.counts.reduce((sum, row) => sum + row[at], 0))];
  const [vertical, horizontal] = [hbp.places([[rows, sums[0]]]), hbp.places([[columns, sums[1]]], many)];
  const z = data.counts.map(row => row.map(count => count > 0 ? Math.log10(count + 1) : null));
  const text = data.counts.map((row, at) => row.map((count, place) => `${count} with gradient ${hbp.number(rows[at])} to ${hbp.number(rows[at + 1])},`
    + `<br>parameter ${hbp.number(columns[place])} to ${hbp.number(columns[place + 1])}`));
  return {traces: [{type: "heatmap", x: columns.map(horizontal.at), y: rows.map(vertical.at), z, text, showscale: false, colorscale: hbp.scale(),
                    zmin: -0.4, hovertemplate: `%{text}<extra>${hbp.text(hbp.data.runs[run].name, 28)}</extra>`}],
          layout: hbp.layout({
    xaxis: hbp.axis({title: hbp.title("parameter"), ...horizontal.axis, zeroline: false}),
    yaxis: hbp.axis({title: hbp.title("gradient"), ...vertical.axis, zeroline: false})})};
};

// Fields of several runs lie side by side.
hbp.field = chart => {
  const shown = hbp.shown(chart), traces = [], layout = {};
  if (!shown.length) return {traces, layout: hbp.layout({})};
  shown.forEach(({data, run}, at) => {
    const one = hbp.oneField(data, run, shown.length > 1 ? 1 : 3), end = at ? String(at + 1) : "", width = 1 / shown.length;
    traces.push({...one.traces[0], xaxis: "x" + end, yaxis: "y" + end});
    layout["xaxis" + end] = {...one.layout.xaxis, domain: [at * width + (at ? 0.07 : 0), (at + 1) * width], anchor: "y" + end,
                             ...(shown.length > 1 ? {linecolor: hbp.runColour(run), linewidth: 3} : {})};
    layout["yaxis" + end] = {...one.layout.yaxis, anchor: "x" + end, ...(at ? {title: hbp.title("")} : {}), showticklabels: !at};
  });
  return {traces, layout: hbp.layout(layout)};
};
